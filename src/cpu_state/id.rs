//! The positions of identification registers.

/// Returns the position of `S3_0_C0_C<crm>_<op2>` among the registers that HCR_EL2.TID3 traps.
pub const fn index(crm: usize, op2: usize) -> usize {
    crm << 3 | op2
}

macro_rules! positions {
    ($($name:ident = $register:ident $crm:literal $op2:literal;)*) => {
        $(
            #[doc = concat!("Position of ", stringify!($register), "_EL1.")]
            pub const $name: usize = index($crm, $op2);
        )*
    };
}

positions! {
    AA32_PFR0 = ID_PFR0 1 0;
    AA32_DFR0 = ID_DFR0 1 2;
    AA32_AFR0 = ID_AFR0 1 3;
    AA32_PFR2 = ID_PFR2 3 4;
    AA32_DFR1 = ID_DFR1 3 5;
    PFR0 = ID_AA64PFR0 4 0;
    PFR1 = ID_AA64PFR1 4 1;
    PFR2 = ID_AA64PFR2 4 2;
    ZFR0 = ID_AA64ZFR0 4 4;
    SMFR0 = ID_AA64SMFR0 4 5;
    FPFR0 = ID_AA64FPFR0 4 7;
    DFR0 = ID_AA64DFR0 5 0;
    DFR1 = ID_AA64DFR1 5 1;
    ISAR0 = ID_AA64ISAR0 6 0;
    ISAR1 = ID_AA64ISAR1 6 1;
    ISAR2 = ID_AA64ISAR2 6 2;
    ISAR3 = ID_AA64ISAR3 6 3;
    MMFR0 = ID_AA64MMFR0 7 0;
    MMFR1 = ID_AA64MMFR1 7 1;
    MMFR2 = ID_AA64MMFR2 7 2;
    MMFR3 = ID_AA64MMFR3 7 3;
    MMFR4 = ID_AA64MMFR4 7 4;
}
