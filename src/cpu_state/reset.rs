//! The sequences: a CPU's first use, an owner that leaves, and the next that enters.

use super::registers;
use super::{Feature, Features, Identity, Owner, Registers, controls, id};

/// Defines a function that writes registers by feature, in this order.
macro_rules! writes {
    ($(#[$doc:meta])* $function:ident: $($feature:ident: $($register:ident = $value:expr),+;)*) => {
        $(#[$doc])*
        fn $function(cpu: &mut impl Registers, features: Features) {
            $(
                if features.has(Feature::$feature) {
                    $(cpu.write::<{ registers::$register }>($value);)+
                }
            )*
        }
    };
}

writes! {
    /// Sets EL2's registers that are the same for all owners, so that nothing depends on what firmware left.
    set_constants:
    Base: HSTR_EL2 = 0, ACTLR_EL2 = 0, HACR_EL2 = 0, CNTHCTL_EL2 = 3;
    Sctlr2: SCTLR2_EL2 = 0;
    Tcr2: TCR2_EL2 = 0;
    Gcs: GCSCR_EL2 = 0;
    Mte2: TFSR_EL2 = 0;
    Sve: ZCR_EL2 = 0xf;
    Sme: SMPRIMAP_EL2 = 0;
    // EL2 is not traced, sampled or recorded. EL1 may record physical addresses and the physical counter
    // (PMSCR_EL2), cycle counts and mispredicts (BRBCR_EL2).
    Trf: TRFCR_EL2 = 0;
    SpeOwned: PMSCR_EL2 = 1 << 6 | 1 << 4;
    Brbe: BRBCR_EL2 = 1 << 4 | 1 << 3;
    Ras: VSESR_EL2 = 0;
}

writes! {
    /// Resets what EL1 and EL0 may write.
    reset_state:
    Base: SCTLR_EL1 = 0x30d0_0800, CPACR_EL1 = 0, TTBR0_EL1 = 0, TTBR1_EL1 = 0, TCR_EL1 = 0, MAIR_EL1 = 0,
        AMAIR_EL1 = 0, ESR_EL1 = 0, FAR_EL1 = 0, AFSR0_EL1 = 0, AFSR1_EL1 = 0, ELR_EL1 = 0, SPSR_EL1 = 0,
        SP_EL0 = 0, SP_EL1 = 0, VBAR_EL1 = 0, CONTEXTIDR_EL1 = 0, TPIDR_EL0 = 0, TPIDR_EL1 = 0,
        TPIDRRO_EL0 = 0, PAR_EL1 = 0, CSSELR_EL1 = 0, CNTKCTL_EL1 = 0, CNTV_CTL_EL0 = 0, CNTV_CVAL_EL0 = 0,
        CNTP_CTL_EL0 = 0, CNTP_CVAL_EL0 = 0,
        // OSLAR_EL1: locked, as a reset leaves it.
        MDSCR_EL1 = 0, MDCCINT_EL1 = 0, OSDLR_EL1 = 0, OSLAR_EL1 = 1;
    Fp: FPCR = 0, FPSR = 0;
    Sve: ZCR_EL1 = 0;
    Sme: SMCR_EL1 = 0, TPIDR2_EL0 = 0, SMPRI_EL1 = 0;
    Fpmr: FPMR = 0;
    PAuth: APIAKEYLO_EL1 = 0, APIAKEYHI_EL1 = 0, APIBKEYLO_EL1 = 0, APIBKEYHI_EL1 = 0, APDAKEYLO_EL1 = 0,
        APDAKEYHI_EL1 = 0, APDBKEYLO_EL1 = 0, APDBKEYHI_EL1 = 0, APGAKEYLO_EL1 = 0, APGAKEYHI_EL1 = 0;
    Mte2: GCR_EL1 = 0, RGSR_EL1 = 0, TFSR_EL1 = 0, TFSRE0_EL1 = 0;
    Tcr2: TCR2_EL1 = 0;
    Sctlr2: SCTLR2_EL1 = 0;
    S1pie: PIRE0_EL1 = 0, PIR_EL1 = 0;
    S1poe: POR_EL1 = 0, POR_EL0 = 0;
    Gcs: GCSCR_EL1 = 0, GCSPR_EL1 = 0, GCSCRE0_EL1 = 0, GCSPR_EL0 = 0;
    Ls64Accdata: ACCDATA_EL1 = 0;
    // PMCR_EL0: counters off, and zero.
    Pmu: PMCR_EL0 = 6, PMCNTENCLR_EL0 = 0xffff_ffff, PMINTENCLR_EL1 = 0xffff_ffff, PMOVSCLR_EL0 = 0xffff_ffff,
        PMUSERENR_EL0 = 0, PMCCFILTR_EL0 = 0;
    SpeOwned: PMSICR_EL1 = 0, PMSIRR_EL1 = 0, PMSFCR_EL1 = 0, PMSEVFR_EL1 = 0, PMSLATFR_EL1 = 0,
        PMBPTR_EL1 = 0, PMBSR_EL1 = 0;
    SpeFds: PMSDSFR_EL1 = 0;
    TrbeOwned: TRBPTR_EL1 = 0, TRBBASER_EL1 = 0, TRBSR_EL1 = 0, TRBMAR_EL1 = 0, TRBTRG_EL1 = 0;
    Brbe: BRBFCR_EL1 = 0, BRBTS_EL1 = 0, BRBINFINJ_EL1 = 0, BRBSRCINJ_EL1 = 0, BRBTGTINJ_EL1 = 0;
    Lor: LORC_EL1 = 0;
    Ras: VDISR_EL2 = 0;
    Amu: AMUSERENR_EL0 = 0;
    Mpam: MPAM0_EL1 = 0, MPAM1_EL1 = 0;
}

/// Sets EL2's control registers on the CPU that executes this call, whose first owner is root.
pub fn initialise(cpu: &mut impl Registers, features: Features) {
    controls::write(cpu, features, Owner::Root);
    set_constants(cpu, features);
    let midr = cpu.read::<{ registers::MIDR_EL1 }>();
    cpu.write::<{ registers::VPIDR_EL2 }>(midr);
    if features.has(Feature::Sme) {
        let fa64 = u64::from(features.has(Feature::Fa64)) << 31;
        let zt0 = u64::from(features.has(Feature::Sme2)) << 30;
        cpu.write::<{ registers::SMCR_EL2 }>(0xf | fa64 | zt0);
    }
    if features.has(Feature::Fgt) && features.has(Feature::Amu) {
        cpu.write::<{ registers::HAFGRTR_EL2 }>(0);
    }
    cpu.isb();
}

/// Ends what an owner may have left running that accesses memory or records what follows: profiling, tracing
/// and branch records. The owner's stage 2 and EL1 translation must still be in place, for buffers are
/// written through them (Arm ARM, the chapters on the Statistical Profiling and Trace Buffer Extensions).
pub fn quiesce(cpu: &mut impl Registers, features: Features) {
    if features.has(Feature::SpeOwned) {
        cpu.write::<{ registers::PMSCR_EL1 }>(0);
        cpu.isb();
        cpu.drain_profiling_buffer();
        cpu.write::<{ registers::PMBLIMITR_EL1 }>(0);
    }
    if features.has(Feature::Trf) {
        cpu.write::<{ registers::TRFCR_EL1 }>(0);
    }
    if features.has(Feature::TrbeOwned) {
        cpu.isb();
        cpu.drain_trace_buffer();
        cpu.write::<{ registers::TRBLIMITR_EL1 }>(0);
        cpu.isb();
        // Cortex-A510 erratum 2064142: the first writes of TRBE registers after this need another.
        cpu.drain_trace_buffer();
    }
    if features.has(Feature::Brbe) {
        cpu.write::<{ registers::BRBCR_EL1 }>(0);
        cpu.isb();
        cpu.invalidate_branch_records();
    }
    cpu.isb();
}

/// Hands the CPU that executes this call to `owner`, with the EL1 and EL0 state of a reset.
pub fn change(cpu: &mut impl Registers, features: Features, owner: Owner, identity: &Identity) {
    quiesce(cpu, features);
    controls::write(cpu, features, owner);
    reset_vectors(cpu, features);
    let debug = cpu.id(id::DFR0);
    cpu.zero_breakpoints(debug >> 12 & 0xf, debug >> 20 & 0xf);
    reset_state(cpu, features);
    if features.has(Feature::SpeOwned) && features.has(Feature::SpeV1p2) {
        cpu.write::<{ registers::PMSNEVFR_EL1 }>(0);
    }
    if features.has(Feature::Mpam) && features.has(Feature::Sme) {
        cpu.write::<{ registers::MPAMSM_EL1 }>(0);
    }
    if features.has(Feature::Pmu) {
        reset_event_types(cpu);
    }
    cpu.write::<{ registers::VTTBR_EL2 }>(identity.vttbr);
    cpu.write::<{ registers::VMPIDR_EL2 }>(identity.mpidr);
    cpu.write::<{ registers::CNTVOFF_EL2 }>(identity.counter_offset);
    cpu.isb();
}

/// Zeroes the registers of floating point, SVE and SME that no `MSR` reaches.
fn reset_vectors(cpu: &mut impl Registers, features: Features) {
    if features.has(Feature::Sme) {
        // Leaves streaming mode, in which some of the instructions that follow are undefined (without
        // FEAT_SME_FA64), and disables ZA and ZT0, which are zero when they are enabled again.
        cpu.write::<{ registers::SVCR }>(0);
        cpu.isb();
    }
    if features.has(Feature::Fp) {
        cpu.zero_vectors(features.has(Feature::Sve));
    }
}

/// Resets the event types of all counters, by way of PMSELR_EL0.
fn reset_event_types(cpu: &mut impl Registers) {
    let counters = cpu.read::<{ registers::PMCR_EL0 }>() >> 11 & 0x1f;
    for counter in 0..counters {
        cpu.write::<{ registers::PMSELR_EL0 }>(counter);
        cpu.isb();
        cpu.write::<{ registers::PMXEVTYPER_EL0 }>(0);
    }
    cpu.write::<{ registers::PMSELR_EL0 }>(0);
}
