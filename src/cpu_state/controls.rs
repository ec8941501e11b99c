//! What EL2 lets root and zones do: its control registers' values by owner and by the CPU's features.
//!
//! A zone gets what has no state, or state that [`super::reset`] resets without a register that firmware may
//! withhold from EL2. Root gets the rest as well, but for what [`super::id`] hides from root, too. A field
//! that is not named here is zero, which traps or disables what later extensions add.

use super::registers::{
    CPTR_EL2, HCR_EL2, HCRX_EL2, HDFGRTR_EL2, HDFGRTR2_EL2, HDFGWTR_EL2, HDFGWTR2_EL2, HFGITR_EL2,
    HFGITR2_EL2, HFGRTR_EL2, HFGRTR2_EL2, HFGWTR_EL2, HFGWTR2_EL2, MDCR_EL2, MPAM2_EL2, MPAMHCR_EL2,
    PMCR_EL0,
};
use super::{Feature, Features, Owner, Registers};

/// A control register, or two of the same layout for reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Control {
    /// HCR_EL2.
    Hcr,
    /// HCRX_EL2.
    Hcrx,
    /// CPTR_EL2.
    Cptr,
    /// MDCR_EL2.
    Mdcr,
    /// HFGRTR_EL2, HFGWTR_EL2.
    Hfgtr,
    /// HFGITR_EL2.
    Hfgitr,
    /// HDFGRTR_EL2, HDFGWTR_EL2.
    Hdfgtr,
    /// HDFGRTR2_EL2, HDFGWTR2_EL2.
    Hdfgtr2,
    /// HFGITR2_EL2.
    Hfgitr2,
    /// MPAM2_EL2.
    Mpam2,
    /// MPAMHCR_EL2.
    Mpamhcr,
}

/// The values without any feature, in the order of [`Control`].
const BASE: [u64; 11] = [0, 0, 0x22ff, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whom a bit is for.
const ROOT: u8 = 1;
const ZONE: u8 = 2;
const BOTH: u8 = 3;

/// A bit that is the inverse of its base value if the CPU has the feature.
struct Bit {
    feature: Feature,
    control: Control,
    number: u8,
    owners: u8,
}

const fn bit(feature: Feature, control: Control, number: u8, owners: u8) -> Bit {
    Bit {
        feature,
        control,
        number,
        owners,
    }
}

static BITS: [Bit; 71] = [
    // HCR_EL2 (Arm ARM D24.2.57). Stage 2, its protection of walks, interrupts and SErrors to EL2, and EL1 in
    // AArch64.
    bit(Feature::Base, Control::Hcr, 0, BOTH),   // VM
    bit(Feature::Base, Control::Hcr, 1, BOTH),   // SWIO
    bit(Feature::Base, Control::Hcr, 2, BOTH),   // PTW
    bit(Feature::Base, Control::Hcr, 3, BOTH),   // FMO
    bit(Feature::Base, Control::Hcr, 4, BOTH),   // IMO
    bit(Feature::Base, Control::Hcr, 5, BOTH),   // AMO
    bit(Feature::Base, Control::Hcr, 18, BOTH),  // TID3: identification registers
    bit(Feature::Base, Control::Hcr, 19, BOTH),  // TSC: SMC
    bit(Feature::Base, Control::Hcr, 20, BOTH),  // TIDCP: IMPLEMENTATION DEFINED registers
    bit(Feature::Base, Control::Hcr, 21, BOTH),  // TACR: ACTLR_EL1
    bit(Feature::Base, Control::Hcr, 31, BOTH),  // RW
    bit(Feature::Lor, Control::Hcr, 35, ZONE),   // TLOR
    bit(Feature::Ras, Control::Hcr, 36, ZONE),   // TERR
    bit(Feature::PAuth, Control::Hcr, 40, BOTH), // APK
    bit(Feature::PAuth, Control::Hcr, 41, BOTH), // API
    bit(Feature::Mte2, Control::Hcr, 56, ROOT),  // ATA: tags in memory
    bit(Feature::Mte2, Control::Hcr, 58, ZONE),  // TID5: GMID_EL1
    // HCRX_EL2.
    bit(Feature::Ls64Accdata, Control::Hcrx, 0, ROOT), // EnAS0
    bit(Feature::Ls64, Control::Hcrx, 1, ROOT),        // EnALS
    bit(Feature::Ls64V, Control::Hcrx, 2, ROOT),       // EnASR
    bit(Feature::Sme, Control::Hcrx, 5, ZONE),         // SMPME: priorities through SMPRIMAP_EL2
    bit(Feature::Mops, Control::Hcrx, 11, BOTH),       // MSCEn
    bit(Feature::Tcr2, Control::Hcrx, 14, BOTH),       // TCR2En
    bit(Feature::Sctlr2, Control::Hcrx, 15, BOTH),     // SCTLR2En
    bit(Feature::Gcs, Control::Hcrx, 22, BOTH),        // GCSEn
    bit(Feature::Fpmr, Control::Hcrx, 23, BOTH),       // EnFPM
    // CPTR_EL2. RES1 but for TZ and TSM, which do not trap what the CPU has.
    bit(Feature::Base, Control::Cptr, 8, BOTH),
    bit(Feature::Base, Control::Cptr, 12, BOTH),
    bit(Feature::Sve, Control::Cptr, 8, BOTH),    // TZ
    bit(Feature::Sme, Control::Cptr, 12, BOTH),   // TSM
    bit(Feature::Trace, Control::Cptr, 20, BOTH), // TTA
    bit(Feature::TraceOwned, Control::Cptr, 20, ROOT),
    bit(Feature::Amu, Control::Cptr, 30, ZONE), // TAM
    // MDCR_EL2. HPMN is added by `write`.
    bit(Feature::SpeOwned, Control::Mdcr, 12, ROOT), // E2PB: the profiling buffer is EL1's,
    bit(Feature::SpeOwned, Control::Mdcr, 13, ROOT), // and does not trap
    bit(Feature::Spe, Control::Mdcr, 14, BOTH),      // TPMS
    bit(Feature::SpeOwned, Control::Mdcr, 14, ROOT),
    bit(Feature::PmuV3p1, Control::Mdcr, 17, BOTH), // HPMD: events do not count at EL2
    bit(Feature::Trf, Control::Mdcr, 19, ZONE),     // TTRF
    bit(Feature::PmuV3p5, Control::Mdcr, 23, BOTH), // HCCD: cycles do not count at EL2
    bit(Feature::TrbeOwned, Control::Mdcr, 24, ROOT), // E2TB: the trace buffer is EL1's,
    bit(Feature::TrbeOwned, Control::Mdcr, 25, ROOT), // and does not trap
    bit(Feature::Fgt, Control::Mdcr, 27, ZONE),     // TDCC: the debugger's channel
    // HFGRTR_EL2, HFGWTR_EL2.
    bit(Feature::Ls64Accdata, Control::Hfgtr, 50, ROOT), // nACCDATA_EL1
    bit(Feature::Gcs, Control::Hfgtr, 52, BOTH),         // nGCS_EL0
    bit(Feature::Gcs, Control::Hfgtr, 53, BOTH),         // nGCS_EL1
    bit(Feature::Sme, Control::Hfgtr, 54, BOTH),         // nSMPRI_EL1
    bit(Feature::Sme, Control::Hfgtr, 55, BOTH),         // nTPIDR2_EL0
    bit(Feature::S1pie, Control::Hfgtr, 57, BOTH),       // nPIRE0_EL1
    bit(Feature::S1pie, Control::Hfgtr, 58, BOTH),       // nPIR_EL1
    bit(Feature::S1poe, Control::Hfgtr, 59, BOTH),       // nPOR_EL0
    bit(Feature::S1poe, Control::Hfgtr, 60, BOTH),       // nPOR_EL1
    // HFGITR_EL2.
    bit(Feature::Brbe, Control::Hfgitr, 55, ROOT), // nBRBINJ
    bit(Feature::Brbe, Control::Hfgitr, 56, ROOT), // nBRBIALL
    bit(Feature::Gcs, Control::Hfgitr, 57, BOTH),  // nGCSPUSHM_EL1
    bit(Feature::Gcs, Control::Hfgitr, 58, BOTH),  // nGCSSTR_EL1
    bit(Feature::Gcs, Control::Hfgitr, 59, BOTH),  // nGCSEPP
    // HDFGRTR_EL2, HDFGWTR_EL2.
    bit(Feature::Fgt, Control::Hdfgtr, 5, ZONE),      // DBGCLAIM
    bit(Feature::Fgt, Control::Hdfgtr, 7, ZONE),      // DBGPRCR_EL1
    bit(Feature::Fgt, Control::Hdfgtr, 10, ZONE),     // OSECCR_EL1
    bit(Feature::Brbe, Control::Hdfgtr, 59, ROOT),    // nBRBIDR
    bit(Feature::Brbe, Control::Hdfgtr, 60, ROOT),    // nBRBCTL
    bit(Feature::Brbe, Control::Hdfgtr, 61, ROOT),    // nBRBDATA
    bit(Feature::SpeV1p2, Control::Hdfgtr, 62, ROOT), // nPMSNEVFR_EL1
    // HDFGRTR2_EL2, HDFGWTR2_EL2.
    bit(Feature::SpeFds, Control::Hdfgtr2, 19, ROOT), // nPMSDSFR_EL1
    // HFGITR2_EL2. TSBCSYNC, bit 0, traps if set.
    bit(Feature::Fgt2, Control::Hfgitr2, 1, BOTH), // nDCCIVAPS
    // MPAM2_EL2, MPAMHCR_EL2. EL2 is in the default partition.
    bit(Feature::Mpam, Control::Mpam2, 48, ZONE), // TRAPMPAM1EL1
    bit(Feature::Mpam, Control::Mpam2, 49, ZONE), // TRAPMPAM0EL1
    bit(Feature::Mpam, Control::Mpam2, 50, ROOT), // EnMPAMSM
    bit(Feature::MpamTidr, Control::Mpam2, 58, ZONE), // TIDR: MPAMIDR_EL1
    bit(Feature::MpamHcr, Control::Mpamhcr, 31, ZONE), // TRAP_MPAMIDR_EL1
];

/// Returns the control registers' values, by [`Control`], for `owner` on a CPU with these features.
fn values(owner: Owner, features: Features) -> [u64; BASE.len()] {
    let owner = match owner {
        Owner::Root => ROOT,
        Owner::Zone => ZONE,
    };
    let mut values = BASE;
    for bit in &BITS {
        if features.has(bit.feature)
            && bit.owners & owner != 0
            && let Some(value) = values.get_mut(bit.control as usize)
        {
            *value ^= 1 << bit.number;
        }
    }
    values
}

/// Sets the control registers of the CPU that executes this call for `owner`.
pub(super) fn write(cpu: &mut impl Registers, features: Features, owner: Owner) {
    let [
        hcr,
        hcrx,
        cptr,
        mut mdcr,
        hfgtr,
        hfgitr,
        hdfgtr,
        hdfgtr2,
        hfgitr2,
        mpam2,
        mpamhcr,
    ] = values(owner, features);
    if features.has(Feature::Pmu) {
        mdcr |= cpu.read::<PMCR_EL0>() >> 11 & 0x1f; // HPMN: all counters are EL1's
    }
    cpu.write::<HCR_EL2>(hcr);
    cpu.write::<CPTR_EL2>(cptr);
    cpu.write::<MDCR_EL2>(mdcr);
    if features.has(Feature::Hcx) {
        cpu.write::<HCRX_EL2>(hcrx);
    }
    if features.has(Feature::Fgt) {
        cpu.write::<HFGRTR_EL2>(hfgtr);
        cpu.write::<HFGWTR_EL2>(hfgtr);
        cpu.write::<HFGITR_EL2>(hfgitr);
        cpu.write::<HDFGRTR_EL2>(hdfgtr);
        cpu.write::<HDFGWTR_EL2>(hdfgtr);
    }
    if features.has(Feature::Fgt2) {
        cpu.write::<HFGRTR2_EL2>(0);
        cpu.write::<HFGWTR2_EL2>(0);
        cpu.write::<HFGITR2_EL2>(hfgitr2);
        cpu.write::<HDFGRTR2_EL2>(hdfgtr2);
        cpu.write::<HDFGWTR2_EL2>(hdfgtr2);
    }
    if features.has(Feature::Mpam) {
        cpu.write::<MPAM2_EL2>(mpam2);
    }
    if features.has(Feature::MpamHcr) {
        cpu.write::<MPAMHCR_EL2>(mpamhcr);
    }
    cpu.isb();
}
