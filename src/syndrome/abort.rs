//! Instruction and data aborts from a lower exception level.

use super::access::{Access, Register, Width};

/// Fault status of an abort (DFSC and IFSC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Address size fault.
    AddressSize,
    /// Translation fault.
    Translation,
    /// Access flag fault.
    AccessFlag,
    /// Permission fault.
    Permission,
    /// Synchronous external abort on the access itself.
    External,
    /// Synchronous external abort on a table walk.
    ExternalOnWalk,
    /// Alignment fault.
    Alignment,
    /// TLB conflict.
    TlbConflict,
    /// Unsupported exclusive or atomic access.
    UnsupportedExclusive,
    /// Any other status code.
    Other(u8),
}

impl Fault {
    pub(super) const fn decode(fsc: u8) -> Self {
        match fsc {
            0x00..=0x03 | 0x29 => Self::AddressSize,
            0x04..=0x07 | 0x2b => Self::Translation,
            0x08..=0x0b => Self::AccessFlag,
            0x0c..=0x0f => Self::Permission,
            0x10 => Self::External,
            0x13..=0x17 => Self::ExternalOnWalk,
            0x21 => Self::Alignment,
            0x30 => Self::TlbConflict,
            0x35 => Self::UnsupportedExclusive,
            other => Self::Other(other),
        }
    }

    /// Returns whether HPFAR_EL2 holds the faulting IPA. The architecture leaves it unknown for a permission
    /// fault unless that came from a stage-1 table walk: then the address is found by `AT S1E1R`.
    const fn hpfar_valid(self, stage1_walk: bool) -> bool {
        match self {
            Self::AddressSize | Self::Translation | Self::AccessFlag => true,
            Self::Permission => stage1_walk,
            _ => false,
        }
    }
}

/// A data abort from a lower exception level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataAbort {
    /// The access, if the syndrome is valid: none for LDP and STP, writeback, exclusives, atomics, SIMD, DC
    /// ZVA, cache maintenance and stage-1 walks.
    pub access: Option<Access>,
    /// Whether it is a write (WnR).
    pub write: bool,
    /// What went wrong.
    pub fault: Fault,
    /// FAR_EL2 holds the address (FnV = 0).
    pub far_valid: bool,
    /// HPFAR_EL2 holds the page of the IPA.
    pub hpfar_valid: bool,
}

impl DataAbort {
    pub(super) const fn decode(iss: u64) -> Self {
        let stage1_walk = iss & (1 << 7) != 0;
        let cache_maintenance = iss & (1 << 8) != 0;
        let fault = Fault::decode((iss & 0x3f) as u8);
        let valid = iss & (1 << 24) != 0 && !stage1_walk && !cache_maintenance;
        Self {
            access: if valid {
                Some(Access {
                    width: Width::from_log2(iss >> 22),
                    register: Register::from_field(iss >> 16),
                    sign_extend: iss & (1 << 21) != 0,
                    sixty_four: iss & (1 << 15) != 0,
                    acquire_release: iss & (1 << 14) != 0,
                })
            } else {
                None
            },
            write: iss & (1 << 6) != 0,
            fault,
            far_valid: iss & (1 << 10) == 0,
            hpfar_valid: fault.hpfar_valid(stage1_walk),
        }
    }
}

/// An instruction abort from a lower exception level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InstructionAbort {
    /// HPFAR_EL2 holds the page of the IPA.
    pub hpfar_valid: bool,
}

impl InstructionAbort {
    pub(super) const fn decode(iss: u64) -> Self {
        let fault = Fault::decode((iss & 0x3f) as u8);
        Self {
            hpfar_valid: fault.hpfar_valid(iss & (1 << 7) != 0),
        }
    }
}
