//! Exception class, bits 31 to 26 of ESR_ELx, and IL.

pub(super) const UNKNOWN: u8 = 0x00;
pub(super) const WFX: u8 = 0x01;
pub(super) const HVC64: u8 = 0x16;
pub(super) const SMC64: u8 = 0x17;
pub(super) const SYS64: u8 = 0x18;
pub(super) const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
pub(super) const INSTRUCTION_ABORT_CURRENT: u8 = 0x21;
pub(super) const DATA_ABORT_LOWER: u8 = 0x24;
pub(super) const DATA_ABORT_CURRENT: u8 = 0x25;

/// IL: the instruction is 32 bits long.
pub(super) const IL: u64 = 1 << 25;
