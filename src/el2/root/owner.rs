//! Root as the owner of a CPU: its accesses to what EL2 emulates for it (the control device, the distributor
//! and the redistributors), its interrupts (the GIC and the list registers of its CPUs; vCPU numbers of root
//! are CPU numbers), its CPUs, which it shares with zones, and the machine's power state, which the firmware
//! changes.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use log::{info, warn};
use ringvisor::abi::{BAR_SIZE, ROOT_ZONE};
use ringvisor::addr::Ipa;
use ringvisor::cpu_state;
use ringvisor::firmware::Caller;
use ringvisor::machine::ECAM_SIZE;
use ringvisor::psci::{Error, Mpidr};
use ringvisor::syndrome::Width;
use ringvisor::vgic::{Frame, Kicks, RootGic, SgiRequest};

use super::Root;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::arch::{self, vcpu};
use crate::el2::channel::function::config_write;
use crate::el2::control::bar_write;
use crate::el2::cpu::{self, Cpu, State};
use crate::el2::gic::{self, LocalShadow};
use crate::el2::owner::{AfterCall, Crash, Owner, TrapOutcome};
use crate::el2::psci::{self, System};
use crate::el2::zone::registry;
use crate::el2::{console, firmware};

/// Aborts of root that are logged one by one; the rest are only counted.
const LOGGED_ABORTS: u32 = 8;

impl Root {
    /// Prepares `cpu` for root's vCPU; `alone` if no other CPU is root's yet, see [`Cpu::trap_tlbi`].
    pub fn prepare(&self, cpu: &Cpu, alone: bool) {
        vcpu::reset(cpu_state::Owner::Root, self.vttbr, cpu.mpidr().bits(), 0);
        cpu.trap_tlbi(alone);
        arch::tlbi_alle1();
        firmware::reset_cpu();
        gic::reset_private(cpu, 0);
        gic::clear_list_registers();
        let kicks =
            gic::with_list_registers(|list| self.gic.lock().unpark(cpu.index, list, &mut gic::Physical));
        self.request_flush(kicks);
    }
}

impl Owner for Root {
    fn prepare_vcpu(&self, cpu: &'static Cpu) -> bool {
        self.prepare(cpu, false);
        true
    }

    fn leave(&self, cpu: &'static Cpu) {
        info!("CPU {} offlined by root", cpu.index);
        if let Some(esr) = vcpu::quiesce() {
            warn!(
                "SError of root pending on CPU {} as it went offline, ESR {esr:#x}",
                cpu.index
            );
        }
        let kicks =
            gic::with_list_registers(|list| self.gic.lock().park(cpu.index, list, &mut gic::Physical));
        self.request_flush(kicks);
        gic::clear_list_registers();
        gic::reset_private(cpu, 0);
        cpu.set_state(State::Parked);
        cpu.release();
    }

    #[inline]
    fn may_enter(&self, _vcpu: usize) -> bool {
        true
    }

    #[inline]
    fn flush_interrupts(&self, vcpu: usize) {
        if self.flush_requests.take(vcpu) {
            self.with_gic(cpu::this(), |_, _| (Kicks::NONE, ()));
        }
    }

    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        self.emulate(ipa, width, stored)
    }

    fn is_mapped_for_reads(&self, _ipa: Ipa) -> bool {
        false
    }

    fn count_abort(&self, ipa: Ipa, pc: u64) {
        if self.aborts.fetch_add(1, Ordering::Relaxed) < LOGGED_ABORTS {
            warn!("root: no access to {ipa} (pc {pc:#x}): external abort");
        }
    }

    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
        psci::call(self, vcpu, frame)
    }

    fn send_sgi(&self, vcpu: usize, request: &SgiRequest) {
        self.with_gic(cpu::this(), |gic, _| (gic.send_sgi(vcpu, request), ()));
    }

    fn deactivate(&self, vcpu: usize, intid: u32) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().deactivate(vcpu, intid, list));
        self.request_flush(kicks);
    }

    fn interrupt(&self, vcpu: usize, intid: u32) -> bool {
        if !self.with_gic(cpu::this(), |gic, _| gic.inject_physical(vcpu, intid)) {
            gic::deactivate(intid);
        }
        true
    }

    fn handle_maintenance_interrupt(&self, vcpu: usize) {
        let kicks = gic::with_list_registers(|list| self.gic.lock().sync(vcpu, list));
        self.request_flush(kicks);
    }

    fn crash(&self, _vcpu: usize, _crash: &Crash) -> bool {
        false
    }
}

impl Root {
    /// Requests a flush of list registers that are out of date, and kicks their CPUs.
    pub(super) fn request_flush(&self, kicks: Kicks) {
        for index in self.flush_requests.raise(kicks).iter() {
            if let Some(cpu) = cpu::all().get(index) {
                gic::kick(cpu);
            }
        }
    }

    /// Changes root's GIC and refills this CPU's list registers.
    pub(super) fn with_gic<T>(
        &self,
        cpu: &Cpu,
        change: impl FnOnce(&mut RootGic, &mut LocalShadow<'_>) -> (Kicks, T),
    ) -> T {
        let (kicks, result) = gic::with_list_registers(|list| {
            let mut gic = self.gic.lock();
            let (kicks, result) = change(&mut gic, list);
            (kicks | gic.flush(cpu.index, list), result)
        });
        self.request_flush(kicks.without(cpu.index));
        result
    }

    /// Routes an SPI, which arrived at a CPU that has changed hands meanwhile, to a CPU of root's.
    pub fn reroute(&self, intid: u32) {
        if let Some(cpu) = cpu::all()
            .iter()
            .find(|cpu| cpu.owner() == ROOT_ZONE && cpu.is_running())
        {
            self.gic.lock().reroute(intid, cpu.index, &mut gic::Physical);
            gic::set_pending(intid);
        }
    }
}

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

impl Root {
    /// Emulates an access that stage 2 did not permit. `ipa` is aligned to `width`. Not inlined, for a zone's
    /// accesses are more frequent.
    #[inline(never)]
    pub(super) fn emulate(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        let at = ipa.0;
        if (self.bar..self.bar + BAR_SIZE).contains(&at) {
            return match stored {
                Some(value) if !bar_write((at - self.bar) as u32, width, value) => TrapOutcome::Retry,
                _ => TrapOutcome::Done(0),
            };
        }
        if (self.ecam..self.ecam + ECAM_SIZE).contains(&at) {
            if let Some(value) = stored {
                config_write((at - self.ecam) as u32, width, value);
            }
            return TrapOutcome::Done(u64::MAX);
        }
        if (self.distributor.0..self.distributor.1).contains(&at) {
            let offset = (at - self.distributor.0) as u32;
            return self.gic_access(Frame::Distributor, offset, width, stored);
        }
        match gic::redistributor_at(at) {
            Some((target, offset)) => self.gic_access(Frame::Redistributor(target), offset, width, stored),
            None => TrapOutcome::Abort,
        }
    }

    fn gic_access(&self, frame: Frame, offset: u32, width: Width, stored: Option<u64>) -> TrapOutcome {
        let (this, bytes) = (cpu::this(), width.bytes() as u32);
        let (disabled, value) = self.with_gic(this, |gic, list| {
            let (kicks, was_on) = (gic.sync(this.index, list), gic.is_on());
            let (more, value) = gic.access(this.index, frame, offset, bytes, stored, &mut gic::Physical);
            (kicks | more, (was_on && !gic.is_on(), value))
        });
        if disabled {
            kernel_replaced();
        }
        value.map_or(TrapOutcome::Retry, TrapOutcome::Done)
    }
}

/// Called when root disables its distributor: a kernel that another one has started, as by kexec, sets up its
/// GIC. It takes the memory of zones and the shared page for its own, so if zones exist the machine is reset,
/// as by any other restart of root.
#[cold]
#[inline(never)]
fn kernel_replaced() {
    let zones = registry::count();
    if zones == 0 {
        return;
    }
    warn!(
        "root's kernel was replaced while {zones} zones exist, whose memory it would use: the machine is reset"
    );
    console::flush();
    // Returns only if the firmware refuses.
    let _ = smccc::psci::system_reset::<smccc::Smc>();
}
