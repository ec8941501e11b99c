//! A zone's vCPUs and its power state, as its guest changes them by PSCI.

use core::fmt;
use core::sync::atomic::AtomicU32;

use ringvisor::abi::{StopReason, ZoneState};
use ringvisor::addr::Ipa;
use ringvisor::firmware::Caller;
use ringvisor::psci::Error;
use ringvisor::psci::cpus::AfterOff;
use ringvisor::virtio::GuestRam;

use super::Zone;
use crate::el2::cpu;
use crate::el2::psci::System;

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zone {} \"{}\"", self.number, self.name())
    }
}

impl System for Zone {
    const CALLER: Caller = Caller::Guest;

    fn calls_refused(&self) -> &AtomicU32 {
        &self.calls_refused
    }

    fn cpu_off(&self, vcpu: usize) -> Result<(), Error> {
        let mut core = self.core.lock();
        if core.cpus.cpu_off(vcpu)? == AfterOff::AllOff {
            self.begin_stop(&mut core, StopReason::AllCpusOff);
        }
        Ok(())
    }

    fn cpu_on(&self, target: u64, entry: Ipa, context: u64) -> Result<u64, Error> {
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

    fn affinity_info(&self, target: u64, lowest_level: u32) -> Result<u64, Error> {
        let core = self.core.lock();
        Ok(core.cpus.affinity_info(target, lowest_level)? as u64)
    }

    fn system_off(&self) -> Result<u64, Error> {
        self.end_all(StopReason::SystemOff)
    }

    fn system_reset(&self, _reset2: Option<(u32, u64)>) -> Result<u64, Error> {
        self.end_all(StopReason::SystemReset)
    }
}

impl Zone {
    /// Orders every vCPU to leave; this one leaves before it would enter its guest.
    fn end_all(&self, reason: StopReason) -> Result<u64, Error> {
        self.begin_stop(&mut self.core.lock(), reason);
        Ok(0)
    }
}
