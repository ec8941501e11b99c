//! What identification registers show, compared with what traps.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::model::{Fault, Model};
use super::state::{Machine, STATE, WITHOUT_FGT};
use super::{IDENTITY, Owner};
use crate::cpu_state::id::{DFR0, ISAR0, ISAR1, MMFR0, MMFR1, MMFR3, PFR0, PFR1, PFR2};
use crate::cpu_state::view::view;
use crate::cpu_state::{Features, change, initialise};

const OWNERS: [Owner; 2] = [Owner::Root, Owner::Zone];

/// Returns the machine as `owner` sees it.
fn seen(machine: &Machine, owner: Owner) -> Machine {
    let features = Features::detect(&Model::new(machine));
    let mut seen = machine.clone();
    for register in 0..64 {
        seen.id[register] = view(owner, features, register, machine.id[register]);
    }
    seen
}

/// Returns what `owner` is shown although it traps, and what it may use although it is hidden.
pub fn mismatches(machine: &Machine, fault: Fault, owner: Owner) -> Vec<String> {
    let mut cpu = Model::with_fault(machine, fault);
    let features = Features::detect(&cpu);
    initialise(&mut cpu, features);
    change(&mut cpu, features, owner, &IDENTITY);
    let seen = seen(machine, owner);
    let mut found = Vec::new();
    for row in STATE {
        let exempt = match row.name {
            // No identification register shows them: what FEAT_FGT withholds from zones, and ACTLR_EL1, which
            // reads as zero.
            "ACTLR_EL1" | "MDCCINT_EL1" => true,
            // Error injection (RASv1p1): HCR_EL2.FIEN is clear, for root must not cause SErrors at EL2.
            "ERXPFGCTL_EL1" => true,
            // DISR_EL1 has no trap; it is VDISR_EL2, which is reset.
            "VDISR_EL2" => true,
            name => WITHOUT_FGT.contains(&name),
        };
        if exempt {
            continue;
        }
        match (seen.exists(row), cpu.is_usable(row)) {
            (true, false) => found.push(format!("{owner:?} is shown {}, which traps", row.name)),
            (false, true) => found.push(format!("{owner:?} may use {}, which is hidden", row.name)),
            _ => {}
        }
    }
    found
}

#[test]
fn what_is_shown_is_what_can_be_used() {
    for machine in Machine::all() {
        for owner in OWNERS {
            let found = mismatches(&machine, Fault::None, owner);
            assert!(found.is_empty(), "{}: {found:?}", machine.name);
        }
    }
}

#[test]
fn a_zone_sees_no_field_that_is_not_known() {
    let mut machine = Machine::full();
    machine.id = [u64::MAX; 64];
    let seen = seen(&machine, Owner::Zone);
    for register in 32..64 {
        let known = [32, 33, 34, 36, 37, 39, 40, 41, 48, 49, 50, 51, 56, 57, 58, 59, 60];
        assert!(
            known.contains(&register) || seen.id[register] == 0,
            "register {register}"
        );
    }
    for (register, shift, feature) in [
        (PFR0, 8, "EL2"),
        (PFR0, 12, "EL3"),
        (PFR0, 28, "RAS"),
        (PFR0, 36, "SEL2"),
        (PFR0, 40, "MPAM"),
        (PFR0, 44, "AMU"),
        (PFR0, 52, "RME"),
        (PFR1, 8, "MTE"),
        (PFR1, 12, "RAS_frac"),
        (PFR1, 16, "MPAM_frac"),
        (PFR1, 32, "CSV2_frac"),
        (PFR1, 36, "NMI"),
        (PFR1, 48, "THE"),
        (PFR1, 56, "DF2"),
        (PFR1, 60, "PFAR"),
        (PFR2, 16, "UINJ"),
        (DFR0, 4, "TraceVer"),
        (DFR0, 32, "PMSVer"),
        (DFR0, 40, "TraceFilt"),
        (DFR0, 44, "TraceBuffer"),
        (DFR0, 52, "BRBE"),
        (ISAR0, 24, "TME"),
        (ISAR1, 60, "LS64"),
        (MMFR0, 56, "FGT"),
        (MMFR1, 8, "VH"),
        (MMFR1, 16, "LO"),
        (MMFR1, 40, "HCX"),
        (MMFR3, 24, "AIE"),
        (MMFR3, 32, "D128"),
    ] {
        assert_eq!(seen.id[register] >> shift & 0xf, 0, "{feature}");
    }
}

/// What zones compute with is shown as it is.
#[test]
fn a_zone_sees_what_it_may_use() {
    let machine = Machine::full();
    let seen = seen(&machine, Owner::Zone);
    for (register, shift, value, feature) in [
        (PFR0, 0, 2, "AArch32 at EL0"),
        (PFR0, 4, 1, "EL1 in AArch64"),
        (PFR0, 16, 1, "FP"),
        (PFR0, 24, 1, "GICv3"),
        (PFR0, 32, 1, "SVE"),
        (PFR0, 48, 1, "DIT"),
        (PFR0, 56, 1, "CSV2"),
        (PFR0, 60, 1, "CSV3"),
        (PFR1, 0, 1, "BTI"),
        (PFR1, 4, 2, "SSBS"),
        (PFR1, 24, 2, "SME"),
        (PFR1, 44, 1, "GCS"),
        (PFR2, 32, 1, "FPMR"),
        (DFR0, 0, 10, "debug"),
        (DFR0, 8, 8, "PMU"),
        (DFR0, 12, 15, "breakpoints"),
        (MMFR0, 0, 5, "48-bit addresses"),
        (MMFR1, 20, 3, "PAN"),
        (MMFR3, 0, 1, "TCR2"),
        (MMFR3, 16, 1, "S1POE"),
    ] {
        assert_eq!(seen.id[register] >> shift & 0xf, value, "{feature}");
    }
    // FP and SIMD that are absent stay absent: 15.
    let mut machine = Machine::full();
    machine.id[PFR0] |= 0xff << 16;
    assert_eq!(
        super::views::seen(&machine, Owner::Zone).id[PFR0] >> 16 & 0xff,
        0xff
    );
}

/// Root of a machine that exists loses nothing.
#[test]
fn root_sees_its_cpu() {
    for name in ["cortex-a57", "cortex-a76"] {
        let machine = Machine::named(name);
        let seen = seen(&machine, Owner::Root);
        for register in 0..64 {
            let mut expected = machine.id[register];
            if register == PFR0 {
                // EL1 in AArch32: HCR_EL2.RW is set.
                expected = expected & !0xf0 | 0x10;
            }
            assert_eq!(seen.id[register], expected, "{name}, register {register}");
        }
    }
}
