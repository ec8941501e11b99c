//! ESR_EL2 decoded into a type: why a lower exception level came to EL2 (Arm ARM D24.2.40, "ESR_EL2").
//!
//! [`Syndrome::decode`] is total: what has no variant of its own is [`Syndrome::Other`]. A [`DataAbort`] carries
//! an [`Access`] only if the hardware says that the syndrome is valid (ISV); without it the instruction is not
//! known, and EL2 never fetches guest memory to find out: the access is answered with an external abort, whose
//! ESR_EL1 [`external_abort_esr`] makes. Users: `src/el2` for every trap.

/// Exception class, bits [31:26].
mod class {
    pub const UNKNOWN: u8 = 0x00;
    pub const WFX: u8 = 0x01;
    pub const FP: u8 = 0x07;
    pub const HVC32: u8 = 0x12;
    pub const SMC32: u8 = 0x13;
    pub const HVC64: u8 = 0x16;
    pub const SMC64: u8 = 0x17;
    pub const SYS64: u8 = 0x18;
    pub const SVE: u8 = 0x19;
    pub const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
    pub const INSTRUCTION_ABORT_CURRENT: u8 = 0x21;
    pub const DATA_ABORT_LOWER: u8 = 0x24;
    pub const DATA_ABORT_CURRENT: u8 = 0x25;
}

/// IL: the instruction is 32 bits long.
const IL: u64 = 1 << 25;

/// Bytes moved by one access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// All widths, the narrowest first.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// From the SAS field: log2 of the bytes; only the two low bits are looked at.
    #[must_use]
    pub const fn from_log2(log2: u64) -> Self {
        match log2 & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// All ones in the bits that are moved.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }

    /// Sign-extends the low bits of `value` to 64.
    #[must_use]
    const fn sign_extend(self, value: u64) -> u64 {
        let shift = 64 - 8 * self.bytes();
        (((value << shift) as i64) >> shift) as u64
    }
}

/// A general-purpose register as an instruction names it; 31 is the zero register in every syndrome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(u8);

impl Register {
    /// The register in the five low bits of `field`.
    #[must_use]
    pub const fn from_field(field: u64) -> Self {
        Self((field & 31) as u8)
    }

    /// Its number 0 to 30, or `None` for the zero register: reads give 0, writes are lost.
    #[must_use]
    pub const fn index(self) -> Option<usize> {
        if self.0 < 31 { Some(self.0 as usize) } else { None }
    }
}

/// What a load or store with a valid syndrome does (ISS with ISV = 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Bytes moved (SAS).
    pub width: Width,
    /// Register loaded or stored (SRT).
    pub register: Register,
    /// The load sign-extends (SSE).
    pub sign_extend: bool,
    /// The register is 64 bits wide (SF).
    pub sixty_four: bool,
    /// The instruction has acquire or release semantics (AR).
    pub acquire_release: bool,
}

impl Access {
    /// What the register holds after loading `value` from a device: extended and cut as the instruction says.
    #[must_use]
    pub const fn loaded(self, value: u64) -> u64 {
        let value = value & self.width.mask();
        let extended = if self.sign_extend {
            self.width.sign_extend(value)
        } else {
            value
        };
        if self.sixty_four {
            extended
        } else {
            extended & 0xffff_ffff
        }
    }

    /// What goes to the device when the register holds `value`.
    #[must_use]
    pub const fn stored(self, value: u64) -> u64 {
        value & self.width.mask()
    }
}

/// What an abort is about (DFSC and IFSC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An address beyond the configured size.
    AddressSize,
    /// No mapping.
    Translation,
    /// The access flag is clear.
    AccessFlag,
    /// The mapping forbids it.
    Permission,
    /// Synchronous external abort on the access itself.
    External,
    /// Synchronous external abort on a table walk.
    ExternalOnWalk,
    /// Misaligned.
    Alignment,
    /// Two TLB entries match.
    TlbConflict,
    /// An exclusive or atomic that this kind of memory does not support.
    UnsupportedExclusive,
    /// Any other status code.
    Other(u8),
}

impl Fault {
    const fn decode(fsc: u8) -> Self {
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

    /// Whether HPFAR_EL2 holds the faulting IPA. The architecture leaves it unknown for a permission fault
    /// unless that came from a stage-1 table walk: then the address is found by `AT S1E1R`.
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
    /// The access, if the syndrome is valid: none for LDP and STP, writeback, exclusives, atomics, SIMD,
    /// DC ZVA, cache maintenance and stage-1 walks.
    pub access: Option<Access>,
    /// It writes (WnR).
    pub write: bool,
    /// What went wrong.
    pub fault: Fault,
    /// Cache maintenance or address translation instruction (CM).
    pub cache_maintenance: bool,
    /// Stage 2 faulted on a stage-1 table walk (S1PTW).
    pub stage1_walk: bool,
    /// FAR_EL2 holds the address (FnV = 0).
    pub far_valid: bool,
    /// HPFAR_EL2 holds the page of the IPA.
    pub hpfar_valid: bool,
}

impl DataAbort {
    const fn decode(iss: u64) -> Self {
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
            cache_maintenance,
            stage1_walk,
            far_valid: iss & (1 << 10) == 0,
            hpfar_valid: fault.hpfar_valid(stage1_walk),
        }
    }
}

/// An instruction abort from a lower exception level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InstructionAbort {
    /// What went wrong.
    pub fault: Fault,
    /// Stage 2 faulted on a stage-1 table walk (S1PTW).
    pub stage1_walk: bool,
    /// FAR_EL2 holds the address (FnV = 0).
    pub far_valid: bool,
    /// HPFAR_EL2 holds the page of the IPA.
    pub hpfar_valid: bool,
}

impl InstructionAbort {
    const fn decode(iss: u64) -> Self {
        let stage1_walk = iss & (1 << 7) != 0;
        let fault = Fault::decode((iss & 0x3f) as u8);
        Self {
            fault,
            stage1_walk,
            far_valid: iss & (1 << 10) == 0,
            hpfar_valid: fault.hpfar_valid(stage1_walk),
        }
    }
}

/// The name of a system register or system instruction.
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
    /// `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self {
            op0,
            op1,
            crn,
            crm,
            op2,
        }
    }

    /// Whether it is a `TLBI` of the EL1&0 regime (Arm ARM C5.5); CRn 9 are those with FEAT_XS's nXS qualifier.
    #[must_use]
    pub const fn is_tlbi_el1(self) -> bool {
        self.op0 == 1 && self.op1 == 0 && matches!(self.crn, 8 | 9)
    }
}

/// A trapped MSR, MRS or SYS in AArch64 state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysAccess {
    /// Which.
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

/// Why a lower exception level came to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syndrome {
    /// EC 0: an undefined or otherwise unexplained instruction.
    Unknown,
    /// WFI and its like.
    Wfx(Wfx),
    /// Floating point or SIMD while CPTR_EL2 traps it.
    FloatingPoint,
    /// SVE while CPTR_EL2 traps it.
    Sve,
    /// HVC from AArch64 with its immediate. ELR_EL2 is behind the instruction.
    Hvc(u16),
    /// SMC from AArch64 with its immediate. ELR_EL2 is *on* the instruction.
    Smc(u16),
    /// HVC from AArch32.
    Hvc32(u16),
    /// SMC from AArch32.
    Smc32,
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
        /// ISS, bits [24:0].
        iss: u32,
    },
}

impl Syndrome {
    /// Decodes ESR_EL2 of an exception from a lower exception level.
    #[must_use]
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
            class::FP => Self::FloatingPoint,
            class::SVE => Self::Sve,
            class::HVC64 => Self::Hvc(iss as u16),
            class::SMC64 => Self::Smc(iss as u16),
            class::HVC32 => Self::Hvc32(iss as u16),
            class::SMC32 => Self::Smc32,
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

/// Bytes of the instruction that trapped: 4, or 2 for a short Thumb instruction (IL).
#[must_use]
pub const fn instruction_length(esr: u64) -> u64 {
    if esr & IL != 0 { 4 } else { 2 }
}

/// ESR_EL1 for a synchronous external abort that EL2 injects in answer to `esr_el2`, an abort from a lower
/// exception level. `from_el0`: the guest was at EL0. FAR_EL1 is to be FAR_EL2; WnR and FnV are kept, and no
/// syndrome is claimed valid.
#[must_use]
pub const fn external_abort_esr(esr_el2: u64, from_el0: bool) -> u64 {
    const FNV: u64 = 1 << 10;
    const WNR: u64 = 1 << 6;
    const EXTERNAL: u64 = 0x10;
    let data = matches!((esr_el2 >> 26 & 0x3f) as u8, class::DATA_ABORT_LOWER);
    let (ec, kept) = match (data, from_el0) {
        (true, true) => (class::DATA_ABORT_LOWER, FNV | WNR),
        (true, false) => (class::DATA_ABORT_CURRENT, FNV | WNR),
        (false, true) => (class::INSTRUCTION_ABORT_LOWER, FNV),
        (false, false) => (class::INSTRUCTION_ABORT_CURRENT, FNV),
    };
    (ec as u64) << 26 | (esr_el2 & (IL | kept)) | EXTERNAL
}

/// ESR_EL1 for an undefined-instruction exception that EL2 injects: EC 0, whose IL is always 1.
pub const UNDEFINED_ESR: u64 = IL;

/// Offset from VBAR_EL1 of the synchronous vector that an exception taken with `spsr` (SPSR_EL2) enters.
#[must_use]
pub const fn synchronous_vector(spsr: u64) -> u64 {
    const AARCH32: u64 = 1 << 4;
    if spsr & AARCH32 != 0 {
        return 0x600;
    }
    match spsr & 0xf {
        0b0101 => 0x200,
        0b0100 => 0x000,
        _ => 0x400,
    }
}

#[cfg(test)]
mod tests;
