//! Exceptions that EL2 injects: the values of ESR_EL1 and of the vector.

use super::class::{self, IL};

/// Returns ESR_EL1 for a synchronous external abort that EL2 injects for `esr_el2`, an abort from a lower
/// exception level. `from_el0`: the guest was at EL0. FAR_EL1 is to be FAR_EL2; WnR and FnV are kept, and ISV
/// is clear.
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

/// Returns the offset from VBAR_EL1 of the synchronous vector for an exception taken with `spsr` (SPSR_EL2).
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
