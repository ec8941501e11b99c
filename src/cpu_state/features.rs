//! Which optional features a CPU has, as far as they give EL1 and EL0 state, or EL2 control over them.

use super::registers::{MPAMIDR_EL1, PMBIDR_EL1, PMSIDR_EL1, TRBIDR_EL1};
use super::{Registers, id};

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A feature of a CPU.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[$doc])* $name,)*
        }
    };
}

features! {
    /// What every CPU has.
    Base,
    /// Floating point and SIMD.
    Fp,
    /// FEAT_SVE.
    Sve,
    /// FEAT_SME.
    Sme,
    /// FEAT_SME2: ZT0.
    Sme2,
    /// FEAT_SME_FA64.
    Fa64,
    /// FEAT_FPMR.
    Fpmr,
    /// FEAT_PAuth, with any algorithm.
    PAuth,
    /// FEAT_MTE2: tags in memory.
    Mte2,
    /// FEAT_TCR2.
    Tcr2,
    /// FEAT_SCTLR2.
    Sctlr2,
    /// FEAT_S1PIE.
    S1pie,
    /// FEAT_S1POE.
    S1poe,
    /// FEAT_GCS.
    Gcs,
    /// FEAT_MOPS.
    Mops,
    /// FEAT_LS64.
    Ls64,
    /// FEAT_LS64_V.
    Ls64V,
    /// FEAT_LS64_ACCDATA.
    Ls64Accdata,
    /// FEAT_PMUv3.
    Pmu,
    /// FEAT_PMUv3p1: MDCR_EL2.HPMD.
    PmuV3p1,
    /// FEAT_PMUv3p5: MDCR_EL2.HCCD.
    PmuV3p5,
    /// FEAT_SPE.
    Spe,
    /// FEAT_SPEv1p2: PMSNEVFR_EL1.
    SpeV1p2,
    /// FEAT_SPE, and firmware leaves the profiling buffer to EL2 (PMBIDR_EL1.P).
    SpeOwned,
    /// FEAT_SPE_FDS, with [`Self::SpeOwned`].
    SpeFds,
    /// System registers of a trace unit.
    Trace,
    /// FEAT_TRF.
    Trf,
    /// System registers of a trace unit, and tracing can be prohibited (FEAT_TRF).
    TraceOwned,
    /// FEAT_TRBE.
    Trbe,
    /// FEAT_TRBE, and firmware leaves the trace buffer to EL2 (TRBIDR_EL1.P).
    TrbeOwned,
    /// FEAT_BRBE.
    Brbe,
    /// FEAT_LOR.
    Lor,
    /// FEAT_RAS.
    Ras,
    /// FEAT_AMUv1.
    Amu,
    /// FEAT_MPAM.
    Mpam,
    /// MPAMHCR_EL2.
    MpamHcr,
    /// MPAM2_EL2.TIDR.
    MpamTidr,
    /// FEAT_HCX.
    Hcx,
    /// FEAT_FGT.
    Fgt,
    /// FEAT_FGT2.
    Fgt2,
}

/// A feature that a field of an identification register reports: present from `least` on, but for 15, which
/// stands for "absent" or "IMPLEMENTATION DEFINED" wherever it is used here.
struct Rule {
    feature: Feature,
    register: u8,
    shift: u8,
    least: u8,
}

const fn rule(feature: Feature, register: usize, shift: u8, least: u8) -> Rule {
    Rule {
        feature,
        register: register as u8,
        shift,
        least,
    }
}

/// Any rule of a feature suffices.
static RULES: [Rule; 40] = [
    rule(Feature::Base, id::PFR0, 4, 1),
    rule(Feature::Fp, id::PFR0, 16, 0),
    rule(Feature::Ras, id::PFR0, 28, 1),
    rule(Feature::Sve, id::PFR0, 32, 1),
    rule(Feature::Mpam, id::PFR0, 40, 1),
    rule(Feature::Amu, id::PFR0, 44, 1),
    rule(Feature::Mte2, id::PFR1, 8, 2),
    rule(Feature::Mpam, id::PFR1, 16, 1),
    rule(Feature::Sme, id::PFR1, 24, 1),
    rule(Feature::Gcs, id::PFR1, 44, 1),
    rule(Feature::Fpmr, id::PFR2, 32, 1),
    rule(Feature::Sme2, id::SMFR0, 56, 1),
    rule(Feature::Fa64, id::SMFR0, 60, 8),
    rule(Feature::Trace, id::DFR0, 4, 1),
    rule(Feature::Pmu, id::DFR0, 8, 1),
    rule(Feature::PmuV3p1, id::DFR0, 8, 4),
    rule(Feature::PmuV3p5, id::DFR0, 8, 6),
    rule(Feature::Spe, id::DFR0, 32, 1),
    rule(Feature::SpeV1p2, id::DFR0, 32, 3),
    rule(Feature::Trf, id::DFR0, 40, 1),
    rule(Feature::Trbe, id::DFR0, 44, 1),
    rule(Feature::Brbe, id::DFR0, 52, 1),
    rule(Feature::PAuth, id::ISAR1, 4, 1),
    rule(Feature::PAuth, id::ISAR1, 8, 1),
    rule(Feature::PAuth, id::ISAR1, 24, 1),
    rule(Feature::PAuth, id::ISAR1, 28, 1),
    rule(Feature::Ls64, id::ISAR1, 60, 1),
    rule(Feature::Ls64V, id::ISAR1, 60, 2),
    rule(Feature::Ls64Accdata, id::ISAR1, 60, 3),
    rule(Feature::PAuth, id::ISAR2, 8, 1),
    rule(Feature::PAuth, id::ISAR2, 12, 1),
    rule(Feature::Mops, id::ISAR2, 16, 1),
    rule(Feature::Fgt, id::MMFR0, 56, 1),
    rule(Feature::Fgt2, id::MMFR0, 56, 2),
    rule(Feature::Lor, id::MMFR1, 16, 1),
    rule(Feature::Hcx, id::MMFR1, 40, 1),
    rule(Feature::Tcr2, id::MMFR3, 0, 1),
    rule(Feature::Sctlr2, id::MMFR3, 4, 1),
    rule(Feature::S1pie, id::MMFR3, 8, 1),
    rule(Feature::S1poe, id::MMFR3, 16, 1),
];

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features(u64);

impl Features {
    /// PMBIDR_EL1.P and TRBIDR_EL1.P: a higher exception level owns the buffer, and traps.
    const NOT_OWNED: u64 = 1 << 4;

    /// Returns the features of the CPU that executes this call.
    pub fn detect(cpu: &impl Registers) -> Self {
        let mut features = Self::from_id(|register| cpu.id(register));
        if features.has(Feature::Spe) && cpu.read::<PMBIDR_EL1>() & Self::NOT_OWNED == 0 {
            features.insert(Feature::SpeOwned);
            features.insert_if(Feature::SpeFds, cpu.read::<PMSIDR_EL1>() >> 7 & 1 != 0);
        }
        if features.has(Feature::Trbe) {
            let owned = cpu.read::<TRBIDR_EL1>() & Self::NOT_OWNED == 0;
            features.insert_if(Feature::TrbeOwned, owned);
        }
        let traces = features.has(Feature::Trace) && features.has(Feature::Trf);
        features.insert_if(Feature::TraceOwned, traces);
        if features.has(Feature::Mpam) {
            let mpam = cpu.read::<MPAMIDR_EL1>();
            features.insert_if(Feature::MpamHcr, mpam >> 17 & 1 != 0);
            features.insert_if(Feature::MpamTidr, mpam >> 58 & 1 != 0);
        }
        features
    }

    /// Returns the features that identification registers report.
    pub fn from_id(read: impl Fn(usize) -> u64) -> Self {
        let mut features = Self(0);
        for rule in &RULES {
            let field = (read(rule.register.into()) >> rule.shift & 0xf) as u8;
            features.insert_if(rule.feature, field >= rule.least && field != 0xf);
        }
        features
    }

    /// Returns whether `feature` is in the set.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// Returns the set without `feature`.
    #[cfg(test)]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u8))
    }

    fn insert(&mut self, feature: Feature) {
        self.0 |= 1 << feature as u8;
    }

    fn insert_if(&mut self, feature: Feature, condition: bool) {
        self.0 |= u64::from(condition) << feature as u8;
    }
}
