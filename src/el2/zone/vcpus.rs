//! The lifecycle of a zone and its vCPUs: start, pause, stop, crash.

use core::sync::atomic::Ordering;

use log::info;
use ringvisor::abi::command::{CommandStatus, ZoneInfo};
use ringvisor::abi::{MAX_VCPUS, StopReason, ZoneState, machine};
use ringvisor::addr::Ipa;
use ringvisor::cpu_state;
use ringvisor::psci::cpus::CpuState;
use ringvisor::ring::Entry;
use ringvisor::virtio::GuestRam;

use super::owner::TIMERS;
use super::{Core, Zone};
use crate::el2::arch::{self, sysreg, vcpu};
use crate::el2::channel::Refusal;
use crate::el2::cpu::Cpu;
use crate::el2::owner::{Crash, Owner};
use crate::el2::{firmware, gic};

impl Zone {
    /// Starts vCPU 0 at `entry` with `x0`. Devices and vCPUs are reset.
    pub fn start(&self, entry: Ipa, x0: u64) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        let ended = self.stage2.lock().is_none();
        if !core.is_off() || ended || self.inside.load(Ordering::Acquire) != 0 {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        if !self.is_entry(entry) {
            return Err((CommandStatus::BadArgument, entry.0));
        }
        let first = self
            .cpus
            .first()
            .ok_or((CommandStatus::WrongState, core.state as u64))?;
        self.reset_devices();
        core.cpus.reset(0);
        core.fault = [0; 3];
        self.pausing.store(false, Ordering::Release);
        self.paused.store(0, Ordering::Release);
        self.inside.store(1, Ordering::Release);
        self.set_state(&mut core, ZoneState::Running, StopReason::None);
        info!("{self} starts at {entry}");
        first.order_start(entry.0, x0);
        gic::kick(first);
        Ok(())
    }

    /// Returns whether a vCPU can start at `entry`.
    pub(super) fn is_entry(&self, entry: Ipa) -> bool {
        entry.is_aligned(4) && (self.ram().contains(entry, 4) || self.is_firmware(entry))
    }

    /// Starts another vCPU for PSCI CPU_ON, which the table of CPUs has allowed. The caller holds the lock of
    /// `core`.
    pub(super) fn start_vcpu(&self, vcpu: usize, entry: u64, context: u64) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            self.inside.fetch_or(1 << vcpu, Ordering::AcqRel);
            cpu.order_start(entry, context);
            gic::kick(cpu);
        }
    }

    /// On `cpu`: prepares it for the first entry of its vCPU. Returns false if the vCPU must not enter.
    pub(super) fn vcpu_entered(&self, cpu: &Cpu) -> bool {
        let vcpu = cpu.vcpu();
        let alone = {
            let mut core = self.core.lock();
            if self.inside.load(Ordering::Acquire) & 1 << vcpu == 0 {
                return false;
            }
            core.cpus.entered(vcpu);
            core.cpus.count_on() == 1
        };
        vcpu::reset(
            cpu_state::Owner::Zone,
            self.vttbr,
            machine::vcpu_mpidr(vcpu),
            self.counter_offset.load(Ordering::Acquire),
        );
        // Until this vCPU turns another on; no other can.
        cpu.trap_tlbi(alone);
        // The VMID may have been another zone's. On all CPUs and after the count: the accesses of a vCPU that
        // turned this one on and itself off are complete from here on.
        arch::tlbi_vmalls12e1is();
        firmware::reset_cpu();
        gic::reset_private(cpu, TIMERS);
        gic::clear_list_registers();
        let kicks = gic::with_list_registers(|list| self.gic.lock().unpark(vcpu, list));
        self.request_flush(kicks);
        true
    }

    /// On `cpu`, which idles from now on: ends its vCPU. This is its last access to the zone.
    pub(super) fn vcpu_left(&self, cpu: &Cpu) {
        let vcpu = cpu.vcpu();
        let bit = 1 << vcpu;
        if self.inside.load(Ordering::Acquire) & bit == 0 {
            return;
        }
        if let Some(esr) = vcpu::quiesce() {
            self.crash(vcpu, &Crash { esr, elr: 0, far: 0 });
        }
        let kicks = gic::with_list_registers(|list| self.gic.lock().park(vcpu, list));
        gic::reset_private(cpu, 0);
        gic::clear_list_registers();
        arch::tlbi_vmalls12e1is();
        self.request_flush(kicks);
        let mut core = self.core.lock();
        self.paused.fetch_and(!bit, Ordering::AcqRel);
        // It turned itself off and another vCPU has turned it on again: its start is still ordered, if the
        // zone goes on.
        let on_again = core.cpus.state(vcpu) == Some(CpuState::OnPending);
        if on_again && (core.state == ZoneState::Running || self.is_pausing()) {
            cpu.withdraw_stop();
        } else {
            cpu.withdraw_orders();
            self.inside.fetch_and(!bit, Ordering::AcqRel);
        }
        self.finish_transition(&mut core);
    }

    /// Completes a stop once no vCPU is inside, or a pause once all that are inside wait.
    fn finish_transition(&self, core: &mut Core) {
        if core.state != ZoneState::Stopping {
            return;
        }
        let inside = self.inside.load(Ordering::Acquire);
        if self.is_pausing() {
            if inside & !self.paused.load(Ordering::SeqCst) == 0 {
                self.set_state(core, ZoneState::Paused, StopReason::None);
                self.send_event(Entry::Zone);
            }
        } else if inside == 0 {
            self.stopped(core);
        }
    }

    /// Completes a stop or crash and sends the event.
    fn stopped(&self, core: &mut Core) {
        core.cpus.all_off();
        let reason = core.reason;
        let state = if reason == StopReason::Fault {
            ZoneState::Crashed
        } else {
            ZoneState::Stopped
        };
        self.set_state(core, state, reason);
        info!("{self} {state:?}: {reason:?}");
        self.send_event(Entry::Zone);
    }

    /// Begins a stop that the daemon asks for.
    pub fn stop(&self) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        match core.state {
            ZoneState::Running | ZoneState::Paused | ZoneState::Stopping => {
                self.begin_stop(&mut core, StopReason::Requested);
                Ok(())
            }
            state => Err((CommandStatus::WrongState, state as u64)),
        }
    }

    /// Orders every vCPU inside to leave. The first reason counts.
    pub(super) fn begin_stop(&self, core: &mut Core, reason: StopReason) {
        let stopping = core.state == ZoneState::Stopping && !self.is_pausing();
        if stopping {
            return;
        }
        self.pausing.store(false, Ordering::Release);
        self.set_state(core, ZoneState::Stopping, reason);
        let inside = self.inside.load(Ordering::Acquire);
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            if inside & 1 << vcpu != 0 {
                cpu.order_stop();
                gic::kick(cpu);
            }
        }
        self.finish_transition(core);
    }

    /// Begins a pause: all vCPUs inside are to wait at EL2.
    pub fn pause(&self) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        if core.state != ZoneState::Running {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        core.paused_at = sysreg::read!("cntpct_el0");
        self.pausing.store(true, Ordering::SeqCst);
        self.set_state(&mut core, ZoneState::Stopping, StopReason::None);
        let inside = self.inside.load(Ordering::Acquire);
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            if inside & 1 << vcpu != 0 {
                gic::kick(cpu);
            }
        }
        // vCPUs that have not seen the last resume yet still wait and will not report again.
        self.finish_transition(&mut core);
        Ok(())
    }

    /// Ends a pause. The virtual counter does not include it.
    pub fn resume(&self) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        if !self.is_pausing() {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        let paused = sysreg::read!("cntpct_el0").wrapping_sub(core.paused_at);
        self.counter_offset.fetch_add(paused, Ordering::AcqRel);
        self.set_state(&mut core, ZoneState::Running, StopReason::None);
        self.pausing.store(false, Ordering::Release);
        for cpu in &self.cpus {
            gic::kick(cpu);
        }
        Ok(())
    }

    /// Returns whether vCPUs are to wait at EL2.
    pub fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Reports that a vCPU waits at EL2. The last one completes the pause.
    pub(super) fn vcpu_paused(&self, vcpu: usize) {
        let bit = 1 << vcpu;
        if self.paused.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        self.finish_transition(&mut self.core.lock());
    }

    /// Reports that a vCPU that may have waited enters its guest again. Returns false if it must not, because
    /// of another pause.
    ///
    /// [`Self::pause`] sets `pausing` and then reads `paused`; this clears the vCPU's bit in `paused` and
    /// then reads `pausing`. In sequential consistency one of the two sees the other's store.
    #[inline]
    pub(super) fn vcpu_continues(&self, vcpu: usize) -> bool {
        let bit = 1 << vcpu;
        if self.paused.load(Ordering::Acquire) & bit == 0 {
            return true;
        }
        self.paused.fetch_and(!bit, Ordering::SeqCst);
        if self.pausing.load(Ordering::SeqCst) {
            return false;
        }
        sysreg::write!("cntvoff_el2", self.counter_offset.load(Ordering::Acquire));
        arch::isb();
        true
    }

    /// Returns what the daemon's `ZoneInfo` command reports.
    pub fn info(&self) -> ZoneInfo {
        let core = self.core.lock();
        let mut cpus = [0; MAX_VCPUS];
        for (slot, cpu) in cpus.iter_mut().zip(&self.cpus) {
            *slot = cpu.mpidr().bits();
        }
        ZoneInfo {
            name: self.name,
            state: core.state as u32,
            reason: core.reason as u32,
            vcpus: self.cpus.len() as u32,
            vcpus_on: core.cpus.count_on() as u32,
            blocks: self.blocks.load(Ordering::Acquire),
            fault: core.fault,
            cpus,
        }
    }
}
