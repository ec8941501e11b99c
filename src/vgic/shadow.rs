//! The list register shadow: lets EL2 access the real list registers outside the lock that guards the virtual
//! GIC.
//!
//! A register of the CPU interface is slow: on hardware several times a load, under QEMU, which guards its
//! model of the GIC with one lock for all CPUs, a thousand times. So the list registers in use are read
//! before EL2 takes its lock, a pass works on the shadow, and its changes are written after the lock is
//! released: other CPUs wait only for computation. This is sound because only their own CPU accesses list
//! registers, because that CPU is at EL2 all the while, and because what other CPUs need to know of them is
//! in the banks.

use super::intid::bits;
use super::lr::{ListRegisters, Lr, MAX_LIST_REGISTERS};

/// Deactivations that can be deferred; further ones are done at once.
const MAX_DEFERRED: usize = 8;

/// A shadow of one CPU's list registers, to be used under the lock.
#[derive(Debug)]
pub struct LrShadow<'a, L: ListRegisters> {
    real: &'a mut L,
    count: usize,
    values: [u64; MAX_LIST_REGISTERS],
    /// The list registers that are not empty, a bit for each.
    used: u32,
    written: u32,
    /// Written, while the real one holds another interrupt.
    reassigned: u32,
    hcr: Option<u64>,
    deactivated: [u32; MAX_DEFERRED],
    deactivations: usize,
}

impl<'a, L: ListRegisters> LrShadow<'a, L> {
    /// Reads the list registers in `used`, a bit for each; all others are empty.
    pub fn load(real: &'a mut L, used: u32) -> Self {
        let count = real.count().min(MAX_LIST_REGISTERS);
        let mut values = [0; MAX_LIST_REGISTERS];
        for (index, value) in values.iter_mut().enumerate().take(count) {
            if used & 1 << index != 0 {
                *value = real.read(index);
            }
        }
        Self {
            real,
            count,
            values,
            used,
            written: 0,
            reassigned: 0,
            hcr: None,
            deactivated: [0; MAX_DEFERRED],
            deactivations: 0,
        }
    }

    /// Writes the changes. Returns the list registers that are not empty, for the next [`LrShadow::load`].
    pub fn write_back(self) -> u32 {
        // Those whose interrupt changes are emptied first, so that an interrupt is never in two list
        // registers.
        for index in bits(self.reassigned) {
            self.real.write(index as usize, 0);
        }
        for index in bits(self.written & (self.used | !self.reassigned)) {
            self.real.write(index as usize, self.read(index as usize));
        }
        if let Some(value) = self.hcr {
            self.real.set_hcr(value);
        }
        for &intid in self.deactivated.iter().take(self.deactivations) {
            self.real.deactivate(intid);
        }
        self.used
    }
}

impl<L: ListRegisters> ListRegisters for LrShadow<'_, L> {
    fn count(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize) -> u64 {
        self.values.get(index).copied().unwrap_or(0)
    }

    fn write(&mut self, index: usize, value: u64) {
        if let Some(place) = self.values.get_mut(index) {
            let before = Lr(core::mem::replace(place, value));
            self.written |= 1 << index;
            if before.0 != 0 && (value == 0 || before.intid() != Lr(value).intid()) {
                self.reassigned |= 1 << index;
            }
            self.used = self.used & !(1 << index) | u32::from(value != 0) << index;
        }
    }

    /// `EOIcount` reads as zero once [`ListRegisters::set_hcr`] was called, as it will be after the write.
    fn hcr(&self) -> u64 {
        self.hcr.unwrap_or_else(|| self.real.hcr())
    }

    fn set_hcr(&mut self, value: u64) {
        self.hcr = Some(value);
    }

    fn vmcr(&self) -> u64 {
        self.real.vmcr()
    }

    fn deactivate(&mut self, intid: u32) {
        match self.deactivated.get_mut(self.deactivations) {
            Some(place) => {
                *place = intid;
                self.deactivations += 1;
            }
            None => self.real.deactivate(intid),
        }
    }

    fn line(&self, intid: u32) -> bool {
        self.real.line(intid)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::fake::FakeCpu;
    use super::super::lr::hcr;
    use super::{LrShadow, MAX_DEFERRED};
    use crate::vgic::lr::{ListRegisters, Lr};

    #[test]
    fn loads_registers_in_use_and_writes_back_changes() {
        let mut cpu = FakeCpu::new(4);
        let lr = |intid| Lr::new(intid, 0xa0, true).with_pending(true).0;
        cpu.write(0, lr(40));
        cpu.write(2, lr(42));
        cpu.accesses.set(0);
        let mut shadow = LrShadow::load(&mut cpu, 0b101);
        assert_eq!(
            (shadow.read(0), shadow.read(1), shadow.read(2)),
            (lr(40), 0, lr(42))
        );
        shadow.write(1, lr(41));
        shadow.write(0, 0);
        assert_eq!(shadow.write_back(), 0b110);
        assert_eq!(cpu.accesses.get(), 4, "two reads, two writes");
        assert_eq!(
            (cpu.read(0), cpu.read(1), cpu.read(2), cpu.read(3)),
            (0, lr(41), lr(42), 0)
        );
    }

    #[test]
    fn an_interrupt_that_moves_is_never_in_two_list_registers() {
        let mut cpu = FakeCpu::new(4);
        let lr = |intid| Lr::new(intid, 0xa0, true).with_pending(true).0;
        cpu.write(0, lr(0));
        cpu.write(3, lr(43));
        let mut shadow = LrShadow::load(&mut cpu, 0b1001);
        shadow.write(0, 0);
        shadow.write(3, lr(0));
        shadow.write(0, lr(43));
        // The fake CPU panics if it were.
        assert_eq!(shadow.write_back(), 0b1001);
        assert_eq!((cpu.read(0), cpu.read(3)), (lr(43), lr(0)));
    }

    #[test]
    fn deferred_deactivations_are_all_done() {
        let mut cpu = FakeCpu::new(4);
        let mut shadow = LrShadow::load(&mut cpu, 0);
        for intid in 32..32 + MAX_DEFERRED as u32 {
            shadow.deactivate(intid);
        }
        assert!(shadow.real.deactivated.is_empty());
        shadow.deactivate(100);
        shadow.set_hcr(hcr::EN | hcr::NPIE);
        assert_eq!(shadow.hcr(), hcr::EN | hcr::NPIE);
        assert_eq!(shadow.real.hcr(), 0);
        shadow.write_back();
        assert_eq!(cpu.hcr(), hcr::EN | hcr::NPIE);
        cpu.deactivated.sort_unstable();
        assert_eq!(cpu.deactivated, [32, 33, 34, 35, 36, 37, 38, 39, 100]);
    }
}
