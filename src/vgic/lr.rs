//! The list registers of one virtual CPU interface: the value of an `ICH_LR<n>_EL2` as a type, the bits of
//! `ICH_HCR_EL2` and `ICH_VMCR_EL2` the virtual GIC uses, and the trait through which it accesses them.
//!
//! Names and layouts are those of the GICv3 architecture specification (Arm IHI 0069), chapter "System
//! register descriptions". Neighbours: `flush` uses the trait; `fake` (tests) models the hardware behind it.

/// Most list registers the architecture allows in one virtual CPU interface.
pub const MAX_LIST_REGISTERS: usize = 16;

/// The bits of `ICH_HCR_EL2` the virtual GIC sets or reads.
pub mod hcr {
    /// Virtual CPU interface enabled.
    pub const EN: u64 = 1 << 0;
    /// Maintenance interrupt when at most one list register is valid.
    pub const UIE: u64 = 1 << 1;
    /// Maintenance interrupt while `EOIcount` is not zero.
    pub const LRENPIE: u64 = 1 << 2;
    /// Maintenance interrupt while no list register is in the pending state.
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance interrupt while the guest has group 0 enabled (`EIE`).
    pub const VGRP0_EIE: u64 = 1 << 4;
    /// Maintenance interrupt while the guest has group 0 disabled (`DIE`).
    pub const VGRP0_DIE: u64 = 1 << 5;
    /// Maintenance interrupt while the guest has group 1 enabled.
    pub const VGRP1_EIE: u64 = 1 << 6;
    /// Maintenance interrupt while the guest has group 1 disabled.
    pub const VGRP1_DIE: u64 = 1 << 7;
    /// Writes of `ICC_DIR_EL1` trap to EL2.
    pub const TDIR: u64 = 1 << 14;
    /// Position of `EOIcount`: EOIs for which no list register was found.
    pub const EOI_COUNT_SHIFT: u32 = 27;

    /// Returns the `EOIcount` field of a value read from `ICH_HCR_EL2`.
    pub const fn eoi_count(value: u64) -> u32 {
        (value >> EOI_COUNT_SHIFT) as u32 & 0x1f
    }
}

/// The bits of `ICH_VMCR_EL2` the virtual GIC reads: the guest's settings of its CPU interface.
pub mod vmcr {
    /// The guest's `ICC_IGRPEN0_EL1.Enable`.
    pub const VENG0: u64 = 1 << 0;
    /// The guest's `ICC_IGRPEN1_EL1.Enable`.
    pub const VENG1: u64 = 1 << 1;
    /// The guest's `ICC_CTLR_EL1.EOImode`: EOI drops the priority only, `ICC_DIR_EL1` deactivates.
    pub const VEOIM: u64 = 1 << 9;
}

const PINTID_SHIFT: u32 = 32;
const PINTID_MASK: u64 = 0x1fff;
const EOI: u64 = 1 << 41;
const PRIORITY_SHIFT: u32 = 48;
const GROUP: u64 = 1 << 60;
const HW: u64 = 1 << 61;
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;

/// The value of one `ICH_LR<n>_EL2`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Lr(pub u64);

impl Lr {
    /// An unused list register.
    pub const EMPTY: Self = Self(0);

    /// Returns a list register for `intid`, neither pending nor active.
    pub const fn new(intid: u32, priority: u8, group1: bool) -> Self {
        let group = if group1 { GROUP } else { 0 };
        Self(intid as u64 | (priority as u64) << PRIORITY_SHIFT | group)
    }

    /// Sets the pending bit of the state.
    pub const fn with_pending(self, pending: bool) -> Self {
        Self(if pending {
            self.0 | PENDING
        } else {
            self.0 & !PENDING
        })
    }

    /// Sets the active bit of the state.
    pub const fn with_active(self, active: bool) -> Self {
        Self(if active { self.0 | ACTIVE } else { self.0 & !ACTIVE })
    }

    /// Ties the interrupt to the physical interrupt `pintid`, which the guest's deactivation then
    /// deactivates.
    pub const fn with_hw(self, pintid: u32) -> Self {
        let field = (pintid as u64 & PINTID_MASK) << PINTID_SHIFT;
        Self(self.0 & !(PINTID_MASK << PINTID_SHIFT) | field | HW)
    }

    /// Requests a maintenance interrupt when the guest ends the interrupt. Only without [`Lr::with_hw`],
    /// whose physical INTID uses the same bit.
    pub const fn with_eoi(self, eoi: bool) -> Self {
        Self(if eoi { self.0 | EOI } else { self.0 & !EOI })
    }

    /// `vINTID`: the number the guest sees.
    pub const fn intid(self) -> u32 {
        self.0 as u32
    }

    /// `pINTID`, if the interrupt is tied to a physical one.
    pub const fn pintid(self) -> Option<u32> {
        if self.hw() {
            Some(((self.0 >> PINTID_SHIFT) & PINTID_MASK) as u32)
        } else {
            None
        }
    }

    /// `Priority`: lower is more urgent.
    pub const fn priority(self) -> u8 {
        (self.0 >> PRIORITY_SHIFT) as u8
    }

    /// Whether the interrupt is of group 1 (IRQ), not 0 (FIQ).
    pub const fn group1(self) -> bool {
        self.0 & GROUP != 0
    }

    /// `HW`: deactivation also deactivates the physical interrupt.
    pub const fn hw(self) -> bool {
        self.0 & HW != 0
    }

    /// `EOI`: a maintenance interrupt was requested.
    pub const fn eoi(self) -> bool {
        !self.hw() && self.0 & EOI != 0
    }

    /// The pending bit of the state.
    pub const fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    /// The active bit of the state.
    pub const fn active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    /// Returns whether the state is invalid: neither pending nor active.
    pub const fn inactive(self) -> bool {
        self.0 & (PENDING | ACTIVE) == 0
    }
}

impl core::fmt::Debug for Lr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let state = match (self.active(), self.pending()) {
            (false, false) => "-",
            (false, true) => "P",
            (true, false) => "A",
            (true, true) => "AP",
        };
        write!(f, "Lr({} {state} prio {:#x}", self.intid(), self.priority())?;
        if let Some(pintid) = self.pintid() {
            write!(f, " hw {pintid}")?;
        }
        if self.eoi() {
            write!(f, " eoi")?;
        }
        write!(f, " grp{})", u8::from(self.group1()))
    }
}

/// The virtual CPU interface control of **this** physical CPU, as EL2 accesses it.
///
/// The list registers stay loaded while the guest runs: nothing is saved or restored at an exit. The guest
/// does not run while any of these methods does, so the values do not change.
pub trait ListRegisters {
    /// Returns the number of list registers (`ICH_VTR_EL2.ListRegs` + 1).
    fn count(&self) -> usize;
    /// Reads `ICH_LR<index>_EL2`. `index` is less than [`ListRegisters::count`].
    fn read(&self, index: usize) -> u64;
    /// Writes `ICH_LR<index>_EL2`. `index` is less than [`ListRegisters::count`].
    fn write(&mut self, index: usize, value: u64);
    /// Reads `ICH_HCR_EL2`.
    fn hcr(&self) -> u64;
    /// Writes `ICH_HCR_EL2`: `value` has [`hcr::EN`] and what else the virtual GIC needs, or is 0 when the
    /// vCPU is parked; the implementation adds trap bits of its own. `EOIcount` is written as zero.
    fn set_hcr(&mut self, value: u64);
    /// Reads `ICH_VMCR_EL2`.
    fn vmcr(&self) -> u64;
    /// Deactivates the physical interrupt `intid` (`ICC_DIR_EL1` with the physical `EOImode` 1): an SPI, or a
    /// PPI of this CPU.
    fn deactivate(&mut self, intid: u32);
    /// Returns whether the line of the physical PPI `intid` of this CPU is high. `GICR_ISPENDR0` shows that
    /// even while the interrupt is active. Called only when the guest reads its GIC's registers.
    fn line(&self, intid: u32) -> bool {
        let _ = intid;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Lr, hcr};

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let lr = Lr::new(27, 0xa0, true).with_hw(30).with_pending(true);
        assert_eq!(lr.0, 27 | 30 << 32 | 0xa0 << 48 | 1 << 60 | 1 << 61 | 1 << 62);
        assert_eq!((lr.intid(), lr.pintid(), lr.priority()), (27, Some(30), 0xa0));
        assert!(lr.group1() && lr.hw() && lr.pending() && !lr.active() && !lr.eoi());

        let lr = Lr::new(40, 8, false).with_active(true).with_eoi(true);
        assert_eq!(lr.0, 40 | 1 << 41 | 8 << 48 | 1 << 63);
        assert!(lr.eoi() && lr.active() && !lr.inactive() && lr.pintid().is_none());
        assert!(lr.with_active(false).inactive());
    }

    #[test]
    fn the_eoi_bit_is_part_of_a_physical_number() {
        // pINTID 0x200 sets bit 41; that is not an EOI request.
        assert!(!Lr::new(40, 0, true).with_hw(0x200).eoi());
    }

    #[test]
    fn eoi_count_is_the_top_of_hcr() {
        assert_eq!(hcr::eoi_count(3 << 27 | hcr::EN), 3);
    }
}
