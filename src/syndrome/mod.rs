//! ESR_EL2 decoded into a type: why a lower exception level trapped to EL2 (Arm ARM D24.2.40, "ESR_EL2").
//!
//! [`Syndrome::decode`] is total: a class without a variant of its own is [`Syndrome::Other`]. A
//! [`DataAbort`] carries an [`Access`] only if the syndrome is valid (ISV); without it the instruction is not
//! known, and EL2 never fetches guest memory to find out: it injects an external abort, with
//! [`external_abort_esr`] in ESR_EL1.

mod abort;
mod access;
mod class;
mod inject;
mod pstate;

pub use abort::{DataAbort, Fault, InstructionAbort};
pub use access::{Access, Register, Width};
pub use inject::{UNDEFINED_ESR, external_abort_esr, synchronous_vector};
pub use pstate::{ExceptionControls, exception_pstate, spsr_after_instruction};

use crate::cpu_state::id::index;
use class::IL;

/// The encoding of a system register or system instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SysReg {
    /// op0.
    pub op0: u8,
    /// op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// op2.
    pub op2: u8,
}

impl SysReg {
    /// Returns `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self {
            op0,
            op1,
            crn,
            crm,
            op2,
        }
    }

    /// Returns whether it is a `TLBI` of the EL1&0 regime (Arm ARM C5.5); CRn 9 are those with FEAT_XS's nXS
    /// qualifier.
    pub const fn is_tlbi_el1(self) -> bool {
        self.op0 == 1 && self.op1 == 0 && matches!(self.crn, 8 | 9)
    }

    /// Returns the position ([`crate::cpu_state::id::index`]) if it is an identification register that
    /// HCR_EL2.TID3 traps.
    #[must_use]
    pub const fn id_register(self) -> Option<usize> {
        if self.op0 == 3 && self.op1 == 0 && self.crn == 0 && self.crm >= 1 && self.crm <= 7 {
            return Some(index(self.crm as usize, self.op2 as usize));
        }
        None
    }

    /// Returns whether the register or instruction is IMPLEMENTATION DEFINED (Arm ARM, HCR_EL2.TIDCP).
    pub const fn is_implementation_defined(self) -> bool {
        self.op0 & 1 != 0 && matches!(self.crn, 11 | 15)
    }
}

/// A trapped MSR, MRS or SYS in AArch64 state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysAccess {
    /// The register or instruction.
    pub reg: SysReg,
    /// Register read or written.
    pub register: Register,
    /// MRS or SYSL: the register is written by the instruction.
    pub read: bool,
}

impl SysAccess {
    const fn decode(iss: u64) -> Self {
        Self {
            reg: SysReg::new(
                (iss >> 20 & 3) as u8,
                (iss >> 14 & 7) as u8,
                (iss >> 10 & 15) as u8,
                (iss >> 1 & 15) as u8,
                (iss >> 17 & 7) as u8,
            ),
            register: Register::from_field(iss >> 5),
            read: iss & 1 != 0,
        }
    }
}

/// Which instruction of the WFI family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wfx {
    /// WFI.
    Wfi,
    /// WFE.
    Wfe,
    /// WFIT: with a time-out.
    Wfit,
    /// WFET: with a time-out.
    Wfet,
}

/// Why a lower exception level trapped to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syndrome {
    /// EC 0: an undefined or otherwise unexplained instruction.
    Unknown,
    /// WFI and its like.
    Wfx(Wfx),
    /// HVC from AArch64 with its immediate. ELR_EL2 is behind the instruction.
    Hvc(u16),
    /// SMC from AArch64 with its immediate. ELR_EL2 is *on* the instruction.
    Smc(u16),
    /// MSR, MRS or SYS.
    Sys(SysAccess),
    /// Instruction abort.
    InstructionAbort(InstructionAbort),
    /// Data abort.
    DataAbort(DataAbort),
    /// Any other class with its instruction-specific syndrome.
    Other {
        /// Exception class.
        class: u8,
        /// ISS, bits 24 to 0.
        iss: u32,
    },
}

impl Syndrome {
    /// Decodes ESR_EL2 of an exception from a lower exception level.
    pub const fn decode(esr: u64) -> Self {
        let ec = (esr >> 26 & 0x3f) as u8;
        let iss = esr & 0x1ff_ffff;
        match ec {
            class::UNKNOWN => Self::Unknown,
            class::WFX => Self::Wfx(match iss & 3 {
                0 => Wfx::Wfi,
                1 => Wfx::Wfe,
                2 => Wfx::Wfit,
                _ => Wfx::Wfet,
            }),
            class::HVC64 => Self::Hvc(iss as u16),
            class::SMC64 => Self::Smc(iss as u16),
            class::SYS64 => Self::Sys(SysAccess::decode(iss)),
            class::INSTRUCTION_ABORT_LOWER => Self::InstructionAbort(InstructionAbort::decode(iss)),
            class::DATA_ABORT_LOWER => Self::DataAbort(DataAbort::decode(iss)),
            _ => Self::Other {
                class: ec,
                iss: iss as u32,
            },
        }
    }
}

/// Returns the bytes of the instruction that trapped: 4, or 2 for a short Thumb instruction (IL).
pub const fn instruction_length(esr: u64) -> u64 {
    if esr & IL != 0 { 4 } else { 2 }
}

#[cfg(test)]
mod tests;
