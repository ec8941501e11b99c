//! The CPU's features (ID registers), and the control registers of EL2 that let lower levels use them.
//!
//! The list follows what Linux requires of the firmware (Documentation/arch/arm64/booting.rst): a kernel is
//! started at EL1 and finds every feature of the CPU usable.

use super::sysreg::{read, write};

/// Returns HCR_EL2: stage 2 enabled, interrupts routed to EL2, SMC trapped, EL1 in AArch64. The same for root
/// and zones, but for the trap of [`trap_tlbi`].
fn hcr() -> u64 {
    const VM: u64 = 1;
    const SWIO: u64 = 1 << 1;
    const PTW: u64 = 1 << 2;
    const FMO: u64 = 1 << 3;
    const IMO: u64 = 1 << 4;
    const AMO: u64 = 1 << 5;
    const TSC: u64 = 1 << 19;
    const RW: u64 = 1 << 31;
    const APK: u64 = 1 << 40;
    const API: u64 = 1 << 41;
    const ENSCXT: u64 = 1 << 53;
    const ATA: u64 = 1 << 56;
    let mut hcr = VM | SWIO | PTW | FMO | IMO | AMO | TSC | RW;
    if has_pauth() {
        hcr |= APK | API;
    }
    let has = extensions();
    if has.scxtnum {
        hcr |= ENSCXT;
    }
    if has.mte {
        hcr |= ATA;
    }
    hcr
}

/// Enables or disables trapping of EL1's TLB maintenance from the next entry to EL1: all of it, or, with
/// FEAT_EVT, only what is broadcast (HCR_EL2, Arm ARM D24.2.57). No TLB entry depends on these bits, so none
/// has to be invalidated.
pub fn trap_tlbi(on: bool) {
    const TTLB: u64 = 1 << 25;
    const TTLBIS: u64 = 1 << 54;
    const TTLBOS: u64 = 1 << 55;
    let mut hcr = read!("hcr_el2") & !(TTLB | TTLBIS | TTLBOS);
    if on {
        let evt = field(read!("id_aa64mmfr2_el1"), 56);
        hcr |= if evt >= 2 { TTLBIS | TTLBOS } else { TTLB };
    }
    write!("hcr_el2", hcr);
}

/// HCR_EL2.VSE.
const VSE: u64 = 1 << 8;

/// Makes EL1 take an SError with the syndrome of `esr` as soon as it does not mask SErrors (Arm ARM D1.3.4
/// and HCR_EL2.VSE).
pub fn pend_serror(esr: u64) {
    // FEAT_RAS
    if field(read!("id_aa64pfr0_el1"), 28) != 0 {
        write!("S3_4_C5_C2_3", esr & 0x1ff_ffff); // VSESR_EL2
    }
    write!("hcr_el2", read!("hcr_el2") | VSE);
}

/// Withdraws what [`pend_serror`] left pending, for another owner.
pub fn withdraw_serror() {
    write!("hcr_el2", read!("hcr_el2") & !VSE);
}

/// Returns the 4-bit field of an ID register at `shift`.
fn field(register: u64, shift: u32) -> u64 {
    (register >> shift) & 0xf
}

/// Returns whether the CPU has FEAT_PAuth, with any algorithm.
pub fn has_pauth() -> bool {
    let isar1 = read!("id_aa64isar1_el1");
    let isar2 = read!("S3_0_C0_C6_2");
    isar1 & 0xff0 != 0 || isar1 & 0xff00_0000 != 0 || isar2 & 0xff00 != 0
}

/// Returns whether the CPU has FEAT_SVE.
pub fn has_sve() -> bool {
    field(read!("id_aa64pfr0_el1"), 32) != 0
}

/// Returns whether the CPU has FEAT_SME.
pub fn has_sme() -> bool {
    field(read!("id_aa64pfr1_el1"), 24) != 0
}

/// Extensions whose only effect on EL2 is registers of EL1 or EL0 to reset.
#[derive(Clone, Copy, Debug)]
pub struct Extensions {
    /// FEAT_MTE2: memory tags.
    pub mte: bool,
    /// FEAT_CSV2_2: SCXTNUM_ELx.
    pub scxtnum: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
    /// FEAT_SCTLR2.
    pub sctlr2: bool,
    /// FEAT_S1PIE: permission indirection.
    pub s1pie: bool,
    /// FEAT_S1POE: permission overlays.
    pub s1poe: bool,
    /// FEAT_GCS: guarded control stacks.
    pub gcs: bool,
}

/// Returns which of [`Extensions`] this CPU has.
pub fn extensions() -> Extensions {
    let (pfr0, pfr1) = (read!("id_aa64pfr0_el1"), read!("id_aa64pfr1_el1"));
    let mmfr3 = read!("S3_0_C0_C7_3");
    Extensions {
        mte: field(pfr1, 8) >= 2,
        scxtnum: field(pfr0, 56) >= 2,
        tcr2: field(mmfr3, 0) != 0,
        sctlr2: field(mmfr3, 4) != 0,
        s1pie: field(mmfr3, 8) != 0,
        s1poe: field(mmfr3, 16) != 0,
        gcs: field(pfr1, 44) != 0,
    }
}

/// Returns whether the CPU has a PMU as architected (FEAT_PMUv3).
pub fn has_pmu() -> bool {
    !matches!(field(read!("id_aa64dfr0_el1"), 8), 0 | 0xf)
}

/// Returns the width of physical addresses in bits (ID_AA64MMFR0_EL1.PARange).
pub fn pa_bits() -> u32 {
    match read!("id_aa64mmfr0_el1") & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Sets this CPU's EL2 control registers. Called once per CPU; constant from then on, but for [`trap_tlbi`].
pub fn configure(vtcr: u64) {
    write!("hcr_el2", hcr());
    write!("vtcr_el2", vtcr);
    write!("hstr_el2", 0);
    write!("vpidr_el2", read!("midr_el1"));
    write!("cnthctl_el2", 3);
    write!("cntvoff_el2", 0);
    configure_fp();
    configure_debug();
    configure_fine_grained();
    super::isb();
}

fn configure_fp() {
    const RES1: u64 = 0x33ff;
    const TZ: u64 = 1 << 8;
    const TSM: u64 = 1 << 12;
    let mut cptr = RES1;
    if has_sve() {
        cptr &= !TZ;
    }
    if has_sme() {
        cptr &= !TSM;
    }
    write!("cptr_el2", cptr);
    super::isb();
    if has_sve() {
        write!("S3_4_C1_C2_0", 0xf); // ZCR_EL2: the longest vectors
    }
    if has_sme() {
        let smfr0 = read!("S3_0_C0_C4_5");
        let fa64 = (smfr0 >> 63 & 1) << 31;
        let zt0 = u64::from((smfr0 >> 56) & 0xf != 0) << 30;
        write!("S3_4_C1_C2_6", 0xf | fa64 | zt0); // SMCR_EL2
    }
}

fn configure_debug() {
    let dfr0 = read!("id_aa64dfr0_el1");
    let mut mdcr = 0;
    if has_pmu() {
        mdcr |= (read!("pmcr_el0") >> 11) & 0x1f; // HPMN: all counters to EL1
    }
    if field(dfr0, 32) != 0 {
        mdcr |= 3 << 12; // E2PB: the profiling buffer is EL1's
    }
    if field(dfr0, 44) != 0 {
        mdcr |= 3 << 24; // E2TB: the trace buffer is EL1's
    }
    write!("mdcr_el2", mdcr);
    if field(dfr0, 40) != 0 {
        write!("S3_4_C1_C2_1", 0); // TRFCR_EL2: EL2 is not traced
    }
}

/// Enables what FEAT_HCX and FEAT_FGT disable or trap unless a bit is set.
fn configure_fine_grained() {
    let mmfr0 = read!("id_aa64mmfr0_el1");
    let mmfr1 = read!("id_aa64mmfr1_el1");
    if field(mmfr1, 40) != 0 {
        let isar1 = read!("id_aa64isar1_el1");
        let isar2 = read!("S3_0_C0_C6_2");
        let has = extensions();
        let mut hcrx = 0u64;
        let ls64 = field(isar1, 60);
        hcrx |= u64::from(ls64 >= 1) << 1 | u64::from(ls64 >= 2) << 2 | u64::from(ls64 >= 3);
        hcrx |= u64::from(field(isar2, 16) != 0) << 11; // MSCEn: FEAT_MOPS
        hcrx |= u64::from(has.tcr2) << 14; // TCR2En
        hcrx |= u64::from(has.sctlr2) << 15; // SCTLR2En
        hcrx |= u64::from(has.gcs) << 22; // GCSEn
        write!("S3_4_C1_C2_2", hcrx);
    }
    if field(mmfr0, 56) != 0 {
        let no_traps = 0xfff << 52 | 1 << 50; // all bits of negative polarity of HFGRTR_EL2, HFGWTR_EL2
        write!("S3_4_C1_C1_4", no_traps);
        write!("S3_4_C1_C1_5", no_traps);
        write!("S3_4_C1_C1_6", 0x1f << 55);
        write!("S3_4_C3_C1_4", 0xf << 59);
        write!("S3_4_C3_C1_5", 0xf << 59);
        if field(read!("id_aa64pfr0_el1"), 44) != 0 {
            write!("S3_4_C3_C1_6", 0); // HAFGRTR_EL2: activity monitors
        }
    }
    if field(mmfr0, 56) >= 2 {
        write!("S3_4_C3_C1_0", u64::MAX);
        write!("S3_4_C3_C1_1", u64::MAX);
        write!("S3_4_C3_C1_2", u64::MAX);
        write!("S3_4_C3_C1_3", u64::MAX);
        write!("S3_4_C3_C1_7", 1 << 1); // HFGITR2_EL2.nDCCIVAPS; its bit 0, TSBCSYNC, traps if set
    }
}
