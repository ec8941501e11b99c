//! PSTATE of the lower level, as SPSR_EL2 has it, when EL2 emulates an instruction or injects an exception.

/// SPSR.M[4]: the interrupted context is in AArch32 state.
const AARCH32: u64 = 1 << 4;
/// SPSR.SS: a software step is active and not pending (Arm ARM, "Software Step exceptions").
const SS: u64 = 1 << 21;
/// SPSR.BTYPE in AArch64 state: the last instruction was an indirect branch.
const BTYPE: u64 = 3 << 10;

/// Returns SPSR_EL2 for a return past an instruction that EL2 has emulated: as if the CPU had executed it, a
/// software step is pending and BTYPE is zero; in AArch32 state the IT block advances.
#[inline]
pub const fn spsr_after_instruction(spsr: u64) -> u64 {
    if spsr & AARCH32 != 0 {
        return after_aarch32_instruction(spsr);
    }
    spsr & !(SS | BTYPE)
}

/// As above, in AArch32 state (Arm ARM, AArch32.ITAdvance). SPSR has IT[1:0] in bits 26 and 25, IT[7:2] in
/// bits 15 to 10.
#[cold]
const fn after_aarch32_instruction(spsr: u64) -> u64 {
    const IT: u64 = 3 << 25 | 0x3f << 10;
    let it = spsr >> 25 & 3 | spsr >> 8 & 0xfc;
    let it = if it & 7 == 0 {
        0
    } else {
        it & 0xe0 | it << 1 & 0x1f
    };
    spsr & !(SS | IT) | (it & 3) << 25 | (it & 0xfc) << 8
}

/// What decides on PSTATE at EL1 besides the interrupted PSTATE.
#[derive(Clone, Copy, Debug)]
pub struct ExceptionControls {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// FEAT_PAN is implemented.
    pub pan: bool,
    /// Tags in memory (FEAT_MTE2) can be used.
    pub tags: bool,
    /// GCSCR_EL1.EXLOCKEN; false without FEAT_GCS.
    pub exception_lock: bool,
}

/// Returns PSTATE after an exception to EL1h from a context with `spsr` (Arm ARM, AArch64.TakeException).
pub const fn exception_pstate(spsr: u64, controls: &ExceptionControls) -> u64 {
    const EL1H_MASKED: u64 = 0x3c5;
    const NZCV: u64 = 0xf << 28;
    const PAN: u64 = 1 << 22;
    const DIT: u64 = 1 << 24;
    const TCO: u64 = 1 << 25;
    const SSBS: u64 = 1 << 12;
    const EXLOCK: u64 = 1 << 34;
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;
    let mut pstate = spsr & (NZCV | PAN) | EL1H_MASKED;
    // AArch32 state has DIT elsewhere.
    pstate |= if spsr & AARCH32 != 0 {
        (spsr >> 21 & 1) << 24
    } else {
        spsr & DIT
    };
    if controls.pan && controls.sctlr & SCTLR_SPAN == 0 {
        pstate |= PAN;
    }
    if controls.sctlr & SCTLR_DSSBS != 0 {
        pstate |= SSBS;
    }
    if controls.tags {
        pstate |= TCO;
    }
    // From EL1 alone.
    if controls.exception_lock && spsr & (AARCH32 | 0xf) != 0 && spsr & AARCH32 == 0 {
        pstate |= EXLOCK;
    }
    pstate
}
