//! A zone as the owner of a CPU: its interrupts (levels of its devices' lines, its timers, SGIs, and the list
//! registers of its CPUs), its vCPUs and its power state, as its guest changes them by PSCI.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use log::warn;
use ringvisor::abi::{StopReason, ZoneState, machine};
use ringvisor::addr::Ipa;
use ringvisor::firmware::Caller;
use ringvisor::psci::Error;
use ringvisor::psci::cpus::AfterOff;
use ringvisor::syndrome::Width;
use ringvisor::vgic::{Kicks, SgiRequest, Vgic};

use super::Zone;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::cpu::{self, Cpu, State};
use crate::el2::gic;
use crate::el2::mm::frames::Tables;
use crate::el2::owner::{AfterCall, Crash, Owner, TrapOutcome};
use crate::el2::psci::{self, System};

/// Aborts of a zone that are logged one by one; the rest are only counted.
const LOGGED_ABORTS: u32 = 1;

impl Owner for Zone {
    fn prepare_vcpu(&self, cpu: &'static Cpu) -> bool {
        self.vcpu_entered(cpu)
    }

    fn leave(&self, cpu: &'static Cpu) {
        cpu.set_state(State::Parked);
        self.vcpu_left(cpu);
    }

    #[inline]
    fn may_enter(&self, vcpu: usize) -> bool {
        if !self.is_pausing() && self.vcpu_continues(vcpu) {
            return true;
        }
        self.vcpu_paused(vcpu);
        false
    }

    #[inline]
    fn flush_interrupts(&self, vcpu: usize) {
        if self.flush_requests.take(vcpu) {
            let kicks = gic::with_list_registers(|list| self.gic.lock().flush(vcpu, list));
            self.request_flush(kicks.without(vcpu));
        }
    }

    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        self.emulate(ipa, width, stored)
    }

    fn is_mapped_for_reads(&self, ipa: Ipa) -> bool {
        let guard = self.stage2.lock();
        guard
            .as_ref()
            .is_some_and(|stage2| stage2.translate(&Tables, ipa).is_some())
    }

    fn count_abort(&self, ipa: Ipa, pc: u64) {
        if self.aborts.fetch_add(1, Ordering::Relaxed) < LOGGED_ABORTS {
            warn!(
                "{self}: nothing at {ipa} (pc {pc:#x}): external abort injected; further ones are only counted"
            );
        }
    }

    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
        psci::call(self, vcpu, frame)
    }

    fn send_sgi(&self, vcpu: usize, request: &SgiRequest) {
        let kicks = self.gic.lock().send_sgi(vcpu, request);
        self.request_flush(kicks);
    }

    fn deactivate(&self, vcpu: usize, intid: u32) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().deactivate(vcpu, intid, list));
        self.request_flush(kicks);
    }

    fn interrupt(&self, vcpu: usize, intid: u32) -> bool {
        if intid >= 32 || TIMERS & 1 << intid == 0 {
            return false;
        }
        let kicks = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            gic.inject_physical(vcpu, intid) | gic.flush(vcpu, list)
        });
        self.request_flush(kicks.without(vcpu));
        true
    }

    fn handle_maintenance_interrupt(&self, vcpu: usize) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().sync(vcpu, list));
        self.request_flush(kicks);
    }

    fn crash(&self, vcpu: usize, crash: &Crash) -> bool {
        let Crash { esr, elr, far } = *crash;
        warn!("{self}: vCPU {vcpu} crashed: ESR {esr:#x}, ELR {elr:#x}, FAR {far:#x}");
        let mut core = self.core.lock();
        core.fault = [esr, elr, far];
        self.begin_stop(&mut core, StopReason::Fault);
        true
    }
}

/// The PPIs that hardware raises for a guest, by INTID: its two timers.
pub const TIMERS: u32 = 1 << machine::VIRTUAL_TIMER | 1 << machine::PHYSICAL_TIMER;

impl Zone {
    /// Requests a flush of list registers that are out of date, and kicks their CPUs. This CPU flushes its
    /// own before it enters its guest.
    pub(super) fn request_flush(&self, kicks: Kicks) {
        let this = cpu::this();
        for vcpu in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = self.cpus.get(vcpu)
                && cpu.index != this.index
            {
                gic::kick(cpu);
            }
        }
    }

    /// Latches the level of a device's line; `spi` counts from the first SPI. The caller holds the device's
    /// lock. On true it calls [`Self::propagate_level`] after releasing that.
    pub(super) fn latch_level(&self, spi: u32, high: bool) -> bool {
        self.lines.get(spi as usize).is_some_and(|line| line.latch(high))
    }

    /// Sets the level of a device's line and releases the device's lock, `guard`.
    pub(super) fn unlock_with_level<T>(&self, guard: T, spi: u32, high: bool) {
        let changed = self.latch_level(spi, high);
        drop(guard);
        if changed {
            self.propagate_level(spi);
        }
    }

    /// Brings the vGIC's view of a line up to date with the latched levels.
    #[inline(never)]
    pub(super) fn propagate_level(&self, spi: u32) {
        let Some(line) = self.lines.get(spi as usize) else {
            return;
        };
        let mut kicks = Kicks::NONE;
        {
            let mut gic = self.gic.lock();
            for &level in line.transitions() {
                kicks |= gic.set_line(machine::SPI_BASE + spi, level);
            }
        }
        self.request_flush(kicks);
    }

    /// Changes the vGIC from a vCPU of this zone, after syncing it with what the guest did to its list
    /// registers.
    pub(super) fn with_synced_gic<T>(&self, change: impl FnOnce(&mut Vgic) -> (Kicks, T)) -> T {
        let vcpu = cpu::this().vcpu();
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let kicks = gic.sync(vcpu, list);
            let (more, result) = change(&mut gic);
            (kicks | more | gic.flush(vcpu, list), result)
        });
        self.request_flush(kicks.without(vcpu));
        result
    }
}

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
        let on = core.cpus.cpu_on(target, self.is_entry(entry))?;
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
