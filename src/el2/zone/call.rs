//! PSCI for guests, by HVC and by SMC.

use ringvisor::psci::cpus::AfterOff;
use ringvisor::psci::{self, Call, Error};

use super::*;
use crate::el2::arch::vectors::TrapFrame;

impl Zone {
    /// HVC or SMC of a vCPU.
    pub fn call(&self, frame: &mut TrapFrame) {
        let [x0, x1, x2, x3, ..] = frame.x;
        let result = match Call::decode([x0, x1, x2, x3]) {
            Some(call) => self.psci(call),
            None => {
                if self.calls_refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    info!(
                        "zone {} \"{}\": unknown call {:#x} (pc {:#x}), expected one of PSCI 1.1: NOT_SUPPORTED; further ones are not logged",
                        self.number,
                        self.name(),
                        x0 as u32,
                        frame.elr
                    );
                }
                Err(Error::NotSupported)
            }
        };
        frame.x[0] = result.unwrap_or_else(Error::to_register);
    }

    fn psci(&self, call: Call) -> Result<u64, Error> {
        let vcpu = cpu::this().vcpu();
        match call {
            Call::Version => Ok(psci::PSCI_VERSION),
            Call::SmcccVersion => Ok(psci::SMCCC_VERSION),
            Call::MigrateInfoType => Ok(psci::NO_TRUSTED_OS),
            Call::Features(id) => psci::features(id),
            Call::SmcccArchFeatures(id) => psci::arch_features(id),
            // A wake-up at once is allowed (DEN 0022, 5.1.2); the guest idles by WFI, which does not trap.
            Call::CpuSuspend { .. } => Ok(0),
            Call::CpuOff => {
                let mut core = self.core.lock();
                if core.cpus.cpu_off(vcpu)? == AfterOff::AllOff {
                    self.begin_stop(&mut core, StopReason::AllCpusOff);
                }
                drop(core);
                cpu::leave(self)
            }
            Call::CpuOn {
                target,
                entry,
                context,
            } => {
                let mut core = self.core.lock();
                let entry_ok = self.ram().contains(entry, 4) && entry.is_aligned(4);
                let on = core.cpus.cpu_on(target, entry_ok)?;
                if core.state != ZoneState::Running && !self.pausing() {
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
            Call::SystemOff => self.end(StopReason::SystemOff),
            Call::SystemReset => self.end(StopReason::SystemReset),
            Call::SystemReset2 { reset_type, .. } => {
                psci::check_reset2(reset_type)?;
                self.end(StopReason::SystemReset)
            }
        }
    }

    /// Every vCPU leaves; this one before it would return to the guest.
    fn end(&self, reason: StopReason) -> Result<u64, Error> {
        self.begin_stop(&mut self.core.lock(), reason);
        Ok(0)
    }
}
