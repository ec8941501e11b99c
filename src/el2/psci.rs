//! PSCI for root and for guests (Arm DEN 0022), by HVC and by SMC: what is the same for both. [`System`] is
//! what differs.

use core::fmt::Display;
use core::sync::atomic::{AtomicU32, Ordering};

use log::info;
use ringvisor::addr::Ipa;
use ringvisor::firmware::Caller;
use ringvisor::psci::{self, Call, Error};

use super::arch::frame::TrapFrame;
use super::firmware;
use super::owner::AfterCall;

/// A caller's CPUs and its power state. Formatted as its name in the log.
pub trait System: Display {
    /// Who it is for the firmware.
    const CALLER: Caller;

    /// Returns the number of calls refused so far.
    fn calls_refused(&self) -> &AtomicU32;

    /// Executes CPU_OFF by `vcpu`, which leaves afterwards.
    fn cpu_off(&self, vcpu: usize) -> Result<(), Error>;

    /// Executes CPU_ON.
    fn cpu_on(&self, target: u64, entry: Ipa, context: u64) -> Result<u64, Error>;

    /// Executes AFFINITY_INFO.
    fn affinity_info(&self, target: u64, lowest_level: u32) -> Result<u64, Error>;

    /// Executes SYSTEM_OFF.
    fn system_off(&self) -> Result<u64, Error>;

    /// Executes SYSTEM_RESET, or SYSTEM_RESET2 of this type and cookie.
    fn system_reset(&self, reset2: Option<(u32, u64)>) -> Result<u64, Error>;
}

/// Executes the call in `frame` and sets its result, unless the vCPU has turned itself off.
pub fn call<S: System>(system: &S, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
    let [x0, x1, x2, x3, ..] = frame.x;
    let result = match Call::decode([x0, x1, x2, x3]) {
        Some(Call::Version) => Ok(psci::PSCI_VERSION),
        Some(Call::SmcccVersion) => Ok(psci::SMCCC_VERSION),
        Some(Call::MigrateInfoType) => Ok(psci::NO_TRUSTED_OS),
        Some(Call::Features(id)) => psci::features(id),
        Some(Call::SmcccArchFeatures(id)) => Ok(firmware::arch_features(id)),
        // An immediate wake-up is allowed (DEN 0022, 5.1.2); a vCPU idles by WFI, which does not trap.
        Some(Call::CpuSuspend { .. }) => Ok(0),
        Some(Call::CpuOff) => match system.cpu_off(vcpu) {
            Ok(()) => return AfterCall::Leave,
            Err(error) => Err(error),
        },
        Some(Call::CpuOn {
            target,
            entry,
            context,
        }) => system.cpu_on(target, entry, context),
        Some(Call::AffinityInfo { target, lowest_level }) => system.affinity_info(target, lowest_level),
        Some(Call::SystemOff) => system.system_off(),
        Some(Call::SystemReset) => system.system_reset(None),
        Some(Call::SystemReset2 { reset_type, cookie }) => {
            psci::check_reset2(reset_type).and_then(|()| system.system_reset(Some((reset_type, cookie))))
        }
        None => {
            if firmware::call(S::CALLER, frame) {
                return AfterCall::Return;
            }
            if system.calls_refused().fetch_add(1, Ordering::Relaxed) == 0 {
                info!(
                    "{system}: unknown call {:#x} (pc {:#x}), expected one of PSCI 1.1: NOT_SUPPORTED; further ones are not logged",
                    x0 as u32, frame.elr
                );
            }
            Err(Error::NotSupported)
        }
    };
    frame.x[0] = result.unwrap_or_else(Error::to_register);
    AfterCall::Return
}
