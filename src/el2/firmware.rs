//! The firmware below EL2, called by SMC; [`ringvisor::firmware`] has the calls that are passed on to it.

use log::{info, warn};
use ringvisor::firmware::{Caller, Calls, Firmware};
use ringvisor::machine::{Conduit, Machine};
use ringvisor::psci::Error;

use super::arch::frame::TrapFrame;
use super::mm;
use super::sync::Once;

/// `None` before [`init`], and where the firmware cannot be called.
static CALLS: Once<Calls> = Once::new();

struct Smc;

impl Firmware for Smc {
    fn call(&self, [x0, x1, x2, x3]: [u64; 4]) -> [u64; 4] {
        let mut arguments = [0; 17];
        (arguments[0], arguments[1], arguments[2]) = (x1, x2, x3);
        let [x0, x1, x2, x3, ..] = smccc::smc64(x0 as u32, arguments);
        [x0, x1, x2, x3]
    }
}

/// Asks the firmware what it has. Called once, at boot.
pub fn init(machine: &Machine) {
    if machine.psci != Conduit::Smc {
        return;
    }
    let (start, end) = mm::el2_range();
    let safe = |scmi: &&ringvisor::machine::Scmi| {
        let over = scmi
            .shared
            .iter()
            .any(|shared| shared.base() < end && start < shared.end());
        if over {
            warn!("SCMI's shared memory is in EL2's: not passed on");
        }
        !over
    };
    let scmi = machine.scmi.as_ref().filter(safe).map(|scmi| scmi.function);
    let calls = CALLS.call_once(|| Calls::probe(&Smc, scmi));
    info!("firmware: {calls:x?}");
}

/// Executes a call in `frame` that EL2 does not emulate. Returns false if it is not passed on; x0 is NOT_SUPPORTED
/// then.
pub fn call(caller: Caller, frame: &mut TrapFrame) -> bool {
    let [x0, x1, x2, x3, ..] = &mut frame.x;
    let result = CALLS
        .get()
        .and_then(|calls| calls.call(&Smc, caller, [*x0, *x1, *x2, *x3]));
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
    let calls = CALLS.get().copied().unwrap_or_default();
    calls.arch_features(&Smc, function)
}

/// Turns on, on this CPU, the mitigations that its last owner may have turned off.
pub fn reset_cpu() {
    if let Some(calls) = CALLS.get() {
        calls.reset_cpu(&Smc);
    }
}
