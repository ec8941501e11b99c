//! The switch sequence on a model of a CPU's registers: with every feature, with each absent, and as QEMU's
//! CPUs are. The model's tables are written from the Arm ARM, apart from those of the code.

extern crate std;

mod model;
mod state;
mod views;

use alloc::string::String;
use alloc::vec::Vec;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Features, Identity, Owner, change, initialise, quiesce, registers};
use model::{Fault, Model};
use state::{Machine, STATE, Trap};

const IDENTITY: Identity = Identity {
    vttbr: 0x0003_0000_4000_0000,
    mpidr: 1 << 31 | 1,
    counter_offset: 77,
};

/// Every pair of different owners in succession.
const CHANGES: [(Owner, Owner); 3] = [
    (Owner::Root, Owner::Zone),
    (Owner::Zone, Owner::Root),
    (Owner::Zone, Owner::Zone),
];

/// Returns the registers in which `to` sees what `from` left there.
fn leftovers(machine: &Machine, fault: Fault, from: Owner, to: Owner) -> Vec<&'static str> {
    let mut cpu = Model::with_fault(machine, fault);
    let features = Features::detect(&cpu);
    initialise(&mut cpu, features);
    change(&mut cpu, features, from, &IDENTITY);
    let usable: Vec<_> = STATE.iter().filter(|row| cpu.is_usable(row)).collect();
    cpu.run_hostile_owner(&usable);
    // As when a vCPU leaves, and when the next one is prepared.
    quiesce(&mut cpu, features);
    change(&mut cpu, features, to, &IDENTITY);
    cpu.assert_nothing_runs();
    usable
        .into_iter()
        .filter(|row| cpu.is_usable(row) && cpu.holds_pattern(row))
        .map(|row| row.name)
        .collect()
}

// torture g7
#[test]
fn nothing_of_an_owner_is_left_to_the_next() {
    for machine in Machine::all() {
        for (from, to) in CHANGES {
            let left = leftovers(&machine, Fault::None, from, to);
            let expected: Vec<_> = state::WITHOUT_FGT
                .iter()
                .copied()
                .filter(|name| !machine.has_fgt() && left.contains(name))
                .collect();
            assert_eq!(left, expected, "{} from {from:?} to {to:?}", machine.name);
        }
    }
}

/// Returns whether the tests notice a fault on the machine with everything.
fn is_noticed(machine: &Machine, fault: Fault) -> bool {
    let noticed = |test: &dyn Fn() -> bool| catch_unwind(AssertUnwindSafe(test)).unwrap_or(true);
    CHANGES
        .into_iter()
        .any(|(from, to)| noticed(&|| !leftovers(machine, fault, from, to).is_empty()))
        || [Owner::Root, Owner::Zone]
            .into_iter()
            .any(|owner| noticed(&|| !views::mismatches(machine, fault, owner).is_empty()))
}

/// Negative control: every write to a register that a zone may use is necessary.
#[test]
fn a_write_that_is_left_out_is_noticed() {
    let machine = Machine::full();
    let mut cpu = Model::new(&machine);
    let features = Features::detect(&cpu);
    initialise(&mut cpu, features);
    change(&mut cpu, features, Owner::Zone, &IDENTITY);
    let mut checked = 0;
    for row in STATE
        .iter()
        .filter(|row| cpu.is_usable(row) && cpu.written.contains(&row.register))
    {
        assert!(
            is_noticed(&machine, Fault::Unwritten(row.register)),
            "{}",
            row.name
        );
        checked += 1;
    }
    assert!(checked > 60, "{checked} writes");
    for register in [
        registers::PMINTENCLR_EL1,
        registers::PMCNTENCLR_EL0,
        registers::PMOVSCLR_EL0,
        registers::PMXEVTYPER_EL0,
        registers::PMSCR_EL1,
        registers::PMBLIMITR_EL1,
        registers::TRFCR_EL1,
        registers::TRBLIMITR_EL1,
    ] {
        assert!(
            is_noticed(&machine, Fault::Unwritten(register)),
            "{}",
            state::name(register)
        );
    }
}

/// Negative control: every bit that traps or does not trap state is as it must be.
#[test]
fn a_control_bit_that_is_wrong_is_noticed() {
    let machine = Machine::full();
    for row in STATE {
        for trap in row.traps {
            let (Trap::Set(control, bit) | Trap::Clear(control, bit)) = *trap;
            // HCR_EL2.FIEN: error injection has no row of its own among the identification registers.
            if (control, bit) != (registers::HCR_EL2, 47) {
                let fault = Fault::Flipped(control, bit);
                assert!(is_noticed(&machine, fault), "{} bit {bit}", state::name(control));
            }
        }
    }
}

/// EL2's own control registers do not depend on what was in them.
#[test]
fn nothing_depends_on_what_firmware_left() {
    for machine in Machine::all() {
        let mut results = Vec::new();
        for junk in [0, u64::MAX, 0x5555_5555_5555_5555] {
            let mut cpu = Model::new(&machine);
            cpu.fill(junk);
            let known = Features::detect(&cpu);
            initialise(&mut cpu, known);
            change(&mut cpu, known, Owner::Root, &IDENTITY);
            results.push(cpu.el2_registers());
        }
        assert_eq!(results[0], results[1], "{}", machine.name);
        assert_eq!(results[0], results[2], "{}", machine.name);
    }
}

/// Each feature's control bits, for root and zones, in a form that a reviewer compares with the Arm ARM.
#[test]
fn controls_of_a_plain_cpu() {
    // As Cortex-A57 is: no optional feature but PMUv3.
    let machine = Machine::named("cortex-a57");
    for owner in [Owner::Root, Owner::Zone] {
        let mut cpu = Model::new(&machine);
        let known = Features::detect(&cpu);
        initialise(&mut cpu, known);
        change(&mut cpu, known, owner, &IDENTITY);
        assert_eq!(cpu.value(registers::HCR_EL2), 0x803c_003f, "{owner:?}");
        assert_eq!(cpu.value(registers::CPTR_EL2), 0x33ff);
        assert_eq!(cpu.value(registers::MDCR_EL2), 6);
        assert_eq!(cpu.value(registers::VTTBR_EL2), IDENTITY.vttbr);
        assert_eq!(cpu.value(registers::VMPIDR_EL2), IDENTITY.mpidr);
        assert_eq!(cpu.value(registers::CNTVOFF_EL2), 77);
        assert_eq!(cpu.value(registers::SCTLR_EL1), 0x30d0_0800);
    }
}

/// `docs/cpu-state.md` names every register of the model.
#[test]
fn the_document_lists_the_state() {
    let text = include_str!("../../../docs/cpu-state.md");
    let missing: Vec<String> = STATE
        .iter()
        .filter(|row| !text.contains(row.name))
        .map(|row| String::from(row.name))
        .collect();
    assert!(missing.is_empty(), "docs/cpu-state.md lacks {missing:?}");
}
