//! The owner of a CPU, found by its number and dispatched statically.

use ringvisor::abi::ROOT_ZONE;
use ringvisor::addr::Ipa;
use ringvisor::syndrome::Width;
use ringvisor::vgic::SgiRequest;

use super::arch::frame::TrapFrame;
use super::cpu::Cpu;
use super::owner::{AfterCall, Crash, Owner, TrapOutcome};
use super::root::Root;
use super::zone::Zone;

/// Root or a zone. An enum and not a `dyn Owner`: calls can be inlined, and `tests/panics.sh` can follow
/// them.
#[derive(Clone, Copy)]
pub enum Current {
    /// Root.
    Root(&'static Root),
    /// A zone.
    Zone(&'static Zone),
}

impl Current {
    /// Returns the owner of the vCPU that `cpu` runs. An idle CPU has one only if that is root: a zone may be
    /// destroyed while its CPUs are idle.
    #[inline]
    pub fn running_on(cpu: &Cpu) -> Option<Self> {
        if cpu.owner() == ROOT_ZONE {
            return Root::get().map(Self::Root);
        }
        if cpu.is_running() {
            return Zone::of(cpu).map(Self::Zone);
        }
        None
    }

    /// Returns the owner of `cpu`, which has been ordered to start or stop: a zone is not destroyed before
    /// that is done.
    pub fn ordered_on(cpu: &Cpu) -> Option<Self> {
        if cpu.owner() == ROOT_ZONE {
            return Root::get().map(Self::Root);
        }
        Zone::of(cpu).map(Self::Zone)
    }
}

/// Calls a method of whichever owner it is.
macro_rules! dispatch {
    ($current:expr, $method:ident $arguments:tt) => {
        match $current {
            Current::Root(root) => root.$method $arguments,
            Current::Zone(zone) => zone.$method $arguments,
        }
    };
}

impl Owner for Current {
    fn prepare_vcpu(&self, cpu: &'static Cpu) -> bool {
        dispatch!(self, prepare_vcpu(cpu))
    }

    fn leave(&self, cpu: &'static Cpu) {
        dispatch!(self, leave(cpu));
    }

    #[inline]
    fn may_enter(&self, vcpu: usize) -> bool {
        dispatch!(self, may_enter(vcpu))
    }

    #[inline]
    fn flush_interrupts(&self, vcpu: usize) {
        dispatch!(self, flush_interrupts(vcpu));
    }

    #[inline]
    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        dispatch!(self, access(ipa, width, stored))
    }

    fn is_shown(&self, ipa: Ipa) -> bool {
        dispatch!(self, is_shown(ipa))
    }

    fn count_abort(&self, ipa: Ipa, pc: u64) {
        dispatch!(self, count_abort(ipa, pc));
    }

    #[inline]
    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall {
        dispatch!(self, call(vcpu, frame))
    }

    #[inline]
    fn send_sgi(&self, vcpu: usize, request: &SgiRequest) {
        dispatch!(self, send_sgi(vcpu, request));
    }

    #[inline]
    fn deactivate(&self, vcpu: usize, intid: u32) {
        dispatch!(self, deactivate(vcpu, intid));
    }

    #[inline]
    fn interrupt(&self, vcpu: usize, intid: u32) -> bool {
        dispatch!(self, interrupt(vcpu, intid))
    }

    #[inline]
    fn maintain_list_registers(&self, vcpu: usize) {
        dispatch!(self, maintain_list_registers(vcpu));
    }

    fn crash(&self, vcpu: usize, crash: &Crash) -> bool {
        dispatch!(self, crash(vcpu, crash))
    }
}
