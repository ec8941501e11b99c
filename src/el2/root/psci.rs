//! Root's CPUs, which it shares with zones, and the machine's power state, which the firmware changes.

use core::fmt;
use core::sync::atomic::AtomicU32;

use log::info;
use ringvisor::abi::ROOT_ZONE;
use ringvisor::addr::Ipa;
use ringvisor::firmware::Caller;
use ringvisor::psci::{Error, Mpidr};

use super::Root;
use crate::el2::psci::System;
use crate::el2::{console, cpu, gic};

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("root")
    }
}

impl System for Root {
    const CALLER: Caller = Caller::Root;

    fn calls_refused(&self) -> &AtomicU32 {
        &self.calls_refused
    }

    fn cpu_off(&self, _vcpu: usize) -> Result<(), Error> {
        Ok(())
    }

    fn cpu_on(&self, target: u64, entry: Ipa, context: u64) -> Result<u64, Error> {
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

    fn affinity_info(&self, target: u64, lowest_level: u32) -> Result<u64, Error> {
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

    fn system_off(&self) -> Result<u64, Error> {
        info!("root powers the machine off");
        console::flush();
        // Returns only if the firmware refuses.
        let _ = smccc::psci::system_off::<smccc::Smc>();
        Err(Error::InternalFailure)
    }

    fn system_reset(&self, reset2: Option<(u32, u64)>) -> Result<u64, Error> {
        info!("root resets the machine");
        console::flush();
        if let Some((reset_type, cookie)) = reset2 {
            let _ = smccc::psci::system_reset2::<smccc::Smc>(reset_type, cookie);
        }
        let _ = smccc::psci::system_reset::<smccc::Smc>();
        Err(Error::InternalFailure)
    }
}
