//! PSCI for root (Arm DEN 0022), by HVC and by SMC: CPUs are shared with zones, the system calls go to the
//! firmware.

use core::sync::atomic::Ordering;

use log::info;
use ringvisor::abi::ROOT_ZONE;
use ringvisor::firmware::Caller;
use ringvisor::psci::{self, Call, Error, Mpidr};

use super::Root;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::owner::AfterCall;
use crate::el2::{console, cpu, firmware, gic};

impl Root {
    /// Executes the call in `frame` and sets its result, unless the vCPU has turned itself off.
    pub(super) fn psci_call(&self, frame: &mut TrapFrame) -> AfterCall {
        let [x0, x1, x2, x3, ..] = frame.x;
        let result = match Call::decode([x0, x1, x2, x3]) {
            Some(Call::CpuOff) => return AfterCall::Leave,
            Some(call) => execute(call),
            None => {
                let (id, pc) = (x0 as u32, frame.elr);
                if firmware::call(Caller::Root, frame) {
                    return AfterCall::Return;
                }
                if self.calls_refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    info!(
                        "root: unknown call {:#x} (pc {:#x}), expected one of PSCI 1.1: NOT_SUPPORTED; further ones are not logged",
                        id, pc
                    );
                }
                Err(Error::NotSupported)
            }
        };
        frame.x[0] = result.unwrap_or_else(Error::to_register);
        AfterCall::Return
    }
}

fn execute(call: Call) -> Result<u64, Error> {
    match call {
        Call::Version => Ok(psci::PSCI_VERSION),
        Call::SmcccVersion => Ok(psci::SMCCC_VERSION),
        Call::MigrateInfoType => Ok(psci::NO_TRUSTED_OS),
        Call::Features(id) => psci::features(id),
        Call::SmcccArchFeatures(id) => Ok(firmware::arch_features(id)),
        // An immediate wake-up is allowed (DEN 0022, 5.1.2); root idles by WFI, which does not trap.
        Call::CpuSuspend { .. } => Ok(0),
        // See `psci_call`.
        Call::CpuOff => Err(Error::InternalFailure),
        Call::CpuOn {
            target,
            entry,
            context,
        } => {
            let mpidr = Mpidr::from_argument(target).ok_or(Error::InvalidParameters)?;
            let target = cpu::find(mpidr).ok_or(Error::InvalidParameters)?;
            if target.owner() == ROOT_ZONE {
                return Err(Error::AlreadyOn);
            }
            if !target.claim(ROOT_ZONE, target.index as u8, core::ptr::null_mut()) {
                return Err(Error::Denied);
            }
            info!("CPU {} onlined by root", target.index);
            cpu::this().trap_tlbi(false);
            target.order_start(entry.0, context);
            gic::kick(target);
            Ok(0)
        }
        Call::AffinityInfo { target, lowest_level } => {
            if lowest_level > 3 {
                return Err(Error::InvalidParameters);
            }
            let wanted = Mpidr::from_argument(target).ok_or(Error::InvalidParameters)?;
            let mut members = cpu::all()
                .iter()
                .filter(|cpu| cpu.mpidr().same_from(wanted, lowest_level))
                .peekable();
            members.peek().ok_or(Error::InvalidParameters)?;
            Ok(u64::from(!members.any(|cpu| cpu.owner() == ROOT_ZONE)))
        }
        Call::SystemOff => {
            info!("root powers the machine off");
            console::flush();
            // Returns only if the firmware refuses.
            let _ = smccc::psci::system_off::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
        Call::SystemReset => {
            info!("root resets the machine");
            console::flush();
            let _ = smccc::psci::system_reset::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
        Call::SystemReset2 { reset_type, cookie } => {
            psci::check_reset2(reset_type)?;
            info!("root resets the machine");
            console::flush();
            let _ = smccc::psci::system_reset2::<smccc::Smc>(reset_type, cookie);
            let _ = smccc::psci::system_reset::<smccc::Smc>();
            Err(Error::InternalFailure)
        }
    }
}
