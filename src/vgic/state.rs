//! Plain state of a virtual GIC beside the banks: per vCPU, per list register, per SPI.

use super::access::Access;
use super::bank::Bank;
use super::intid::bits;
use super::kicks::Kicks;
use super::lr::MAX_LIST_REGISTERS;

/// No vCPU.
pub(super) const NONE: u8 = u8::MAX;

/// One list register in use.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LrState {
    pub(super) intid: u32,
    /// The list register carries a pending state that came from the latch.
    pub(super) latched: bool,
    /// That pending state is a physical interrupt.
    pub(super) phys_pending: bool,
    /// The active state of the list register stands for the physical interrupt: when it ends, that is
    /// deactivated, by the hardware (`HW`) or by EL2.
    pub(super) phys_active: bool,
    /// The guest cleared the pending state since the last sync.
    pub(super) drop_pending: bool,
    /// The guest cleared the active state since the last sync.
    pub(super) drop_active: bool,
    /// The guest set the active state since the last sync.
    pub(super) set_active: bool,
}

/// The state of one vCPU.
#[derive(Debug)]
pub(super) struct VCpu {
    /// Aff3.Aff2.Aff1.Aff0, one byte each.
    pub(super) affinity: u32,
    /// Has a physical CPU to run on, so it can be kicked.
    pub(super) online: bool,
    /// SGIs and PPIs.
    pub(super) private: Bank,
    /// Interrupts that want a list register, by bank.
    pub(super) ready: [u32; 32],
    /// The banks whose word of `ready` is not zero.
    pub(super) ready_banks: u32,
    pub(super) lr_states: [LrState; MAX_LIST_REGISTERS],
    /// Bit mask of the list registers in use.
    pub(super) used: u32,
    /// Something changed since the last flush.
    pub(super) dirty: bool,
    /// Active interrupts are without a list register: the guest may deactivate one of them.
    pub(super) evicted: bool,
    /// Value last written to `ICH_HCR_EL2`; 0 before the first write.
    pub(super) hcr: u64,
    /// `GICR_WAKER.ProcessorSleep`.
    pub(super) asleep: bool,
    /// The register read this vCPU is retrying, see `Vgic::await_dist_read`, and the vCPUs that must sync
    /// before it can complete.
    pub(super) reading: Option<Access>,
    pub(super) awaits: Kicks,
}

impl VCpu {
    /// Adds the interrupts of a bank in `mask` to the ready set.
    pub(super) fn insert_ready(&mut self, bank: usize, mask: u32) {
        if let Some(word) = self.ready.get_mut(bank) {
            *word |= mask;
            self.ready_banks |= 1 << bank;
        }
    }

    /// Makes `mask` the interrupts of a bank in the ready set.
    pub(super) fn set_ready(&mut self, bank: usize, mask: u32) {
        self.remove_ready(bank, !mask);
        if mask != 0 {
            self.insert_ready(bank, mask);
        }
    }

    /// Removes the interrupts of a bank in `mask` from the ready set.
    pub(super) fn remove_ready(&mut self, bank: usize, mask: u32) {
        if let Some(word) = self.ready.get_mut(bank) {
            *word &= !mask;
            if *word == 0 {
                self.ready_banks &= !(1 << bank);
            }
        }
    }

    /// Returns the index of the list register that holds `intid`.
    pub(super) fn lr_index(&self, intid: u32) -> Option<usize> {
        bits(self.used)
            .map(|i| i as usize)
            .find(|&i| self.lr_states.get(i).is_some_and(|state| state.intid == intid))
    }

    pub(super) fn lr_state_of(&mut self, intid: u32) -> Option<&mut LrState> {
        let index = self.lr_index(intid)?;
        self.lr_states.get_mut(index)
    }
}

/// The route of an SPI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// `GICD_IROUTER<n>` as written.
    pub(super) router: u64,
    /// The vCPU that `router` resolves to, or `NONE`.
    pub(super) target: u8,
    /// The vCPU in whose `ready` set or list registers it is, or `NONE`.
    pub(super) home: u8,
}
