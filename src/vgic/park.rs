//! vCPUs start and stop using the list registers of their physical CPU: a vCPU is powered on or off, the zone
//! is started or stopped, a CPU of root is taken offline.

use super::gic::Vgic;
use super::intid::{bits, split};
use super::kicks::Kicks;
use super::lr::{ListRegisters, MAX_LIST_REGISTERS};

impl Vgic {
    /// Starts to use the list registers of a physical CPU for `vcpu`.
    pub fn unpark(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = self.resolve_online(vcpu, true);
        // Parking leaves none in use. A CPU that could not park loses what it had there.
        let used = self
            .vcpus
            .get_mut(vcpu)
            .map_or(0, |cpu| core::mem::take(&mut cpu.used));
        for i in bits(used) {
            let Some(state) = self.vcpus.get(vcpu).and_then(|cpu| cpu.lr_states.get(i as usize)) else {
                break;
            };
            let intid = state.intid;
            let (index, mask) = split(intid);
            if let Some(bank) = self.bank_mut(vcpu, index) {
                bank.resident &= !mask;
                bank.active &= !mask;
                bank.phys_active &= !mask;
            }
            self.clear_home(vcpu, intid);
            kicks |= self.refresh(vcpu, intid);
        }
        for i in 0..lrs.count().min(MAX_LIST_REGISTERS) {
            lrs.write(i, 0);
        }
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.hcr = 0;
        }
        kicks.without(vcpu) | self.service(vcpu, lrs)
    }

    /// Empties the list registers, because `vcpu` leaves its physical CPU. Pending interrupts stay pending;
    /// active ones are deactivated, with their physical interrupts; SPIs are rerouted where possible,
    /// physical PPIs are returned to the hardware.
    pub fn park(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = self.sync(vcpu, lrs);
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return kicks;
        };
        // From here on it is not kicked.
        cpu.online = false;
        for i in bits(cpu.used) {
            if let Some(intid) = self.unload(vcpu, i as usize, lrs) {
                kicks |= self.refresh(vcpu, intid);
            }
        }
        // Active interrupts, and physical ones that no list register of this CPU stands for.
        for index in 0..=self.spis.len() {
            let Some(mask) = self.vcpus.get(vcpu).and_then(|cpu| cpu.ready.get(index)).copied() else {
                break;
            };
            for bit in bits(mask) {
                let intid = index as u32 * 32 + bit;
                let Some(bank) = self.bank_mut(vcpu, index) else {
                    break;
                };
                let was_active = bank.active & 1 << bit != 0;
                bank.active &= !(1 << bit);
                if was_active && bank.phys_active & !bank.phys_pending & 1 << bit != 0 {
                    bank.phys_active &= !(1 << bit);
                    lrs.deactivate(intid);
                }
                kicks |= self.refresh(vcpu, intid);
            }
        }
        // Physical PPIs, whether their deactivation was deferred or not.
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            let live = cpu.private.phys_active;
            cpu.private.latch &= !cpu.private.phys_pending;
            (cpu.private.phys_active, cpu.private.phys_pending) = (0, 0);
            bits(live).for_each(|intid| lrs.deactivate(intid));
            kicks |= self.refresh_bank(vcpu, 0, live);
        }
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.hcr = 0;
            cpu.evicted = false;
            cpu.dirty = true;
        }
        lrs.set_hcr(0);
        (kicks | self.resolve_online(vcpu, false)).without(vcpu)
    }
}
