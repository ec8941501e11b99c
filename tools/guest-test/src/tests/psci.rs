//! PSCI 1.1 (Arm DEN 0022): versions, CPU_ON, CPU_OFF, AFFINITY_INFO, invalid arguments, unknown functions.

use smccc::psci::{self, AffinityState, Error, LowestAffinityLevel};
use smccc::{Call, Hvc, Smc};

use crate::context::Context;
use crate::cpus::{self, Command};
use crate::report::{Failure, Suite, TestResult};
use crate::{affinity, check, check_eq, time};

/// NOT_SUPPORTED, also SMCCC's unknown function.
const NOT_SUPPORTED: u32 = -1_i32 as u32;
/// INVALID_PARAMETERS.
const INVALID_PARAMETERS: i64 = -2;
/// INVALID_ADDRESS.
const INVALID_ADDRESS: i64 = -9;
/// An affinity that no machine here has.
const NOBODY: u64 = 0xff_00ff_ff00;

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    let cpus = &context.machine.cpus;
    suite.test("version and features", version);
    suite.test("unknown functions", unknown::<Hvc>);
    suite.test_unless(reference, "SMC does the same", || {
        check_eq!(
            Smc::call32(psci::PSCI_VERSION, [0; 7])[0],
            Hvc::call32(psci::PSCI_VERSION, [0; 7])[0],
            "version"
        );
        unknown::<Smc>()
    });
    suite.test("this CPU is on", || {
        check_eq!(state(affinity::mpidr())?, AffinityState::On, "AFFINITY_INFO");
        Ok(())
    });
    suite.test("CPUs that do not exist", || unknown_cpus(reference));
    suite.test("all CPUs of the tree", || {
        for mpidr in cpus {
            state(*mpidr)?;
        }
        Ok(())
    });
    if let Some(second) = cpus.get(1).copied() {
        suite.test("CPU_ON and CPU_OFF", || on_and_off(second));
        suite.test_unless(reference, "CPU_ON with an entry outside RAM", || {
            bad_entry(context, second)
        });
    } else {
        suite.skip("CPU_ON and CPU_OFF", "one CPU");
    }
}

fn version() -> TestResult {
    let version =
        psci::version::<Hvc>().map_err(|error| Failure::new(format_args!("PSCI_VERSION: {error}")))?;
    check!(
        version.major >= 1,
        "PSCI {}.{}, expected 1.0 or later",
        version.major,
        version.minor
    );
    for function in [
        psci::PSCI_VERSION,
        psci::PSCI_CPU_OFF,
        psci::PSCI_CPU_ON_64,
        psci::PSCI_AFFINITY_INFO_64,
        psci::PSCI_SYSTEM_OFF,
        psci::PSCI_SYSTEM_RESET,
        psci::PSCI_FEATURES,
    ] {
        check!(
            psci::psci_features::<Hvc>(function).is_ok(),
            "PSCI_FEATURES denies {function:#x}"
        );
    }
    for function in [0x8400_001f, 0x8600_0000, 0x8400_ffff] {
        check!(
            psci::psci_features::<Hvc>(function).is_err(),
            "PSCI_FEATURES reports {function:#x}"
        );
    }
    Ok(())
}

// torture g3
fn unknown<C: Call>() -> TestResult {
    for function in [
        0x8400_001f,
        0x8400_ffff,
        0x8600_0000,
        0x8300_0001,
        0xbf00_ff01_u32,
    ] {
        // Pointers that must not be dereferenced.
        let result = C::call32(function, [u32::MAX; 7])[0];
        check_eq!(result, NOT_SUPPORTED, "function {function:#x}");
    }
    for function in [0xc400_001f, 0xc400_ffff, 0xc600_0000, 0xc300_0001_u32] {
        let result = C::call64(function, [0x4000_0000; 17])[0];
        check_eq!(result as u32, NOT_SUPPORTED, "function {function:#x}");
    }
    Ok(())
}

fn state(mpidr: u64) -> Result<AffinityState, Failure> {
    psci::affinity_info::<Hvc>(mpidr, LowestAffinityLevel::All)
        .map_err(|error| Failure::new(format_args!("AFFINITY_INFO of {mpidr:#x}: {error}")))
}

/// CPU_ON with no instruction between the arguments and the call.
fn cpu_on(mpidr: u64, entry: u64) -> i64 {
    let mut arguments = [0; 17];
    arguments[..3].copy_from_slice(&[mpidr, entry, 0]);
    i64::from(Hvc::call64(psci::PSCI_CPU_ON_64, arguments)[0] as u32 as i32)
}

// torture d5
fn unknown_cpus(reference: bool) -> TestResult {
    for mpidr in [NOBODY, 0xff, 0x1_0000, u64::MAX] {
        check_eq!(
            cpu_on(mpidr, 0x4020_0000),
            INVALID_PARAMETERS,
            "CPU_ON of {mpidr:#x}"
        );
        check!(state(mpidr).is_err(), "AFFINITY_INFO of {mpidr:#x}");
    }
    if !reference {
        // Bits that are no affinity field.
        check_eq!(
            cpu_on(affinity::mpidr() | 1 << 31, 0x4020_0000),
            INVALID_PARAMETERS,
            "CPU_ON with bit 31"
        );
    }
    check_eq!(
        psci::cpu_on::<Hvc>(affinity::mpidr(), 0x4020_0000, 0),
        Err(Error::AlreadyOn),
        "CPU_ON of this CPU"
    );
    Ok(())
}

fn on_and_off(second: u64) -> TestResult {
    check!(cpus::ensure_on(second), "the second CPU does not come up");
    for round in 0..20 {
        check_eq!(
            cpus::start(second),
            Err(Error::AlreadyOn),
            "CPU_ON of a CPU that is on, round {round}"
        );
        check_eq!(state(second)?, AffinityState::On, "AFFINITY_INFO, round {round}");
        cpus::send(Command::Off);
        check!(
            time::wait(2000, || matches!(state(second), Ok(AffinityState::Off))),
            "the second CPU does not go off, round {round}"
        );
        let before = cpus::starts();
        check_eq!(cpus::start(second), Ok(()), "CPU_ON, round {round}");
        check!(
            time::wait(2000, || cpus::starts() == before + 1),
            "the second CPU does not come up, round {round}"
        );
        check_eq!(cpus::seen_mpidr(), second, "MPIDR_EL1 of the second CPU");
    }
    Ok(())
}

fn bad_entry(context: &Context<'_>, second: u64) -> TestResult {
    check!(cpus::ensure_on(second), "the second CPU does not come up");
    cpus::send(Command::Off);
    check!(
        time::wait(2000, || matches!(state(second), Ok(AffinityState::Off))),
        "the second CPU does not go off"
    );
    let (base, size) = context.machine.ram;
    for entry in [0, base - 4, base + size, context.machine.gicd, u64::MAX] {
        check_eq!(
            cpu_on(second, entry),
            INVALID_ADDRESS,
            "CPU_ON with entry {entry:#x}"
        );
    }
    check_eq!(
        state(second)?,
        AffinityState::Off,
        "AFFINITY_INFO after refused calls"
    );
    check!(cpus::ensure_on(second), "the second CPU does not come up again");
    Ok(())
}
