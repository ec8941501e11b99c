//! The state of 32 interrupts, one bit each, as in the distributor's registers: bank 0 of each vCPU holds its
//! SGIs and PPIs, bank n the SPIs 32n to 32n+31.

/// Priorities have five bits, as in every GICv3 virtual CPU interface in use (`ICH_VTR_EL2.PRIbits`).
pub(super) const PRIORITY_MASK: u8 = 0xf8;

/// What an interrupt needs a list register for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// Idle.
    Nothing,
    /// To be delivered.
    Pending,
    /// To be deactivated by the guest.
    Active,
    /// Not needed: its physical interrupt must be deactivated, because the guest will not acknowledge it any
    /// more.
    Release,
}

/// 32 interrupts.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    /// Interrupts that exist; all other bits read as zero and ignore writes.
    pub implemented: u32,
    /// `IGROUPR`: set means group 1.
    pub group: u32,
    /// `ISENABLER`.
    pub enabled: u32,
    /// `ICFGR`: set means edge-triggered.
    pub edge: u32,
    /// The level of the input line.
    pub line: u32,
    /// Pending by an edge, an SGI, a write to `ISPENDR`, or a physical interrupt; cleared when the guest
    /// acknowledges.
    pub latch: u32,
    /// Active, as of the last sync of the list register.
    pub active: u32,
    /// The physical interrupt of this INTID is active on the guest's behalf: EL2 has acknowledged it, and it
    /// is not signalled again until the guest (list register with `HW`) or the virtual GIC
    /// (`ListRegisters::deactivate`) deactivates it.
    pub phys_active: u32,
    /// The latch stands for that physical interrupt; if clear, the active state does.
    pub phys_pending: u32,
    /// In a list register of its vCPU.
    pub resident: u32,
    /// `IPRIORITYR`.
    pub priority: [u8; 32],
    /// Of active interrupts, priority and group at the time of acknowledgement: the guest ends them under
    /// these.
    pub active_priority: [u8; 32],
    pub active_group: u32,
}

impl Bank {
    /// Returns a bank after reset: everything disabled, group 1 as firmware would have left it,
    /// level-triggered except for what `edge` names.
    pub fn new(implemented: u32, edge: u32) -> Self {
        Self {
            implemented,
            group: implemented,
            enabled: 0,
            edge,
            line: 0,
            latch: 0,
            active: 0,
            phys_active: 0,
            phys_pending: 0,
            resident: 0,
            priority: [0; 32],
            active_priority: [0; 32],
            active_group: 0,
        }
    }

    /// Resets the bank, except for the input lines, which belong to the devices, and for physical interrupts
    /// still active.
    pub fn reset(&mut self, edge: u32) {
        *self = Self {
            line: self.line,
            phys_active: self.phys_active,
            ..Self::new(self.implemented, edge)
        };
    }

    /// Returns the interrupts pending outside a list register.
    pub fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// Returns the interrupts whose group is enabled in `GICD_CTLR`; `groups` is its two enable bits.
    pub fn group_on(&self, groups: u32) -> u32 {
        let group0 = if groups & 1 != 0 { !self.group } else { 0 };
        let group1 = if groups & 2 != 0 { self.group } else { 0 };
        group0 | group1
    }

    /// Returns the interrupts that may be delivered if they are pending.
    pub fn deliverable(&self, groups: u32) -> u32 {
        self.enabled & self.group_on(groups)
    }

    /// Returns the interrupts that [`Self::want`] to be released.
    pub fn released(&self) -> u32 {
        self.phys_active & !self.phys_pending & !self.active
    }

    /// Returns what the interrupt at `mask` wants, if it is not in a list register.
    pub fn want(&self, mask: u32, groups: u32) -> Want {
        if self.active & mask != 0 {
            Want::Active
        } else if self.released() & mask != 0 {
            Want::Release
        } else if self.pending() & self.deliverable(groups) & mask != 0 {
            Want::Pending
        } else {
            Want::Nothing
        }
    }

    /// Returns the interrupts that [`Self::want`] a list register or to be released, if they are not in a
    /// list register.
    pub fn wanting(&self, groups: u32) -> u32 {
        self.active | self.released() | self.pending() & self.deliverable(groups)
    }

    /// Returns the interrupts whose place a change of group enables may change.
    pub fn in_use(&self) -> u32 {
        self.active | self.phys_active | self.pending() | self.resident
    }

    /// Returns the priority of the interrupt at position `bit`.
    pub fn priority(&self, bit: u32) -> u8 {
        self.priority.get(bit as usize).copied().unwrap_or(0xff)
    }

    /// Returns priority and group of the interrupt at position `bit`: while it is active, those of its
    /// acknowledgement.
    pub fn rank(&self, bit: u32) -> (u8, bool) {
        let mask = 1 << bit;
        if self.active & mask != 0 {
            let priority = self.active_priority.get(bit as usize).copied().unwrap_or(0xff);
            (priority, self.active_group & mask != 0)
        } else {
            (self.priority(bit), self.group & mask != 0)
        }
    }

    /// Makes the interrupt at position `bit` active, acknowledged with this priority and group.
    pub fn activate(&mut self, bit: u32, priority: u8, group1: bool) {
        let mask = 1 << bit;
        if let Some(place) = self.active_priority.get_mut(bit as usize) {
            *place = priority;
            self.active_group = self.active_group & !mask | if group1 { mask } else { 0 };
            self.active |= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bank, Want};

    #[test]
    fn a_level_is_pending_while_high_an_edge_when_latched() {
        let mut bank = Bank::new(u32::MAX, 0b10);
        bank.line = 0b11;
        assert_eq!(bank.pending(), 0b01);
        bank.latch = 0b10;
        assert_eq!(bank.pending(), 0b11);
    }

    #[test]
    fn wants() {
        let mut bank = Bank::new(u32::MAX, 0);
        bank.latch = 1;
        assert_eq!(bank.want(1, 2), Want::Nothing, "disabled");
        bank.enabled = 1;
        assert_eq!(bank.want(1, 1), Want::Nothing, "its group is disabled");
        assert_eq!(bank.want(1, 2), Want::Pending);
        bank.active = 1;
        assert_eq!(bank.want(1, 2), Want::Active);
        bank.phys_active = 2;
        assert_eq!(bank.want(2, 2), Want::Release);
        for groups in 0..4 {
            for bit in 0..4 {
                let wants = bank.want(1 << bit, groups) != Want::Nothing;
                assert_eq!(bank.wanting(groups) >> bit & 1 != 0, wants, "{groups} {bit}");
                assert!(!wants || bank.in_use() >> bit & 1 != 0, "{groups} {bit}");
            }
        }
    }
}
