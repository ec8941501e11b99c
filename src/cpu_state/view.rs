//! The identification registers that root and zones see: what they may use, and nothing else.
//!
//! [`view`] masks what the CPU reports. A zone's masks are a list of what is allowed, field by field, so that
//! a feature that is not known here is not shown. Root's leave out what [`super::controls`] withholds from
//! root, too.

use core::hint::black_box;

use super::id::{
    AA32_AFR0, AA32_DFR0, AA32_DFR1, AA32_PFR0, AA32_PFR2, DFR0, FPFR0, ISAR0, ISAR1, ISAR2, ISAR3, MMFR0,
    MMFR1, MMFR2, MMFR3, MMFR4, PFR0, PFR1, PFR2, SMFR0, ZFR0,
};
use super::{Feature, Features, Owner};

/// Registers that are shown as they are: all of AArch32 but those in [`REGISTERS`] and ID_AFR0_EL1, and what
/// SVE, SME and FP8 compute with. What is neither here nor there reads as zero.
const WHOLE: u64 = (1 << ZFR0 | 1 << SMFR0 | 1 << FPFR0 | 0xffff_ffff)
    & !(1 << AA32_PFR0 | 1 << AA32_DFR0 | 1 << AA32_AFR0 | 1 << AA32_PFR2 | 1 << AA32_DFR1);

/// The bits that are shown.
struct Mask {
    root: u64,
    zone: u64,
}

const ALL: u64 = u64::MAX;

/// Defines [`REGISTERS`] and [`MASKS`], two tables because one would be padded.
macro_rules! shown {
    ($($register:ident $root:expr, $zone:expr;)*) => {
        const COUNT: usize = [$($register),*].len();
        static REGISTERS: [u8; COUNT] = [$($register as u8),*];
        static MASKS: [Mask; COUNT] = [$(Mask { root: $root, zone: $zone }),*];
    };
}

// Hidden from both where not said otherwise: what EL2 does not enable or reset, or what the GIC that root and
// zones see lacks. Hidden from zones alone: what only root may use, and EL2's own features.
shown! {
    // Zones: no RAS, AMU.
    AA32_PFR0 ALL, 0x0f0f_ffff;
    // Zones: no trace, M-profile debug.
    AA32_DFR0 ALL, 0x0f00_0fff;
    // Zones: no RAS_frac.
    AA32_PFR2 ALL, 0x0000_00ff;
    // Zones: no MTPMU.
    AA32_DFR1 ALL, 0x0000_00f0;
    // Zones: no RME, AMU, MPAM, SEL2, RAS, EL3, EL2.
    PFR0 ALL, 0xff0f_000f_0fff_00ff;
    // Without PFAR, DF2, THE, NMI, CSV2_frac; zones: no MTE, MPAM, RAS.
    PFR1 0x00f0_ff00_ffff_ffff, 0x0000_f000_0f00_00ff;
    // FPMR; root: MTE's details.
    PFR2 0x0000_000f_0000_0fff, 0x0000_000f_0000_0000;
    // Without external trace buffer, SEBEP, PMSS; zones: no HPMN0, BRBE, MTPMU, trace, SPE.
    DFR0 0xf0ff_ffff_f0f0_ffff, 0x0000_00f0_f0f0_ff0f;
    // Without TME.
    ISAR0 0xffff_ffff_f0ff_ffff, 0xffff_ffff_f0ff_ffff;
    // Zones: no LS64.
    ISAR1 ALL, 0x0fff_ffff_ffff_ffff;
    // Without 128-bit registers and system instructions.
    ISAR2 0xffff_ff00_ffff_ffff, 0xffff_ff00_ffff_ffff;
    // CPA, FAMINMAX, LSFE, LSUI, FPRCVT.
    ISAR3 0xff0f_00ff, 0xff0f_00ff;
    // Zones: no FGT, stage-2 granules, SNSMem.
    MMFR0 ALL, 0xf000_f000_ffff_0fff;
    // Zones: no HCX, TWED, XNX, LO, VH, VMIDBits.
    MMFR1 ALL, 0xffff_f0f0_0ff0_f00f;
    // Zones: no EVT, FWB, NV, IESB.
    MMFR2 ALL, 0xf0ff_00ff_f0ff_0fff;
    // Spec_FPACC, S1POE, S1PIE, SCTLRX, TCRX; root: stage 2's.
    MMFR3 0xf000_0000_00ff_ffff, 0xf000_0000_000f_0fff;
    // ASID2; root: EL2's own.
    MMFR4 0x0000_0000_0fff_ffff, 0x0000_0000_0000_0f00;
}

/// The greatest value of a field that is shown. 15, "IMPLEMENTATION DEFINED", is shown as 0.
struct Limit {
    register: u8,
    shift: u8,
    most: u8,
    zones_only: bool,
}

const fn limit(register: usize, shift: u8, most: u8, zones_only: bool) -> Limit {
    Limit {
        register: register as u8,
        shift,
        most,
        zones_only,
    }
}

static LIMITS: [Limit; 8] = [
    // EL1 is in AArch64 (HCR_EL2.RW).
    limit(PFR0, 4, 1, false),
    // GICv3 without 4.1's additions.
    limit(PFR0, 24, 1, true),
    // FEAT_CSV2_2: HCR_EL2.EnSCXT is clear.
    limit(PFR0, 56, 1, false),
    // Debugv8p8, no MDSELR_EL1.
    limit(DFR0, 0, 10, false),
    // PMUv3p8, without the additional controls and the instruction counter of PMUv3p9.
    limit(DFR0, 8, 8, false),
    // 48-bit addresses: stage 2 has no longer ones.
    limit(MMFR0, 0, 5, false),
    // FEAT_ECV without EL2's offset.
    limit(MMFR0, 60, 1, true),
    // FEAT_HAFT, not FEAT_HDBSS.
    limit(MMFR1, 0, 3, true),
];

/// Returns what `owner` sees of the identification register at `register` ([`index`]), whose value is `raw`.
#[inline(never)]
pub fn view(owner: Owner, features: Features, register: usize, raw: u64) -> u64 {
    // Slices whose length the compiler does not know: loops that are not unrolled, one kilobyte less.
    let registers: &[u8] = black_box(&REGISTERS);
    let masks: &[Mask] = black_box(&MASKS);
    let limits: &[Limit] = black_box(&LIMITS);
    let mut value = if WHOLE >> (register & 63) & 1 != 0 { raw } else { 0 };
    for (position, mask) in registers.iter().zip(masks) {
        if usize::from(*position) == register {
            value = raw
                & if owner == Owner::Root {
                    mask.root
                } else {
                    mask.zone
                };
        }
    }
    for limit in limits {
        if usize::from(limit.register) == register && (owner == Owner::Zone || !limit.zones_only) {
            let field = value >> limit.shift & 0xf;
            if field > limit.most.into() {
                let shown = if field == 0xf { 0 } else { limit.most.into() };
                value = value & !(0xf << limit.shift) | shown << limit.shift;
            }
        }
    }
    if register == DFR0 {
        // Firmware keeps the buffers; a trace unit whose tracing cannot be prohibited is withheld.
        for (feature, field) in [
            (Feature::SpeOwned, 0xf_u64 << 32),
            (Feature::TrbeOwned, 0xf << 44),
            (Feature::TraceOwned, 0xf << 4),
        ] {
            if !features.has(feature) {
                value &= !field;
            }
        }
    }
    value
}
