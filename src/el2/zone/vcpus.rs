//! The life of a zone's vCPUs: start, pause, stop, crash.

use ringvisor::psci::cpus::CpuState;

use super::*;

impl Zone {
    /// Starts vCPU 0 at `entry` with `x0`; everything is as after power-on.
    pub fn start(&self, entry: Ipa, x0: u64) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        let at_rest = matches!(
            core.state,
            ZoneState::Created | ZoneState::Stopped | ZoneState::Crashed
        );
        if !at_rest || self.inside.load(Ordering::Acquire) != 0 {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        if !self.ram().contains(entry, 4) || !entry.is_aligned(4) {
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
        info!("zone {} \"{}\" starts at {entry}", self.number, self.name());
        first.start(entry.0, x0);
        Ok(())
    }

    /// Starts another vCPU on behalf of PSCI CPU_ON, which the table has allowed. Under the lock of `core`.
    pub(super) fn start_vcpu(&self, vcpu: usize, entry: u64, context: u64) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            self.inside.fetch_or(1 << vcpu, Ordering::AcqRel);
            cpu.start(entry, context);
        }
    }

    /// On the vCPU's own physical CPU, before it enters the guest for the first time. False if it must not.
    pub fn prepare_vcpu(&self, vcpu: usize) -> bool {
        let alone = {
            let mut core = self.core.lock();
            if self.inside.load(Ordering::Acquire) & 1 << vcpu == 0 {
                return false;
            }
            core.cpus.entered(vcpu);
            core.cpus.count_on() == 1
        };
        // Until it turns another on, which it alone can do.
        cpu::this().trap_tlbi(alone);
        vcpu::reset(
            self.vttbr,
            machine::vcpu_mpidr(vcpu),
            self.counter_offset.load(Ordering::Acquire),
        );
        // The number may have been another zone's. On all CPUs and after the count: another vCPU that turned this one on and
        // itself off has its last accesses behind it from here on.
        arch::tlbi_vmalls12e1is();
        gic::reset_private(cpu::this(), TIMERS);
        gic::clear_list_registers();
        let kicks = gic::with_list_registers(|list| self.gic.lock().unpark(vcpu, list));
        self.ring(kicks);
        true
    }

    /// On its own physical CPU, which idles now: the vCPU is gone. The last thing its CPU does with the zone.
    pub fn vcpu_left(&self, vcpu: usize) {
        let bit = 1 << vcpu;
        if self.inside.load(Ordering::Acquire) & bit == 0 {
            return;
        }
        let kicks = gic::with_list_registers(|list| self.gic.lock().park(vcpu, list));
        gic::reset_private(cpu::this(), 0);
        gic::clear_list_registers();
        arch::tlbi_vmalls12e1is();
        self.ring(kicks);
        let mut core = self.core.lock();
        self.paused.fetch_and(!bit, Ordering::AcqRel);
        // It turned itself off and another vCPU has turned it on again: it will not be gone for long, if the zone goes on.
        let on_again = core.cpus.state(vcpu) == Some(CpuState::OnPending);
        if on_again && (core.state == ZoneState::Running || self.pausing()) {
            cpu::this().forget_stop();
        } else {
            cpu::this().forget_orders();
            self.inside.fetch_and(!bit, Ordering::AcqRel);
        }
        self.settle(&mut core);
    }

    /// Completes a stop or pause once no vCPU stands in its way.
    fn settle(&self, core: &mut Core) {
        if core.state != ZoneState::Stopping {
            return;
        }
        let inside = self.inside.load(Ordering::Acquire);
        if self.pausing() {
            if inside & !self.paused.load(Ordering::SeqCst) == 0 {
                self.set_state(core, ZoneState::Paused, StopReason::None);
                self.tell(Entry::Zone);
            }
        } else if inside == 0 {
            self.stopped(core);
        }
    }

    /// No vCPU is left: tells why.
    fn stopped(&self, core: &mut Core) {
        core.cpus.all_off();
        let reason = core.reason;
        let state = if reason == StopReason::Fault {
            ZoneState::Crashed
        } else {
            ZoneState::Stopped
        };
        self.set_state(core, state, reason);
        info!("zone {} \"{}\" {state:?}: {reason:?}", self.number, self.name());
        self.tell(Entry::Zone);
    }

    /// Root wants it stopped.
    pub fn stop_requested(&self) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        match core.state {
            ZoneState::Running | ZoneState::Paused | ZoneState::Stopping => {
                self.begin_stop(&mut core, StopReason::Requested);
                Ok(())
            }
            state => Err((CommandStatus::WrongState, state as u64)),
        }
    }

    /// Asks every vCPU inside to leave. The first reason counts.
    pub(super) fn begin_stop(&self, core: &mut Core, reason: StopReason) {
        let stopping = core.state == ZoneState::Stopping && !self.pausing();
        if stopping {
            return;
        }
        self.pausing.store(false, Ordering::Release);
        self.set_state(core, ZoneState::Stopping, reason);
        let inside = self.inside.load(Ordering::Acquire);
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            if inside & 1 << vcpu != 0 {
                cpu.stop();
            }
        }
        self.settle(core);
    }

    /// A vCPU did what cannot be continued.
    pub fn crash(&self, vcpu: usize, esr: u64, elr: u64, far: u64) {
        warn!(
            "zone {} \"{}\": vCPU {vcpu} crashed: ESR {esr:#x}, ELR {elr:#x}, FAR {far:#x}",
            self.number,
            self.name()
        );
        let mut core = self.core.lock();
        core.fault = [esr, elr, far];
        self.begin_stop(&mut core, StopReason::Fault);
    }

    /// Holds all vCPUs at EL2.
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
        // vCPUs that have not noticed the last resume yet wait all along and would tell nobody.
        self.settle(&mut core);
        Ok(())
    }

    /// Lets them go on. The virtual counter has stood still.
    pub fn resume(&self) -> Result<(), Refusal> {
        let mut core = self.core.lock();
        if !self.pausing() {
            return Err((CommandStatus::WrongState, core.state as u64));
        }
        let slept = sysreg::read!("cntpct_el0").wrapping_sub(core.paused_at);
        self.counter_offset.fetch_add(slept, Ordering::AcqRel);
        self.set_state(&mut core, ZoneState::Running, StopReason::None);
        self.pausing.store(false, Ordering::Release);
        for cpu in &self.cpus {
            gic::kick(cpu);
        }
        Ok(())
    }

    /// Whether vCPUs are to stay at EL2.
    pub fn pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// A vCPU waits at EL2. The last one makes the zone paused.
    pub fn vcpu_paused(&self, vcpu: usize) {
        let bit = 1 << vcpu;
        if self.paused.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        self.settle(&mut self.core.lock());
    }

    /// A vCPU that may have waited goes back into the guest; false if it must not, because of another pause.
    ///
    /// [`Self::pause`] sets `pausing` and then counts `paused`, this clears its bit and then looks at `pausing`: in
    /// sequential consistency one of the two sees the other.
    pub fn vcpu_continues(&self, vcpu: usize) -> bool {
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

    /// The whole truth for the daemon.
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
