//! Root as the owner of a CPU.

use core::sync::atomic::Ordering;

use log::{info, warn};
use ringvisor::addr::Ipa;
use ringvisor::cpu_state;
use ringvisor::syndrome::Width;
use ringvisor::vgic::{Kicks, SgiRequest};

use super::Root;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::arch::{self, vcpu};
use crate::el2::cpu::{self, Cpu, State};
use crate::el2::owner::{AfterCall, Crash, Owner, TrapOutcome};
use crate::el2::{firmware, gic, psci};

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
