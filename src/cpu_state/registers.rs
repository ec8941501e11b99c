//! Encodings of system registers, as `MSR` and `MRS` have them in bits 20 to 5.

/// Returns the encoding of `S<op0>_<op1>_C<crn>_C<crm>_<op2>`.
pub const fn encode(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Returns the encoding of a breakpoint or watchpoint register: `op2` 4 is DBGBVR, 5 DBGBCR, 6 DBGWVR,
/// 7 DBGWCR.
#[cfg(test)]
pub const fn debug(number: u16, op2: u16) -> u16 {
    encode(2, 0, 0, number, op2)
}

macro_rules! registers {
    ($($name:ident = $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)*) => {
        $(
            #[doc = concat!("`S", $op0, "_", $op1, "_C", $crn, "_C", $crm, "_", $op2, "`.")]
            pub const $name: u16 = encode($op0, $op1, $crn, $crm, $op2);
        )*

        /// All of them by name.
        #[cfg(test)]
        pub const NAMES: &[(u16, &str)] = &[$(($name, stringify!($name)),)*];
    };
}

registers! {
    // The base architecture, EL1 and EL0.
    SCTLR_EL1 = 3 0 1 0 0;
    ACTLR_EL1 = 3 0 1 0 1;
    CPACR_EL1 = 3 0 1 0 2;
    TTBR0_EL1 = 3 0 2 0 0;
    TTBR1_EL1 = 3 0 2 0 1;
    TCR_EL1 = 3 0 2 0 2;
    SPSR_EL1 = 3 0 4 0 0;
    ELR_EL1 = 3 0 4 0 1;
    SP_EL0 = 3 0 4 1 0;
    AFSR0_EL1 = 3 0 5 1 0;
    AFSR1_EL1 = 3 0 5 1 1;
    ESR_EL1 = 3 0 5 2 0;
    FAR_EL1 = 3 0 6 0 0;
    PAR_EL1 = 3 0 7 4 0;
    MAIR_EL1 = 3 0 10 2 0;
    AMAIR_EL1 = 3 0 10 3 0;
    VBAR_EL1 = 3 0 12 0 0;
    CONTEXTIDR_EL1 = 3 0 13 0 1;
    TPIDR_EL1 = 3 0 13 0 4;
    CNTKCTL_EL1 = 3 0 14 1 0;
    CSSELR_EL1 = 3 2 0 0 0;
    TPIDR_EL0 = 3 3 13 0 2;
    TPIDRRO_EL0 = 3 3 13 0 3;
    CNTP_CTL_EL0 = 3 3 14 2 1;
    CNTP_CVAL_EL0 = 3 3 14 2 2;
    CNTV_CTL_EL0 = 3 3 14 3 1;
    CNTV_CVAL_EL0 = 3 3 14 3 2;
    SP_EL1 = 3 4 4 1 0;
    // Debug.
    OSDTRRX_EL1 = 2 0 0 0 2;
    MDCCINT_EL1 = 2 0 0 2 0;
    MDSCR_EL1 = 2 0 0 2 2;
    OSDTRTX_EL1 = 2 0 0 3 2;
    OSECCR_EL1 = 2 0 0 6 2;
    OSLAR_EL1 = 2 0 1 0 4;
    OSDLR_EL1 = 2 0 1 3 4;
    DBGPRCR_EL1 = 2 0 1 4 4;
    DBGCLAIMSET_EL1 = 2 0 7 8 6;
    DBGCLAIMCLR_EL1 = 2 0 7 9 6;
    DBGDTR_EL0 = 2 3 0 4 0;
    // Floating point, SVE, SME.
    ZCR_EL1 = 3 0 1 2 0;
    SMPRI_EL1 = 3 0 1 2 4;
    SMCR_EL1 = 3 0 1 2 6;
    SVCR = 3 3 4 2 2;
    FPCR = 3 3 4 4 0;
    FPSR = 3 3 4 4 1;
    FPMR = 3 3 4 4 2;
    TPIDR2_EL0 = 3 3 13 0 5;
    ZCR_EL2 = 3 4 1 2 0;
    SMPRIMAP_EL2 = 3 4 1 2 5;
    SMCR_EL2 = 3 4 1 2 6;
    // FEAT_PAuth.
    APIAKEYLO_EL1 = 3 0 2 1 0;
    APIAKEYHI_EL1 = 3 0 2 1 1;
    APIBKEYLO_EL1 = 3 0 2 1 2;
    APIBKEYHI_EL1 = 3 0 2 1 3;
    APDAKEYLO_EL1 = 3 0 2 2 0;
    APDAKEYHI_EL1 = 3 0 2 2 1;
    APDBKEYLO_EL1 = 3 0 2 2 2;
    APDBKEYHI_EL1 = 3 0 2 2 3;
    APGAKEYLO_EL1 = 3 0 2 3 0;
    APGAKEYHI_EL1 = 3 0 2 3 1;
    // FEAT_MTE2.
    RGSR_EL1 = 3 0 1 0 5;
    GCR_EL1 = 3 0 1 0 6;
    TFSR_EL1 = 3 0 5 6 0;
    TFSRE0_EL1 = 3 0 5 6 1;
    TFSR_EL2 = 3 4 5 6 0;
    // FEAT_SCTLR2, FEAT_TCR2, FEAT_S1PIE, FEAT_S1POE, FEAT_AIE, FEAT_THE, FEAT_GCS.
    SCTLR2_EL1 = 3 0 1 0 3;
    TCR2_EL1 = 3 0 2 0 3;
    PIRE0_EL1 = 3 0 10 2 2;
    PIR_EL1 = 3 0 10 2 3;
    POR_EL1 = 3 0 10 2 4;
    POR_EL0 = 3 3 10 2 4;
    MAIR2_EL1 = 3 0 10 2 1;
    AMAIR2_EL1 = 3 0 10 3 1;
    RCWSMASK_EL1 = 3 0 13 0 3;
    RCWMASK_EL1 = 3 0 13 0 6;
    GCSCR_EL1 = 3 0 2 5 0;
    GCSPR_EL1 = 3 0 2 5 1;
    GCSCRE0_EL1 = 3 0 2 5 2;
    GCSPR_EL0 = 3 3 2 5 1;
    SCTLR2_EL2 = 3 4 1 0 3;
    TCR2_EL2 = 3 4 2 0 3;
    GCSCR_EL2 = 3 4 2 5 0;
    // FEAT_CSV2_2, FEAT_LS64_ACCDATA.
    SCXTNUM_EL1 = 3 0 13 0 7;
    SCXTNUM_EL0 = 3 3 13 0 7;
    ACCDATA_EL1 = 3 0 13 0 5;
    // FEAT_PMUv3.
    PMINTENSET_EL1 = 3 0 9 14 1;
    PMINTENCLR_EL1 = 3 0 9 14 2;
    PMUACR_EL1 = 3 0 9 14 4;
    PMCR_EL0 = 3 3 9 12 0;
    PMCNTENSET_EL0 = 3 3 9 12 1;
    PMCNTENCLR_EL0 = 3 3 9 12 2;
    PMOVSCLR_EL0 = 3 3 9 12 3;
    PMSELR_EL0 = 3 3 9 12 5;
    PMCCNTR_EL0 = 3 3 9 13 0;
    PMXEVTYPER_EL0 = 3 3 9 13 1;
    PMUSERENR_EL0 = 3 3 9 14 0;
    PMOVSSET_EL0 = 3 3 9 14 3;
    PMICNTR_EL0 = 3 3 9 4 0;
    PMICFILTR_EL0 = 3 3 9 6 0;
    PMEVCNTR0_EL0 = 3 3 14 8 0;
    PMEVTYPER0_EL0 = 3 3 14 12 0;
    PMCCFILTR_EL0 = 3 3 14 15 7;
    // FEAT_SPE.
    PMSCR_EL1 = 3 0 9 9 0;
    PMSNEVFR_EL1 = 3 0 9 9 1;
    PMSICR_EL1 = 3 0 9 9 2;
    PMSIRR_EL1 = 3 0 9 9 3;
    PMSFCR_EL1 = 3 0 9 9 4;
    PMSEVFR_EL1 = 3 0 9 9 5;
    PMSLATFR_EL1 = 3 0 9 9 6;
    PMSIDR_EL1 = 3 0 9 9 7;
    PMBLIMITR_EL1 = 3 0 9 10 0;
    PMBPTR_EL1 = 3 0 9 10 1;
    PMBSR_EL1 = 3 0 9 10 3;
    PMSDSFR_EL1 = 3 0 9 10 4;
    PMBIDR_EL1 = 3 0 9 10 7;
    PMSCR_EL2 = 3 4 9 9 0;
    // FEAT_TRF, FEAT_TRBE, and the first of the trace unit.
    TRFCR_EL1 = 3 0 1 2 1;
    TRBLIMITR_EL1 = 3 0 9 11 0;
    TRBPTR_EL1 = 3 0 9 11 1;
    TRBBASER_EL1 = 3 0 9 11 2;
    TRBSR_EL1 = 3 0 9 11 3;
    TRBMAR_EL1 = 3 0 9 11 4;
    TRBTRG_EL1 = 3 0 9 11 6;
    TRBIDR_EL1 = 3 0 9 11 7;
    TRCPRGCTLR = 2 1 0 1 0;
    TRFCR_EL2 = 3 4 1 2 1;
    // FEAT_BRBE.
    BRBCR_EL1 = 2 1 9 0 0;
    BRBFCR_EL1 = 2 1 9 0 1;
    BRBTS_EL1 = 2 1 9 0 2;
    BRBINFINJ_EL1 = 2 1 9 1 0;
    BRBSRCINJ_EL1 = 2 1 9 1 1;
    BRBTGTINJ_EL1 = 2 1 9 1 2;
    BRBCR_EL2 = 2 4 9 0 0;
    // FEAT_LOR, FEAT_RAS, FEAT_AMUv1.
    LORSA_EL1 = 3 0 10 4 0;
    LOREA_EL1 = 3 0 10 4 1;
    LORN_EL1 = 3 0 10 4 2;
    LORC_EL1 = 3 0 10 4 3;
    ERRSELR_EL1 = 3 0 5 3 1;
    ERXCTLR_EL1 = 3 0 5 4 1;
    ERXPFGCTL_EL1 = 3 0 5 4 5;
    DISR_EL1 = 3 0 12 1 1;
    AMUSERENR_EL0 = 3 3 13 2 3;
    VSESR_EL2 = 3 4 5 2 3;
    VDISR_EL2 = 3 4 12 1 1;
    HAFGRTR_EL2 = 3 4 3 1 6;
    // FEAT_MPAM.
    MPAMIDR_EL1 = 3 0 10 4 4;
    MPAM1_EL1 = 3 0 10 5 0;
    MPAM0_EL1 = 3 0 10 5 1;
    MPAMSM_EL1 = 3 0 10 5 3;
    MPAMHCR_EL2 = 3 4 10 4 0;
    MPAM2_EL2 = 3 4 10 5 0;
    // What EL2 controls lower levels with.
    ACTLR_EL2 = 3 4 1 0 1;
    HCR_EL2 = 3 4 1 1 0;
    MDCR_EL2 = 3 4 1 1 1;
    CPTR_EL2 = 3 4 1 1 2;
    HSTR_EL2 = 3 4 1 1 3;
    HFGRTR_EL2 = 3 4 1 1 4;
    HFGWTR_EL2 = 3 4 1 1 5;
    HFGITR_EL2 = 3 4 1 1 6;
    HACR_EL2 = 3 4 1 1 7;
    HCRX_EL2 = 3 4 1 2 2;
    VTTBR_EL2 = 3 4 2 1 0;
    HDFGRTR2_EL2 = 3 4 3 1 0;
    HDFGWTR2_EL2 = 3 4 3 1 1;
    HFGRTR2_EL2 = 3 4 3 1 2;
    HFGWTR2_EL2 = 3 4 3 1 3;
    HDFGRTR_EL2 = 3 4 3 1 4;
    HDFGWTR_EL2 = 3 4 3 1 5;
    HFGITR2_EL2 = 3 4 3 1 7;
    VPIDR_EL2 = 3 4 0 0 0;
    VMPIDR_EL2 = 3 4 0 0 5;
    MIDR_EL1 = 3 0 0 0 0;
    CNTHCTL_EL2 = 3 4 14 1 0;
    CNTVOFF_EL2 = 3 4 14 0 3;
}
