//! The sources of interrupts: input lines, physical interrupts, SGIs.

use super::gic::Vgic;
use super::intid::{FIRST_SPI, split};
use super::kicks::Kicks;
use super::sgi::SgiRequest;

impl Vgic {
    /// Sets the input line of an SPI. An edge-triggered one becomes pending on a rising edge, a
    /// level-triggered one is pending while its line is high. An unknown INTID is ignored.
    pub fn set_line(&mut self, intid: u32, high: bool) -> Kicks {
        if intid < FIRST_SPI {
            return Kicks::NONE;
        }
        self.set_line_of(0, intid, high)
    }

    /// Sets the input line of a PPI of `vcpu` that has no physical counterpart.
    pub fn set_ppi_line(&mut self, vcpu: usize, intid: u32, high: bool) -> Kicks {
        if !(16..32).contains(&intid) {
            return Kicks::NONE;
        }
        self.set_line_of(vcpu, intid, high)
    }

    pub(super) fn set_line_of(&mut self, vcpu: usize, intid: u32, high: bool) -> Kicks {
        let (index, mask) = split(intid);
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        if bank.implemented & mask == 0 || (bank.line & mask != 0) == high {
            return Kicks::NONE;
        }
        if high {
            bank.line |= mask;
            bank.latch |= mask & bank.edge;
        } else {
            bank.line &= !mask;
            if bank.edge & mask != 0 {
                return Kicks::NONE;
            }
        }
        self.refresh(vcpu, intid)
    }

    /// Makes the physical PPI or SPI `intid` pending for `vcpu` under the same INTID. The physical CPU of
    /// `vcpu` has acknowledged it and dropped its priority, but not deactivated it: it stays active, so it
    /// cannot be signalled again, until the guest has deactivated the virtual one.
    pub fn inject_physical(&mut self, vcpu: usize, intid: u32) -> Kicks {
        let (index, mask) = split(intid);
        if intid < 16 || self.vcpus.get(vcpu).is_none() {
            return Kicks::NONE;
        }
        if self
            .bank(vcpu, index)
            .is_none_or(|bank| bank.implemented & mask == 0)
        {
            return Kicks::NONE;
        }
        // The interrupt could only be signalled again because the guest has deactivated the previous one.
        self.finish_physical(vcpu, intid);
        if let Some(bank) = self.bank_mut(vcpu, index) {
            bank.latch |= mask;
            bank.phys_pending |= mask;
            bank.phys_active |= mask;
        }
        self.refresh(vcpu, intid)
    }

    /// Ends `intid` in its list register, if a list register still stands for the physical interrupt: that
    /// one is known not to be active any more, but its CPU has not synced yet.
    pub(super) fn finish_physical(&mut self, vcpu: usize, intid: u32) {
        let (index, mask) = split(intid);
        let home = self.home(vcpu, intid);
        if let Some(cpu) = self.vcpus.get_mut(home)
            && let Some(i) = cpu.lr_index(intid)
            && cpu
                .lr_states
                .get(i)
                .is_some_and(|state| state.phys_pending || state.phys_active)
        {
            cpu.used &= !(1 << i);
            self.clear_home(vcpu, intid);
            if let Some(bank) = self.bank_mut(vcpu, index) {
                bank.resident &= !mask;
                bank.active &= !mask;
                bank.phys_active &= !mask;
            }
        }
    }

    /// Executes a write to one of the SGI registers by `sender`. Only vCPUs of this GIC are targets.
    pub fn send_sgi(&mut self, sender: usize, request: &SgiRequest) -> Kicks {
        let mut kicks = Kicks::NONE;
        let mask = 1 << request.intid;
        for vcpu in 0..self.vcpus.len() {
            let Some(cpu) = self.vcpus.get_mut(vcpu) else {
                break;
            };
            if request.targets(cpu.affinity, vcpu == sender)
                && (request.group1 || cpu.private.group & mask == 0)
            {
                cpu.private.latch |= mask & cpu.private.implemented;
                kicks |= self.refresh(vcpu, request.intid);
            }
        }
        kicks
    }
}
