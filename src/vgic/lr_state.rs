//! One list register: loading an interrupt, unloading it, and the value it should have.

use super::bank::Bank;
use super::gic::Vgic;
use super::intid::{bits, split};
use super::kicks::Kicks;
use super::lr::{ListRegisters, Lr};
use super::state::{LrState, NONE, VCpu};

impl Vgic {
    /// Loads `intid` into the free list register `i`.
    pub(super) fn load(&mut self, vcpu: usize, i: usize, intid: u32, lrs: &mut impl ListRegisters) {
        let (index, mask) = split(intid);
        let groups = self.groups;
        let here = self.target(vcpu, intid) == vcpu;
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return;
        };
        let active = bank.active & mask != 0;
        let phys_active = active && bank.phys_active & !bank.phys_pending & mask != 0;
        let mut state = LrState {
            intid,
            phys_active,
            ..LrState::default()
        };
        bank.resident |= mask;
        let lr = desired_lr(bank, &mut state, groups, here);
        lrs.write(i, lr.0);
        self.set_home(intid, vcpu);
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.remove_ready(index, mask);
            cpu.used |= 1 << i;
            if let Some(entry) = cpu.lr_states.get_mut(i) {
                *entry = state;
            }
        }
    }

    /// Unloads an interrupt, which has just been reconciled, from its list register: its state returns to the
    /// bank. The caller refreshes it. An active one keeps this vCPU as its home.
    pub(super) fn unload(&mut self, vcpu: usize, i: usize, lrs: &mut impl ListRegisters) -> Option<u32> {
        lrs.write(i, 0);
        let cpu = self.vcpus.get_mut(vcpu)?;
        cpu.used &= !(1 << i);
        let mut state = *cpu.lr_states.get(i)?;
        let (index, mask) = split(state.intid);
        let bank = self.bank_mut(vcpu, index)?;
        bank.resident &= !mask;
        return_pending(bank, &mut state);
        if bank.active & mask == 0 {
            self.set_home(state.intid, usize::from(NONE));
        } else if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.insert_ready(index, mask);
        }
        Some(state.intid)
    }

    /// Clears the active state of the interrupts of a bank in `mask`.
    pub(super) fn clear_active(&mut self, vcpu: usize, index: usize, mask: u32) -> Kicks {
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        bank.active &= !mask;
        let resident = bank.resident & mask;
        for bit in bits(resident) {
            if let Some(state) = self.resident_state(vcpu, index as u32 * 32 + bit) {
                state.drop_active = true;
                state.set_active = false;
            }
        }
        self.refresh_bank(vcpu, index, mask)
    }

    /// Returns the list register state of a resident interrupt, on any vCPU.
    pub(super) fn resident_state(&mut self, vcpu: usize, intid: u32) -> Option<&mut LrState> {
        let home = self.home(vcpu, intid);
        self.vcpus
            .get_mut(home)
            .and_then(|cpu: &mut VCpu| cpu.lr_state_of(intid))
    }
}

/// Returns the list register value for the interrupt of `state`: active as in the bank, and what became
/// pending outside. Moves the latch between bank and `state` accordingly. An inactive value means that
/// the interrupt needs no list register. `here`: the interrupt, when pending, goes to this vCPU.
pub(super) fn desired_lr(bank: &mut Bank, state: &mut LrState, groups: u32, here: bool) -> Lr {
    let (_, mask) = split(state.intid);
    let active = bank.active & mask != 0;
    let level = bank.line & !bank.edge & mask != 0;
    let wanted = (state.latched || level || bank.latch & mask != 0) && bank.deliverable(groups) & mask != 0;
    let (priority, group1) = bank.rank(state.intid % 32);
    let rank_changed = (priority, group1) != (bank.priority(state.intid % 32), bank.group & mask != 0);
    // While the active state is physical, or of another rank, its end must be observed before the next can be
    // delivered.
    let pending = wanted && here && !(active && state.phys_active || rank_changed);
    if pending && bank.latch & mask != 0 {
        state.latched = true;
        state.phys_pending |= bank.phys_pending & mask != 0;
        bank.latch &= !mask;
        bank.phys_pending &= !mask;
    } else if !pending {
        return_pending(bank, state);
    }
    let lr = Lr::new(state.intid, priority, group1)
        .with_pending(pending)
        .with_active(active);
    let later = active && wanted && !pending;
    let live = state.phys_pending || state.phys_active;
    if live && !later && !(pending && active) {
        lr.with_hw(state.intid)
    } else {
        lr.with_eoi(pending && level || later || live)
    }
}

/// Returns the pending state of a list register to the bank's latch.
pub(super) fn return_pending(bank: &mut Bank, state: &mut LrState) {
    let (_, mask) = split(state.intid);
    if core::mem::take(&mut state.latched) {
        bank.latch |= mask;
    }
    if core::mem::take(&mut state.phys_pending) {
        bank.phys_pending |= mask;
    }
}
