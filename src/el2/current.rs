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

/// Implements [`Owner`] by a match on the two owners in each method.
macro_rules! dispatch {
    ($(fn $method:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        impl Owner for Current {
            $(
                #[inline]
                fn $method(&self $(, $argument: $type)*) $(-> $result)? {
                    match self {
                        Self::Root(root) => root.$method($($argument),*),
                        Self::Zone(zone) => zone.$method($($argument),*),
                    }
                }
            )*
        }
    };
}

dispatch! {
    fn prepare_vcpu(&self, cpu: &'static Cpu) -> bool;
    fn leave(&self, cpu: &'static Cpu);
    fn may_enter(&self, vcpu: usize) -> bool;
    fn flush_interrupts(&self, vcpu: usize);
    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome;
    fn is_mapped_for_reads(&self, ipa: Ipa) -> bool;
    fn count_abort(&self, ipa: Ipa, pc: u64);
    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall;
    fn send_sgi(&self, vcpu: usize, request: &SgiRequest);
    fn deactivate(&self, vcpu: usize, intid: u32);
    fn interrupt(&self, vcpu: usize, intid: u32) -> bool;
    fn handle_maintenance_interrupt(&self, vcpu: usize);
    fn crash(&self, vcpu: usize, crash: &Crash) -> bool;
}
