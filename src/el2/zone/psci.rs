//! PSCI for guests (Arm DEN 0022), by HVC and by SMC.

use core::sync::atomic::Ordering;

use log::info;
use ringvisor::abi::{StopReason, ZoneState};
use ringvisor::firmware::Caller;
use ringvisor::psci::cpus::AfterOff;
use ringvisor::psci::{self, Call, Error};
use ringvisor::virtio::GuestRam;

use super::Zone;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::owner::AfterCall;
use crate::el2::{cpu, firmware};

impl Zone {
    /// Executes the call in `frame` and sets its result, unless the vCPU has turned itself off.
    pub(super) fn psci_call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
        let [x0, x1, x2, x3, ..] = frame.x;
        let result = match Call::decode([x0, x1, x2, x3]) {
            Some(Call::CpuOff) => match self.cpu_off(vcpu) {
                Ok(()) => return AfterCall::Leave,
                Err(error) => Err(error),
            },
            Some(call) => self.execute(call),
            None => {
                let (id, pc) = (x0 as u32, frame.elr);
                if firmware::call(Caller::Guest, frame) {
                    return AfterCall::Return;
                }
                if self.calls_refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    info!(
                        "zone {} \"{}\": unknown call {:#x} (pc {:#x}), expected one of PSCI 1.1: NOT_SUPPORTED; further ones are not logged",
                        self.number,
                        self.name(),
                        id,
                        pc
                    );
                }
                Err(Error::NotSupported)
            }
        };
        frame.x[0] = result.unwrap_or_else(Error::to_register);
        AfterCall::Return
    }

    fn cpu_off(&self, vcpu: usize) -> Result<(), Error> {
        let mut core = self.core.lock();
        if core.cpus.cpu_off(vcpu)? == AfterOff::AllOff {
            self.begin_stop(&mut core, StopReason::AllCpusOff);
        }
        Ok(())
    }

    fn execute(&self, call: Call) -> Result<u64, Error> {
        match call {
            Call::Version => Ok(psci::PSCI_VERSION),
            Call::SmcccVersion => Ok(psci::SMCCC_VERSION),
            Call::MigrateInfoType => Ok(psci::NO_TRUSTED_OS),
            Call::Features(id) => psci::features(id),
            Call::SmcccArchFeatures(id) => Ok(firmware::arch_features(id)),
            // An immediate wake-up is allowed (DEN 0022, 5.1.2); guests idle by WFI, which does not trap.
            Call::CpuSuspend { .. } => Ok(0),
            // See `cpu_off`.
            Call::CpuOff => Err(Error::InternalFailure),
            Call::CpuOn {
                target,
                entry,
                context,
            } => {
                let mut core = self.core.lock();
                let entry_ok = self.ram().contains(entry, 4) && entry.is_aligned(4);
                let on = core.cpus.cpu_on(target, entry_ok)?;
                if core.state != ZoneState::Running && !self.is_pausing() {
                    core.cpus.start_failed(on);
                    return Err(Error::Denied);
                }
                cpu::this().trap_tlbi(false);
                self.start_vcpu(on, entry.0, context);
                Ok(0)
            }
            Call::AffinityInfo { target, lowest_level } => self
                .core
                .lock()
                .cpus
                .affinity_info(target, lowest_level)
                .map(|state| state as u64),
            Call::SystemOff => self.end_all(StopReason::SystemOff),
            Call::SystemReset => self.end_all(StopReason::SystemReset),
            Call::SystemReset2 { reset_type, .. } => {
                psci::check_reset2(reset_type)?;
                self.end_all(StopReason::SystemReset)
            }
        }
    }

    /// Orders every vCPU to leave; this one leaves before it would enter its guest.
    fn end_all(&self, reason: StopReason) -> Result<u64, Error> {
        self.begin_stop(&mut self.core.lock(), reason);
        Ok(0)
    }
}
