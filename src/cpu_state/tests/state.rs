//! What EL1 and EL0 may write, when it exists, and what keeps them from it (Arm ARM DDI 0487L.a, D24); and
//! the machines that the sequence is tested on.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::cpu_state::id::{DFR0, DFR1, ISAR1, ISAR2, MMFR0, MMFR1, MMFR2, MMFR3, PFR0, PFR1, PFR2, SMFR0};
use crate::cpu_state::registers::{self as r, NAMES, debug};

/// A field of an identification register, and its least value; 15 is "absent".
pub type Field = (usize, u32, u64);

/// An access of EL1 or EL0 traps, or has no effect, if this bit is set, or clear.
#[derive(Clone, Copy, Debug)]
pub enum Trap {
    Set(u16, u32),
    Clear(u16, u32),
}

use Trap::{Clear, Set};

/// State that EL1 or EL0 may write.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub register: u16,
    /// It exists if one of these fields has its value; always if there is none.
    pub fields: &'static [Field],
    /// All of these fields are necessary.
    pub also: &'static [Field],
    /// Any of these traps.
    pub traps: &'static [Trap],
}

/// State that is no register: its "encoding" is one that no register has.
pub const VECTORS: u16 = 1;
pub const PREDICATES: u16 = 2;
pub const ZA: u16 = 3;
pub const TAGS: u16 = 4;
pub const BRANCH_RECORDS: u16 = 5;

macro_rules! rows {
    ($({ $fields:expr; $also:expr; $traps:expr; $($register:ident)* })*) => {
        &[$($(Row {
            name: stringify!($register),
            register: place::$register,
            fields: $fields,
            also: $also,
            traps: $traps,
        },)*)*]
    };
}

/// The registers' encodings, and the places of what is no register.
mod place {
    pub use super::{BRANCH_RECORDS, PREDICATES, TAGS, VECTORS, ZA};
    pub use crate::cpu_state::registers::*;
    pub const DBGBVR0_EL1: u16 = super::debug(0, 4);
    pub const DBGBCR0_EL1: u16 = super::debug(0, 5);
    pub const DBGWVR0_EL1: u16 = super::debug(0, 6);
    pub const DBGWCR0_EL1: u16 = super::debug(0, 7);
    pub const DBGBVR15_EL1: u16 = super::debug(15, 4);
    pub const DBGBCR15_EL1: u16 = super::debug(15, 5);
    pub const DBGWVR15_EL1: u16 = super::debug(15, 6);
    pub const DBGWCR15_EL1: u16 = super::debug(15, 7);
}

const PAUTH: &[Field] = &[
    (ISAR1, 4, 1),
    (ISAR1, 8, 1),
    (ISAR1, 24, 1),
    (ISAR1, 28, 1),
    (ISAR2, 8, 1),
    (ISAR2, 12, 1),
];
const MPAM: &[Field] = &[(PFR0, 40, 1), (PFR1, 16, 1)];

pub static STATE: &[Row] = rows! {
    { &[]; &[]; &[];
        SCTLR_EL1 CPACR_EL1 TTBR0_EL1 TTBR1_EL1 TCR_EL1 SPSR_EL1 ELR_EL1 SP_EL0 SP_EL1 AFSR0_EL1 AFSR1_EL1
        ESR_EL1 FAR_EL1 PAR_EL1 MAIR_EL1 AMAIR_EL1 VBAR_EL1 CONTEXTIDR_EL1 TPIDR_EL1 TPIDR_EL0 TPIDRRO_EL0
        CNTKCTL_EL1 CSSELR_EL1 CNTP_CTL_EL0 CNTP_CVAL_EL0 CNTV_CTL_EL0 CNTV_CVAL_EL0 }
    { &[]; &[]; &[Set(r::HCR_EL2, 21)]; ACTLR_EL1 }
    // Debug.
    { &[]; &[]; &[Set(r::MDCR_EL2, 9)]; MDSCR_EL1 DBGBVR0_EL1 DBGBCR0_EL1 DBGWVR0_EL1 DBGWCR0_EL1 }
    { &[]; &[(DFR0, 12, 14)]; &[Set(r::MDCR_EL2, 9)]; DBGBVR15_EL1 DBGBCR15_EL1 }
    { &[]; &[(DFR0, 20, 14)]; &[Set(r::MDCR_EL2, 9)]; DBGWVR15_EL1 DBGWCR15_EL1 }
    { &[]; &[]; &[Set(r::MDCR_EL2, 10)]; OSDLR_EL1 OSLAR_EL1 }
    { &[]; &[]; &[Set(r::MDCR_EL2, 9), Set(r::MDCR_EL2, 27)]; MDCCINT_EL1 OSDTRRX_EL1 OSDTRTX_EL1 DBGDTR_EL0 }
    { &[]; &[]; &[Set(r::MDCR_EL2, 9), Set(r::HDFGRTR_EL2, 10)]; OSECCR_EL1 }
    { &[]; &[]; &[Set(r::MDCR_EL2, 10), Set(r::HDFGRTR_EL2, 7)]; DBGPRCR_EL1 }
    { &[]; &[]; &[Set(r::MDCR_EL2, 9), Set(r::HDFGRTR_EL2, 5)]; DBGCLAIMSET_EL1 }
    // Floating point, SVE, SME.
    { &[(PFR0, 16, 0)]; &[]; &[Set(r::CPTR_EL2, 10)]; FPCR FPSR VECTORS }
    { &[(PFR0, 32, 1)]; &[]; &[Set(r::CPTR_EL2, 8)]; ZCR_EL1 PREDICATES }
    { &[(PFR1, 24, 1)]; &[]; &[Set(r::CPTR_EL2, 12)]; SMCR_EL1 SVCR ZA }
    { &[(PFR1, 24, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 55)]; TPIDR2_EL0 }
    { &[(PFR1, 24, 1)]; &[]; &[Set(r::CPTR_EL2, 12), Clear(r::HFGRTR_EL2, 54)]; SMPRI_EL1 }
    { &[(PFR2, 32, 1)]; &[]; &[Clear(r::HCRX_EL2, 23)]; FPMR }
    // Pointer authentication, tags.
    { PAUTH; &[]; &[Clear(r::HCR_EL2, 40)];
        APIAKEYLO_EL1 APIAKEYHI_EL1 APIBKEYLO_EL1 APIBKEYHI_EL1 APDAKEYLO_EL1 APDAKEYHI_EL1 APDBKEYLO_EL1
        APDBKEYHI_EL1 APGAKEYLO_EL1 APGAKEYHI_EL1 }
    { &[(PFR1, 8, 2)]; &[]; &[Clear(r::HCR_EL2, 56)]; RGSR_EL1 GCR_EL1 TFSR_EL1 TFSRE0_EL1 TAGS }
    // Translation.
    { &[(MMFR3, 0, 1)]; &[]; &[Clear(r::HCRX_EL2, 14)]; TCR2_EL1 }
    { &[(MMFR3, 4, 1)]; &[]; &[Clear(r::HCRX_EL2, 15)]; SCTLR2_EL1 }
    { &[(MMFR3, 8, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 57)]; PIRE0_EL1 }
    { &[(MMFR3, 8, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 58)]; PIR_EL1 }
    { &[(MMFR3, 16, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 59)]; POR_EL0 }
    { &[(MMFR3, 16, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 60)]; POR_EL1 }
    { &[(MMFR3, 24, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 62)]; MAIR2_EL1 }
    { &[(MMFR3, 24, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 63)]; AMAIR2_EL1 }
    { &[(PFR1, 48, 1)]; &[]; &[Clear(r::HFGRTR_EL2, 56)]; RCWMASK_EL1 }
    { &[(PFR1, 48, 1)]; &[]; &[Clear(r::HFGRTR2_EL2, 2)]; RCWSMASK_EL1 }
    { &[(PFR1, 44, 1)]; &[]; &[Clear(r::HCRX_EL2, 22), Clear(r::HFGRTR_EL2, 53)];
        GCSCR_EL1 GCSPR_EL1 GCSCRE0_EL1 }
    { &[(PFR1, 44, 1)]; &[]; &[Clear(r::HCRX_EL2, 22), Clear(r::HFGRTR_EL2, 52)]; GCSPR_EL0 }
    { &[(PFR0, 56, 2), (PFR1, 32, 2)]; &[]; &[Clear(r::HCR_EL2, 53)]; SCXTNUM_EL1 SCXTNUM_EL0 }
    { &[(ISAR1, 60, 3)]; &[]; &[Clear(r::HCRX_EL2, 0), Clear(r::HFGRTR_EL2, 50)]; ACCDATA_EL1 }
    // Performance monitors.
    { &[(DFR0, 8, 1)]; &[]; &[Set(r::MDCR_EL2, 6)];
        PMINTENSET_EL1 PMCNTENSET_EL0 PMOVSSET_EL0 PMSELR_EL0 PMCCNTR_EL0 PMUSERENR_EL0 PMCCFILTR_EL0
        PMEVCNTR0_EL0 PMEVTYPER0_EL0 }
    { &[(DFR0, 8, 1)]; &[]; &[Set(r::MDCR_EL2, 6), Set(r::MDCR_EL2, 5)]; PMCR_EL0 }
    { &[(DFR0, 8, 9)]; &[]; &[Set(r::MDCR_EL2, 6), Clear(r::HDFGRTR2_EL2, 4)]; PMUACR_EL1 }
    { &[(DFR1, 36, 1)]; &[]; &[Set(r::MDCR_EL2, 6), Clear(r::HDFGRTR2_EL2, 2)]; PMICNTR_EL0 }
    { &[(DFR1, 36, 1)]; &[]; &[Set(r::MDCR_EL2, 6), Clear(r::HDFGRTR2_EL2, 3)]; PMICFILTR_EL0 }
    // Statistical profiling: E2PB 0b11 gives the buffer to EL1 without a trap.
    { &[(DFR0, 32, 1)]; &[]; &[Set(r::MDCR_EL2, 14)];
        PMSCR_EL1 PMSICR_EL1 PMSIRR_EL1 PMSFCR_EL1 PMSEVFR_EL1 PMSLATFR_EL1 }
    { &[(DFR0, 32, 3)]; &[]; &[Set(r::MDCR_EL2, 14), Clear(r::HDFGRTR_EL2, 62)]; PMSNEVFR_EL1 }
    { &[(DFR0, 32, 1)]; &[]; &[Set(r::MDCR_EL2, 14), Clear(r::HDFGRTR2_EL2, 19)]; PMSDSFR_EL1 }
    { &[(DFR0, 32, 1)]; &[]; &[Clear(r::MDCR_EL2, 12)]; PMBLIMITR_EL1 PMBPTR_EL1 PMBSR_EL1 }
    // Tracing.
    { &[(DFR0, 40, 1)]; &[]; &[Set(r::MDCR_EL2, 19)]; TRFCR_EL1 }
    { &[(DFR0, 44, 1)]; &[]; &[Clear(r::MDCR_EL2, 24)];
        TRBLIMITR_EL1 TRBPTR_EL1 TRBBASER_EL1 TRBSR_EL1 TRBMAR_EL1 TRBTRG_EL1 }
    { &[(DFR0, 4, 1)]; &[]; &[Set(r::CPTR_EL2, 20)]; TRCPRGCTLR }
    // Branch records.
    { &[(DFR0, 52, 1)]; &[]; &[Clear(r::HDFGRTR_EL2, 60)]; BRBCR_EL1 BRBFCR_EL1 }
    { &[(DFR0, 52, 1)]; &[]; &[Clear(r::HDFGRTR_EL2, 61)];
        BRBTS_EL1 BRBINFINJ_EL1 BRBSRCINJ_EL1 BRBTGTINJ_EL1 BRANCH_RECORDS }
    // LORegions, error records, activity monitors, partitioning. DISR_EL1 is VDISR_EL2 for EL1 (HCR_EL2.AMO).
    { &[(MMFR1, 16, 1)]; &[]; &[Set(r::HCR_EL2, 35)]; LORSA_EL1 LOREA_EL1 LORN_EL1 LORC_EL1 }
    { &[(PFR0, 28, 1)]; &[]; &[Set(r::HCR_EL2, 36)]; ERRSELR_EL1 ERXCTLR_EL1 }
    { &[(PFR0, 28, 2)]; &[]; &[Set(r::HCR_EL2, 36), Clear(r::HCR_EL2, 47)]; ERXPFGCTL_EL1 }
    { &[(PFR0, 28, 1)]; &[]; &[]; VDISR_EL2 }
    { &[(PFR0, 44, 1)]; &[]; &[Set(r::CPTR_EL2, 30)]; AMUSERENR_EL0 }
    { MPAM; &[]; &[Set(r::MPAM2_EL2, 48)]; MPAM1_EL1 }
    { MPAM; &[]; &[Set(r::MPAM2_EL2, 49)]; MPAM0_EL1 }
    { MPAM; &[(PFR1, 24, 1)]; &[Clear(r::MPAM2_EL2, 50)]; MPAMSM_EL1 }
};

/// Left as they are without FEAT_FGT, and why that is harmless: docs/cpu-state.md.
pub const WITHOUT_FGT: &[&str] = &[
    "OSDTRRX_EL1",
    "OSDTRTX_EL1",
    "DBGDTR_EL0",
    "OSECCR_EL1",
    "DBGPRCR_EL1",
    "DBGCLAIMSET_EL1",
];

/// EL2's registers and those that are write-only or read-only for EL1, and when they exist.
pub static OTHERS: &[(u16, &[Field])] = &[
    (r::MIDR_EL1, &[]),
    (r::VPIDR_EL2, &[]),
    (r::VMPIDR_EL2, &[]),
    (r::HCR_EL2, &[]),
    (r::MDCR_EL2, &[]),
    (r::CPTR_EL2, &[]),
    (r::HSTR_EL2, &[]),
    (r::HACR_EL2, &[]),
    (r::ACTLR_EL2, &[]),
    (r::VTTBR_EL2, &[]),
    (r::CNTHCTL_EL2, &[]),
    (r::CNTVOFF_EL2, &[]),
    (r::HCRX_EL2, &[(MMFR1, 40, 1)]),
    (r::HFGRTR_EL2, &[(MMFR0, 56, 1)]),
    (r::HFGWTR_EL2, &[(MMFR0, 56, 1)]),
    (r::HFGITR_EL2, &[(MMFR0, 56, 1)]),
    (r::HDFGRTR_EL2, &[(MMFR0, 56, 1)]),
    (r::HDFGWTR_EL2, &[(MMFR0, 56, 1)]),
    (r::HFGRTR2_EL2, &[(MMFR0, 56, 2)]),
    (r::HFGWTR2_EL2, &[(MMFR0, 56, 2)]),
    (r::HFGITR2_EL2, &[(MMFR0, 56, 2)]),
    (r::HDFGRTR2_EL2, &[(MMFR0, 56, 2)]),
    (r::HDFGWTR2_EL2, &[(MMFR0, 56, 2)]),
    (r::HAFGRTR_EL2, &[(PFR0, 44, 1)]),
    (r::ZCR_EL2, &[(PFR0, 32, 1)]),
    (r::SMCR_EL2, &[(PFR1, 24, 1)]),
    (r::SMPRIMAP_EL2, &[(PFR1, 24, 1)]),
    (r::TFSR_EL2, &[(PFR1, 8, 2)]),
    (r::SCTLR2_EL2, &[(MMFR3, 4, 1)]),
    (r::TCR2_EL2, &[(MMFR3, 0, 1)]),
    (r::GCSCR_EL2, &[(PFR1, 44, 1)]),
    (r::PMINTENCLR_EL1, &[(DFR0, 8, 1)]),
    (r::PMCNTENCLR_EL0, &[(DFR0, 8, 1)]),
    (r::PMOVSCLR_EL0, &[(DFR0, 8, 1)]),
    (r::PMXEVTYPER_EL0, &[(DFR0, 8, 1)]),
    (r::PMSIDR_EL1, &[(DFR0, 32, 1)]),
    (r::PMBIDR_EL1, &[(DFR0, 32, 1)]),
    (r::PMSCR_EL2, &[(DFR0, 32, 1)]),
    (r::TRBIDR_EL1, &[(DFR0, 44, 1)]),
    (r::TRFCR_EL2, &[(DFR0, 40, 1)]),
    (r::BRBCR_EL2, &[(DFR0, 52, 1)]),
    (r::VSESR_EL2, &[(PFR0, 28, 1)]),
    (r::MPAMIDR_EL1, MPAM),
    (r::MPAM2_EL2, MPAM),
    (r::MPAMHCR_EL2, MPAM),
];

/// Returns a register's name.
pub fn name(register: u16) -> String {
    NAMES
        .iter()
        .find(|(encoding, _)| *encoding == register)
        .map_or_else(
            || format!("register {register:#x}"),
            |(_, name)| String::from(*name),
        )
}

/// A CPU: its identification registers, and those that say more of a feature.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub id: [u64; 64],
    /// PMBIDR_EL1.P and TRBIDR_EL1.P: firmware keeps the buffers.
    pub buffers_kept: bool,
    /// PMSIDR_EL1, MPAMIDR_EL1.
    pub pmsidr: u64,
    pub mpamidr: u64,
}

/// Every optional feature, in the newest form that the Arm ARM has.
const FULL: &[Field] = &[
    (PFR0, 0, 2),
    (PFR0, 4, 2),
    (PFR0, 8, 1),
    (PFR0, 12, 1),
    (PFR0, 16, 1),
    (PFR0, 20, 1),
    (PFR0, 24, 3),
    (PFR0, 28, 2),
    (PFR0, 32, 1),
    (PFR0, 36, 1),
    (PFR0, 40, 1),
    (PFR0, 44, 2),
    (PFR0, 48, 1),
    (PFR0, 56, 3),
    (PFR0, 60, 1),
    (PFR1, 0, 1),
    (PFR1, 4, 2),
    (PFR1, 8, 3),
    (PFR1, 16, 1),
    (PFR1, 24, 2),
    (PFR1, 36, 1),
    (PFR1, 44, 1),
    (PFR1, 48, 1),
    (PFR2, 32, 1),
    (SMFR0, 56, 2),
    (SMFR0, 60, 8),
    (DFR0, 0, 11),
    (DFR0, 4, 1),
    (DFR0, 8, 9),
    (DFR0, 12, 15),
    (DFR0, 20, 15),
    (DFR0, 32, 6),
    (DFR0, 40, 1),
    (DFR0, 44, 1),
    (DFR0, 52, 2),
    (DFR1, 36, 1),
    (ISAR1, 4, 5),
    (ISAR1, 28, 1),
    (ISAR1, 60, 3),
    (ISAR2, 16, 1),
    (MMFR0, 0, 6),
    (MMFR0, 56, 2),
    (MMFR0, 60, 2),
    (MMFR1, 8, 1),
    (MMFR1, 16, 1),
    (MMFR1, 20, 3),
    (MMFR1, 40, 1),
    (MMFR2, 56, 2),
    (MMFR3, 0, 1),
    (MMFR3, 4, 1),
    (MMFR3, 8, 1),
    (MMFR3, 16, 1),
    (MMFR3, 24, 1),
];

/// Fields that may be absent from the full machine, by what the feature is called; with FEAT_FGT and FEAT_HCX
/// goes what the architecture has no other traps for.
const OPTIONAL: &[(&str, &[Field])] = &[
    (
        "FP",
        &[
            (PFR0, 16, 15),
            (PFR0, 20, 15),
            (PFR0, 32, 0),
            (PFR1, 24, 0),
            (PFR2, 32, 0),
        ],
    ),
    ("SVE", &[(PFR0, 32, 0)]),
    ("SME", &[(PFR1, 24, 0), (SMFR0, 56, 0), (SMFR0, 60, 0)]),
    ("SME2", &[(PFR1, 24, 1), (SMFR0, 56, 0)]),
    ("SME_FA64", &[(SMFR0, 60, 0)]),
    ("FPMR", &[(PFR2, 32, 0)]),
    ("PAuth", &[(ISAR1, 4, 0), (ISAR1, 28, 0)]),
    ("PAuth's address algorithm", &[(ISAR1, 4, 0)]),
    ("MTE", &[(PFR1, 8, 0)]),
    ("MTE2", &[(PFR1, 8, 1)]),
    ("CSV2_2", &[(PFR0, 56, 1)]),
    ("TCR2", &[(MMFR3, 0, 0)]),
    ("SCTLR2", &[(MMFR3, 4, 0)]),
    ("S1PIE", &[(MMFR3, 8, 0)]),
    ("S1POE", &[(MMFR3, 16, 0)]),
    ("AIE", &[(MMFR3, 24, 0)]),
    ("THE", &[(PFR1, 48, 0)]),
    ("GCS", &[(PFR1, 44, 0)]),
    ("MOPS", &[(ISAR2, 16, 0)]),
    ("LS64", &[(ISAR1, 60, 0)]),
    ("LS64_ACCDATA", &[(ISAR1, 60, 2)]),
    ("PMUv3", &[(DFR0, 8, 0), (DFR1, 36, 0)]),
    (
        "PMUv3, but an IMPLEMENTATION DEFINED PMU",
        &[(DFR0, 8, 15), (DFR1, 36, 0)],
    ),
    ("PMUv3p5", &[(DFR0, 8, 5), (DFR1, 36, 0)]),
    ("SPE", &[(DFR0, 32, 0)]),
    ("SPEv1p2", &[(DFR0, 32, 2)]),
    ("a trace unit", &[(DFR0, 4, 0), (DFR0, 44, 0)]),
    ("TRF", &[(DFR0, 40, 0), (DFR0, 44, 0)]),
    ("TRBE", &[(DFR0, 44, 0)]),
    ("BRBE", &[(DFR0, 52, 0)]),
    ("LOR", &[(MMFR1, 16, 0)]),
    ("RAS", &[(PFR0, 28, 0)]),
    ("AMU", &[(PFR0, 44, 0)]),
    ("MPAM", &[(PFR0, 40, 0), (PFR1, 16, 0)]),
    ("MPAM 1.x", &[(PFR0, 40, 0)]),
    ("breakpoints 1 to 15", &[(DFR0, 12, 0), (DFR0, 20, 0)]),
    (
        "FGT2",
        &[
            (MMFR0, 56, 1),
            (DFR0, 0, 10),
            (DFR0, 8, 8),
            (DFR1, 36, 0),
            (DFR0, 32, 3),
            (PFR1, 48, 0),
        ],
    ),
    (
        "HCX, FGT and what needs them",
        &[
            (MMFR1, 40, 0),
            (MMFR0, 56, 0),
            (DFR0, 0, 9),
            (DFR0, 8, 6),
            (DFR1, 36, 0),
            (DFR0, 32, 2),
            (DFR0, 52, 0),
            (PFR1, 44, 0),
            (PFR1, 48, 0),
            (PFR1, 24, 0),
            (SMFR0, 56, 0),
            (SMFR0, 60, 0),
            (PFR2, 32, 0),
            (MMFR3, 0, 0),
            (MMFR3, 4, 0),
            (MMFR3, 8, 0),
            (MMFR3, 16, 0),
            (MMFR3, 24, 0),
            (ISAR1, 60, 0),
            (ISAR2, 16, 0),
        ],
    ),
];

/// CPUs by what they have.
const NAMED: &[(&str, &[Field])] = &[
    (
        "cortex-a57",
        &[
            (PFR0, 0, 2),
            (PFR0, 4, 2),
            (PFR0, 24, 1),
            (DFR0, 0, 6),
            (DFR0, 8, 1),
            (DFR0, 12, 5),
            (DFR0, 20, 3),
        ],
    ),
    (
        "cortex-a76",
        &[
            (PFR0, 0, 2),
            (PFR0, 4, 1),
            (PFR0, 16, 1),
            (PFR0, 20, 1),
            (PFR0, 24, 1),
            (PFR0, 28, 1),
            (DFR0, 0, 8),
            (DFR0, 8, 4),
            (DFR0, 12, 5),
            (DFR0, 20, 3),
            (MMFR1, 16, 1),
            (MMFR1, 20, 2),
        ],
    ),
];

impl Machine {
    fn from_fields(name: &str, fields: &[Field]) -> Self {
        let mut machine = Self {
            name: String::from(name),
            id: [0; 64],
            buffers_kept: false,
            pmsidr: 1 << 7,
            mpamidr: 1 << 17 | 1 << 58,
        };
        machine.set(fields);
        machine
    }

    fn set(&mut self, fields: &[Field]) {
        for (register, shift, value) in fields {
            self.id[*register] = self.id[*register] & !(0xf << shift) | value << shift;
        }
    }

    /// Returns one with every feature.
    pub fn full() -> Self {
        Self::from_fields("everything", FULL)
    }

    /// Returns the one with this name.
    pub fn named(name: &str) -> Self {
        let (name, fields) = NAMED.iter().find(|(other, _)| *other == name).unwrap();
        Self::from_fields(name, fields)
    }

    /// Returns all: with everything, without each optional feature, with buffers that firmware keeps, those
    /// that exist, and one with nothing.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::full(),
            Self::from_fields("nothing", &[(PFR0, 4, 1), (DFR0, 0, 6)]),
        ];
        all.push(Self {
            name: "buffers kept".into(),
            buffers_kept: true,
            ..Self::full()
        });
        all.push(Self {
            name: "without PMSDSFR_EL1, MPAMHCR_EL2, MPAM2_EL2.TIDR".into(),
            pmsidr: 0,
            mpamidr: 0,
            ..Self::full()
        });
        for (feature, fields) in OPTIONAL {
            let mut machine = Self::full();
            machine.name = format!("without {feature}");
            machine.set(fields);
            all.push(machine);
        }
        all.extend(NAMED.iter().map(|(name, _)| Self::named(name)));
        all
    }

    /// Returns whether a field has at least this value.
    pub fn has(&self, (register, shift, least): Field) -> bool {
        let field = self.id[register] >> shift & 0xf;
        let counts = matches!((register, shift), (DFR0, 12 | 20));
        field >= least && (field != 0xf || counts)
    }

    pub fn has_fgt(&self) -> bool {
        self.has((MMFR0, 56, 1))
    }

    /// Returns whether state exists.
    pub fn exists(&self, row: &Row) -> bool {
        (row.fields.is_empty() || row.fields.iter().any(|field| self.has(*field)))
            && row.also.iter().all(|field| self.has(*field))
            && (row.register != r::PMSDSFR_EL1 || self.pmsidr >> 7 & 1 != 0)
    }
}
