//! Keeps the list registers of a vCPU and the state of its interrupts in agreement. Everything here, in
//! `fill` and in `park` runs on the physical CPU whose list registers it accesses, while its guest is stopped
//! at EL2.
//!
//! One pass (`service`), in this order: fold what the guest did to each list register back into the bank
//! (acknowledged, deactivated), write what happened to its interrupt meanwhile (raised again, line dropped,
//! disabled, rerouted), fill free list registers by priority, and choose the maintenance interrupts (`fill`).

use super::fill::Class;
use super::gic::Vgic;
use super::intid::{bits, split};
use super::kicks::Kicks;
use super::lr::{ListRegisters, Lr, hcr, vmcr};
use super::lr_state::desired_lr;
use super::state::NONE;

impl Vgic {
    /// Flushes the list registers of `vcpu` if anything changed. EL2 calls it after a change that kicked
    /// `vcpu`.
    pub fn flush(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        match self.vcpus.get(vcpu) {
            Some(cpu) if cpu.dirty => self.service(vcpu, lrs),
            _ => Kicks::NONE,
        }
    }

    /// Folds what the guest did since the last sync, and flushes. EL2 calls it on a maintenance interrupt and
    /// before it emulates an access to the distributor or a redistributor.
    pub fn sync(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let kicks = self.resample(vcpu, lrs);
        kicks.without(vcpu) | self.service(vcpu, lrs)
    }

    /// Clears the pending state of physical PPIs whose line has dropped before the guest acknowledged them: a
    /// guest that polls its timer sees the change.
    fn resample(&mut self, vcpu: usize, lrs: &impl ListRegisters) -> Kicks {
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return Kicks::NONE;
        };
        let (private, used) = (&mut cpu.private, cpu.used);
        let gone = bits(private.phys_pending & !private.edge & !private.resident)
            .filter(|&intid| !lrs.line(intid))
            .fold(0, |mask, intid| mask | 1 << intid);
        private.latch &= !gone;
        private.phys_pending &= !gone;
        for i in bits(used) {
            if let Some(state) = cpu.lr_states.get_mut(i as usize)
                && state.phys_pending
                && state.intid < 32
                && cpu.private.edge & 1 << state.intid == 0
                && !lrs.line(state.intid)
            {
                state.drop_pending = true;
            }
        }
        self.refresh_bank(vcpu, 0, gone)
    }

    /// Executes a trapped write of `intid` to `ICC_DIR_EL1` by `vcpu`.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = self.sync(vcpu, lrs);
        let (index, mask) = split(intid);
        if self.bank(vcpu, index).is_some_and(|bank| bank.active & mask != 0) {
            kicks |= self.clear_active(vcpu, index, mask);
            kicks |= self.flush(vcpu, lrs);
        }
        kicks.without(vcpu)
    }

    pub(super) fn service(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = Kicks::NONE;
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return kicks;
        };
        if cpu.evicted {
            kicks |= self.deactivate_by_eoi_count(vcpu, lrs);
        }
        let used = self.vcpus.get(vcpu).map_or(0, |cpu| cpu.used);
        for i in bits(used) {
            kicks |= self.reconcile(vcpu, i as usize, lrs);
        }
        kicks |= self.fill(vcpu, lrs);
        self.choose_maintenance(vcpu, lrs);
        for cpu in &mut self.vcpus {
            cpu.awaits = cpu.awaits.without(vcpu);
        }
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.dirty = false;
        }
        kicks.without(vcpu)
    }

    /// Deactivates as many active interrupts without a list register as the guest has ended (`EOIcount`).
    fn deactivate_by_eoi_count(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = Kicks::NONE;
        let ended = hcr::eoi_count(lrs.hcr());
        if ended == 0 {
            return kicks;
        }
        // Writing the register again clears the count.
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.hcr = 0;
        }
        if lrs.vmcr() & vmcr::VEOIM != 0 {
            return kicks;
        }
        for _ in 0..ended {
            let Some(rank) = self.best(vcpu, 0, |class| class == Class::Active) else {
                break;
            };
            let (index, mask) = split(rank.intid);
            kicks |= self.clear_active(vcpu, index, mask);
        }
        kicks
    }

    /// Folds one list register into the bank and rewrites it as the interrupt's state now demands.
    fn reconcile(&mut self, vcpu: usize, i: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let groups = self.groups;
        let Some(mut state) = self.vcpus.get(vcpu).and_then(|cpu| cpu.lr_states.get(i)).copied() else {
            return Kicks::NONE;
        };
        let intid = state.intid;
        let (index, mask) = split(intid);
        let here = self.target(vcpu, intid) == vcpu;
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        let lr = Lr(lrs.read(i));

        // What the guest did at the CPU interface: it deactivated the interrupt, ...
        if state.phys_active && !lr.active() || state.phys_pending && lr.inactive() {
            if !lr.hw() {
                lrs.deactivate(intid);
            }
            bank.phys_active &= !mask;
            (state.phys_active, state.phys_pending) = (false, false);
        }
        // ... or acknowledged it.
        state.phys_active |= state.phys_pending && !lr.pending();
        state.phys_pending &= lr.pending();
        state.latched &= lr.pending();

        // What the guest's writes to the GIC's registers ask for.
        if state.drop_pending && state.phys_pending || state.drop_active && state.phys_active {
            lrs.deactivate(intid);
            bank.phys_active &= !mask;
            (state.phys_active, state.phys_pending) = (false, false);
        }
        state.latched &= !state.drop_pending;
        let pending = lr.pending() && !state.drop_pending;
        let active = lr.active() && !state.drop_active || state.set_active;
        (state.drop_pending, state.drop_active, state.set_active) = (false, false, false);
        if lr.active() {
            bank.activate(intid % 32, lr.priority(), lr.group1());
        }
        bank.active = bank.active & !mask | if active { mask } else { 0 };
        if !pending && !active {
            return self.free(vcpu, i, lr, lrs);
        }

        // What happened to the interrupt meanwhile.
        let desired = desired_lr(bank, &mut state, groups, here);
        if let Some(entry) = self.vcpus.get_mut(vcpu).and_then(|cpu| cpu.lr_states.get_mut(i)) {
            *entry = state;
        }
        if desired.inactive() {
            self.unload(vcpu, i, lrs);
            return self.refresh(vcpu, intid);
        }
        if desired != lr {
            lrs.write(i, desired.0);
        }
        Kicks::NONE
    }

    /// Frees a list register whose interrupt is neither pending nor active any more.
    fn free(&mut self, vcpu: usize, i: usize, lr: Lr, lrs: &mut impl ListRegisters) -> Kicks {
        if !lr.inactive() || lr.eoi() {
            lrs.write(i, 0);
        }
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return Kicks::NONE;
        };
        cpu.used &= !(1 << i);
        let Some(intid) = cpu.lr_states.get(i).map(|state| state.intid) else {
            return Kicks::NONE;
        };
        let (index, mask) = split(intid);
        if let Some(bank) = self.bank_mut(vcpu, index) {
            bank.resident &= !mask;
            bank.active &= !mask;
        }
        self.set_home(intid, usize::from(NONE));
        self.refresh(vcpu, intid)
    }
}
