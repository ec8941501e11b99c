//! A zone as the owner of a CPU.

use core::sync::atomic::Ordering;

use log::warn;
use ringvisor::abi::StopReason;
use ringvisor::addr::Ipa;
use ringvisor::syndrome::Width;
use ringvisor::vgic::SgiRequest;

use super::Zone;
use super::interrupts::TIMERS;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::cpu::{Cpu, State};
use crate::el2::mm::frames::Tables;
use crate::el2::owner::{AfterCall, Crash, Owner, TrapOutcome};
use crate::el2::{gic, psci};

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
