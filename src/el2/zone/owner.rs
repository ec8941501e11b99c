//! A zone as the owner of a CPU.

use ringvisor::addr::Ipa;
use ringvisor::syndrome::Width;
use ringvisor::vgic::SgiRequest;

use super::Zone;
use super::interrupts::TIMERS;
use crate::el2::arch::frame::TrapFrame;
use crate::el2::cpu::{Cpu, State};
use crate::el2::gic;
use crate::el2::owner::{AfterCall, Crash, Owner, TrapOutcome};

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
        self.flush(vcpu);
    }

    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        self.emulate(ipa, width, stored)
    }

    fn is_shown(&self, ipa: Ipa) -> bool {
        self.is_mapped(ipa)
    }

    fn count_abort(&self, ipa: Ipa, pc: u64) {
        self.log_abort(ipa, pc);
    }

    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
        self.psci_call(vcpu, frame)
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
        let is_timer = intid < 32 && TIMERS & 1 << intid != 0;
        if is_timer {
            self.timer_interrupt(vcpu, intid);
        }
        is_timer
    }

    fn maintain_list_registers(&self, vcpu: usize) {
        self.sync(vcpu);
    }

    fn crash(&self, vcpu: usize, crash: &Crash) -> bool {
        self.vcpu_crashed(vcpu, crash);
        true
    }
}
