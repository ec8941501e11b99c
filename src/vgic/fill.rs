//! Allocates list registers in the order of [`Rank`], and chooses the maintenance interrupts that report
//! when another interrupt needs one.
//!
//! **No starvation.** While an interrupt that could be delivered has no list register, at least one list
//! register is in the pending state and none of those is less urgent (`fill` evicts, if need be even an
//! active interrupt), and `NPIE` requests a maintenance interrupt when the last pending one has been
//! acknowledged. Until then nothing less urgent than the waiting ones can be acknowledged, so their order is
//! exact (`withhold` maintains this).
//!
//! **Active interrupts without a list register** (evicted, or made active by a write to `ISACTIVER`): with
//! `EOImode` 0 the guest ends them in the order of their priorities, which `EOIcount` and `LRENPIE` report;
//! with `EOImode` 1 the write to `ICC_DIR_EL1` is trapped (`TDIR`) and EL2 calls [`Vgic::deactivate`].

use super::bank::Want;
use super::gic::Vgic;
use super::intid::{bits, split};
use super::kicks::Kicks;
use super::lr::{ListRegisters, Lr, MAX_LIST_REGISTERS, hcr, vmcr};
use super::lr_state::return_pending;

/// The bits of `ICH_HCR_EL2` that [`ListRegisters::set_hcr`] is called with; an implementation owns all
/// others.
pub const HCR_OWNED: u64 = hcr::EN
    | hcr::UIE
    | hcr::LRENPIE
    | hcr::NPIE
    | hcr::VGRP0_EIE
    | hcr::VGRP0_DIE
    | hcr::VGRP1_EIE
    | hcr::VGRP1_DIE
    | hcr::TDIR;

impl Vgic {
    /// Fills list registers, the most urgent first.
    pub(super) fn fill(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = self.deactivate_unwanted(vcpu, lrs);
        let Some(cpu) = self.vcpus.get(vcpu).filter(|cpu| cpu.ready_banks != 0) else {
            return kicks;
        };
        let count = lrs.count().min(MAX_LIST_REGISTERS);
        let all = ((1u64 << count) - 1) as u32;
        // If all waiting interrupts fit, their ranks do not matter.
        let waiting: u32 = bits(cpu.ready_banks)
            .filter_map(|index| cpu.ready.get(index as usize))
            .map(|word| word.count_ones())
            .sum();
        let room = (all & !cpu.used).count_ones() >= waiting;
        let vmcr = if room { 0 } else { lrs.vmcr() };
        while let Some(rank) = self.best(vcpu, vmcr, |_| true) {
            let Some(cpu) = self.vcpus.get(vcpu) else { break };
            let free = (all & !cpu.used).trailing_zeros() as usize;
            let i = if free < count {
                free
            } else if let Some(victim) = self.victim(vcpu, rank, vmcr, lrs) {
                if let Some(intid) = self.unload(vcpu, victim, lrs) {
                    kicks |= self.refresh(vcpu, intid);
                }
                victim
            } else {
                break;
            };
            self.load(vcpu, i, rank.intid, lrs);
        }
        kicks
    }

    /// Deactivates physical interrupts that the guest will not acknowledge any more.
    fn deactivate_unwanted(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        let mut kicks = Kicks::NONE;
        let groups = self.groups;
        let Some(banks) = self.vcpus.get(vcpu).map(|cpu| cpu.ready_banks) else {
            return kicks;
        };
        for index in bits(banks).map(|index| index as usize) {
            let Some(ready) = self.vcpus.get(vcpu).and_then(|cpu| cpu.ready.get(index)).copied() else {
                break;
            };
            let Some(live) = self.bank(vcpu, index).map(|bank| bank.phys_active & ready) else {
                break;
            };
            for bit in bits(live) {
                let Some(bank) = self.bank_mut(vcpu, index) else {
                    break;
                };
                if bank.want(1 << bit, groups) == Want::Release {
                    bank.phys_active &= !(1 << bit);
                    let intid = index as u32 * 32 + bit;
                    lrs.deactivate(intid);
                    kicks |= self.refresh(vcpu, intid);
                }
            }
        }
        kicks
    }

    /// Returns the list register to evict for an interrupt of rank `rank` when all are in use.
    fn victim(&self, vcpu: usize, rank: Rank, vmcr: u64, lrs: &impl ListRegisters) -> Option<usize> {
        let cpu = self.vcpus.get(vcpu)?;
        let mut worst: Option<(Rank, usize)> = None;
        let mut worst_active: Option<(Rank, usize)> = None;
        let mut has_pending = false;
        for i in bits(cpu.used).map(|i| i as usize) {
            let lr = Lr(lrs.read(i));
            let this = rank_of(lr, lr.active(), vmcr);
            let entry = if lr.active() {
                &mut worst_active
            } else {
                &mut worst
            };
            if entry.is_none_or(|(rank, _)| this > rank) {
                *entry = Some((this, i));
            }
            has_pending |= this.class == Class::Pending;
        }
        match worst {
            Some((other, i)) if other > rank => Some(i),
            // None is pending that the guest could acknowledge: an active one is evicted.
            _ if rank.class == Class::Pending && !has_pending => worst_active.map(|(_, i)| i),
            _ => None,
        }
    }

    /// Sets `ICH_HCR_EL2` for the interrupts that have no list register.
    pub(super) fn choose_maintenance(&mut self, vcpu: usize, lrs: &mut impl ListRegisters) {
        let (mut vmcr, mut pending, mut masked, mut active) = (0, None, false, false);
        if self.vcpus.get(vcpu).is_some_and(|cpu| cpu.ready_banks != 0) {
            vmcr = lrs.vmcr();
            pending = self.best(vcpu, vmcr, |class| {
                masked |= class == Class::Masked;
                active |= class == Class::Active;
                class == Class::Pending
            });
        }
        if let Some(rank) = pending {
            self.withhold(vcpu, rank, vmcr, lrs);
        }
        let mut value = hcr::EN;
        if pending.is_some() {
            value |= hcr::NPIE;
        }
        if pending.is_some() || masked {
            // The ranks change when the guest enables or disables a group.
            value |= if vmcr & vmcr::VENG0 != 0 {
                hcr::VGRP0_DIE
            } else {
                hcr::VGRP0_EIE
            };
            value |= if vmcr & vmcr::VENG1 != 0 {
                hcr::VGRP1_DIE
            } else {
                hcr::VGRP1_EIE
            };
        }
        if active {
            value |= hcr::LRENPIE | hcr::TDIR;
        }
        let Some(cpu) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        cpu.evicted = active;
        if cpu.hcr != value {
            cpu.hcr = value;
            lrs.set_hcr(value);
        }
    }

    /// Withholds the pending state of active-and-pending list registers that are less urgent than `rank`.
    /// Such a list register would become pending when the guest deactivates it, without a maintenance
    /// interrupt, ahead of the interrupt that waits. So it is made active only, with a maintenance interrupt
    /// at its deactivation.
    fn withhold(&mut self, vcpu: usize, rank: Rank, vmcr: u64, lrs: &mut impl ListRegisters) {
        let used = self.vcpus.get(vcpu).map_or(0, |cpu| cpu.used);
        for i in bits(used).map(|i| i as usize) {
            let lr = Lr(lrs.read(i));
            if !(lr.active() && lr.pending()) || rank_of(lr, false, vmcr) < rank {
                continue;
            }
            lrs.write(i, lr.with_pending(false).with_eoi(true).0);
            let Some(mut state) = self.vcpus.get(vcpu).and_then(|cpu| cpu.lr_states.get(i)).copied() else {
                break;
            };
            let Some(bank) = self.bank_mut(vcpu, split(lr.intid()).0) else {
                break;
            };
            return_pending(bank, &mut state);
            if let Some(entry) = self.vcpus.get_mut(vcpu).and_then(|cpu| cpu.lr_states.get_mut(i)) {
                *entry = state;
            }
        }
    }
}

/// Returns the rank of what a list register holds, as an active interrupt or as a pending one.
fn rank_of(lr: Lr, active: bool, vmcr: u64) -> Rank {
    Rank {
        class: class_of(active, lr.group1(), vmcr),
        priority: lr.priority(),
        intid: lr.intid(),
    }
}

/// The rank of an interrupt that waits for a list register: smaller is more urgent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank {
    pub class: Class,
    pub priority: u8,
    pub intid: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    /// The guest can acknowledge it now, priorities allowing.
    Pending,
    /// Active: the guest will deactivate it.
    Active,
    /// Pending, but the guest has disabled its group at the CPU interface.
    Masked,
}

impl Vgic {
    /// Returns the most urgent interrupt, of the classes that `of` accepts, that waits for a list register. A
    /// guest may have any number of them wait: they are sorted into classes a bank at a time.
    pub(super) fn best(&self, vcpu: usize, vmcr: u64, mut of: impl FnMut(Class) -> bool) -> Option<Rank> {
        let cpu = self.vcpus.get(vcpu)?;
        let mut best: Option<Rank> = None;
        for index in bits(cpu.ready_banks).map(|index| index as usize) {
            let Some(bank) = self.bank(vcpu, index) else {
                continue;
            };
            let ready = cpu.ready.get(index).copied().unwrap_or(0) & !bank.released();
            let active = ready & bank.active;
            let enabled = bank.group_on(enabled_groups(vmcr));
            let classes = [
                (Class::Pending, ready & !active & enabled, &bank.priority),
                (Class::Active, active, &bank.active_priority),
                (Class::Masked, ready & !active & !enabled, &bank.priority),
            ];
            for (class, mask, priorities) in classes {
                if mask == 0 || !of(class) {
                    continue;
                }
                for (bit, priority) in
                    bits(mask).filter_map(|bit| Some((bit, *priorities.get(bit as usize)?)))
                {
                    // Of equal ones the first is found first.
                    if best.is_none_or(|best| (class, priority) < (best.class, best.priority)) {
                        let intid = index as u32 * 32 + bit;
                        best = Some(Rank {
                            class,
                            priority,
                            intid,
                        });
                    }
                }
            }
        }
        best
    }
}

/// Returns the groups that the guest has enabled at the CPU interface, as the two bits of `GICD_CTLR`.
fn enabled_groups(vmcr: u64) -> u32 {
    u32::from(vmcr & vmcr::VENG0 != 0) | u32::from(vmcr & vmcr::VENG1 != 0) << 1
}

pub(super) fn class_of(active: bool, group1: bool, vmcr: u64) -> Class {
    let enable = if group1 { vmcr::VENG1 } else { vmcr::VENG0 };
    if active {
        Class::Active
    } else if vmcr & enable != 0 {
        Class::Pending
    } else {
        Class::Masked
    }
}
