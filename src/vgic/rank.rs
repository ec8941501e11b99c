//! The order in which interrupts get list registers.

use super::bank::Want;
use super::gic::Vgic;
use super::intid::bits;
use super::lr::vmcr;

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
    /// Returns the most urgent interrupt, of the classes that `of` accepts, that waits for a list register.
    pub(super) fn best(&self, vcpu: usize, vmcr: u64, mut of: impl FnMut(Class) -> bool) -> Option<Rank> {
        let cpu = self.vcpus.get(vcpu)?;
        let mut best: Option<Rank> = None;
        for index in bits(cpu.ready_banks).map(|index| index as usize) {
            let Some(bank) = self.bank(vcpu, index) else {
                continue;
            };
            for bit in bits(cpu.ready.get(index).copied().unwrap_or(0)) {
                let mask = 1 << bit;
                if bank.want(mask, self.groups) == Want::Release {
                    continue;
                }
                let (priority, group1) = bank.rank(bit);
                let class = class_of(bank.active & mask != 0, group1, vmcr);
                let rank = Rank {
                    class,
                    priority,
                    intid: index as u32 * 32 + bit,
                };
                if of(class) && best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                }
            }
        }
        best
    }
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
