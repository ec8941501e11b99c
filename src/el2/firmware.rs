//! The firmware below EL2, called by SMC; [`ringvisor::firmware`] has the calls that are passed on to it.

use ringvisor::firmware::{Caller, Calls, Firmware};
use ringvisor::machine::{Conduit, Machine, Region};
use ringvisor::psci::Error;

use super::arch::frame::TrapFrame;
use super::mm;
use super::sync::Mutex;

/// None before [`init`], and where the firmware cannot be called.
static CALLS: Mutex<Calls> = Mutex::new(Calls::NONE);

struct Smc;

impl Firmware for Smc {
    #[inline(never)]
    fn call(&self, [x0, x1, x2, x3]: [u64; 4]) -> [u64; 4] {
        let mut arguments = [0; 17];
        (arguments[0], arguments[1], arguments[2]) = (x1, x2, x3);
        let [x0, x1, x2, x3, ..] = smccc::smc64(x0 as u32, arguments);
        [x0, x1, x2, x3]
    }
}

fn calls() -> Calls {
    *CALLS.lock()
}

/// Asks the firmware what it has. Called once, at boot.
pub fn init(machine: &Machine) {
    if machine.psci != Conduit::Smc {
        return;
    }
    let (start, end) = mm::el2_range();
    let over = |shared: &Region| shared.base() < end && start < shared.end();
    let scmi = machine.scmi.filter(|_| !machine.scmi_shared.iter().any(over));
    *CALLS.lock() = Calls::probe(&Smc, scmi);
}

/// Executes a call in `frame` that EL2 does not emulate. Returns false if it is not passed on; x0 is
/// NOT_SUPPORTED then.
pub fn call(caller: Caller, frame: &mut TrapFrame) -> bool {
    let [x0, x1, x2, x3, ..] = &mut frame.x;
    let result = calls().call(&Smc, caller, [*x0, *x1, *x2, *x3]);
    match result {
        Some(result) => {
            [*x0, *x1, *x2, *x3] = result;
            true
        }
        None => {
            *x0 = Error::NotSupported.to_register();
            false
        }
    }
}

/// Returns the result of SMCCC_ARCH_FEATURES of `function`.
pub fn arch_features(function: u32) -> u64 {
    calls().arch_features(&Smc, function)
}

/// Turns on, on this CPU, the mitigations that its last owner may have turned off.
pub fn reset_cpu() {
    calls().reset_cpu(&Smc);
}
