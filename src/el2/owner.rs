//! What differs between root and a zone on a CPU that one of them owns: [`Owner`], which both implement.

use core::ops::Deref;

use ringvisor::addr::Ipa;
use ringvisor::syndrome::Width;
use ringvisor::vgic::SgiRequest;

use super::arch::frame::TrapFrame;
use super::cpu::Cpu;

/// How an access that stage 2 did not permit ends.
pub enum TrapOutcome {
    /// It is emulated: the value of a load; ignored for a store.
    Done(u64),
    /// The instruction is executed again.
    Retry,
    /// Nothing is at the address: an external abort is injected.
    Abort,
}

/// What follows a hypercall.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AfterCall {
    /// The vCPU continues, with the result in x0.
    Return,
    /// The vCPU has turned itself off: its CPU calls [`Owner::leave`] and idles.
    Leave,
}

/// One of the two owners. An enum and not a `dyn Owner`: calls can be inlined, and `tests/panics.sh` can
/// follow them.
#[derive(Clone, Copy)]
pub enum RootOrZone<R, Z> {
    /// Root.
    Root(R),
    /// A zone.
    Zone(Z),
}

/// Where and why a vCPU cannot continue.
pub struct Crash {
    /// ESR_EL2.
    pub esr: u64,
    /// ELR_EL2.
    pub elr: u64,
    /// FAR_EL2.
    pub far: u64,
}

/// Declares [`Owner`], and implements it for [`RootOrZone`] by a match on the two in each method.
macro_rules! owner {
    ($($(#[$doc:meta])* fn $method:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        /// The owner of a CPU. All methods are called on the CPU in question; `vcpu` is the vCPU that it
        /// runs.
        pub trait Owner {
            $($(#[$doc])* fn $method(&self $(, $argument: $type)*) $(-> $result)?;)*
        }

        impl<R: Deref<Target: Owner>, Z: Deref<Target: Owner>> Owner for RootOrZone<R, Z> {
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

owner! {
    /// Prepares `cpu` for the first entry of its vCPU: EL1 and stage 2 registers, list registers. Returns
    /// false if the vCPU must not start.
    fn prepare_vcpu(&self, cpu: &'static Cpu) -> bool;

    /// Ends the vCPU of `cpu`, which idles from now on. The CPU does not access its owner afterwards.
    fn leave(&self, cpu: &'static Cpu);

    /// Returns whether the vCPU may enter its guest. If not, it waits at EL2 and asks again after an
    /// interrupt.
    fn may_enter(&self, vcpu: usize) -> bool;

    /// Refills the list registers if another CPU has changed what belongs in them.
    fn flush_interrupts(&self, vcpu: usize);

    /// Emulates a load, or a store of `stored`, that stage 2 did not permit. `ipa` is aligned to `width`.
    fn access(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome;

    /// Returns whether a page that [`Self::access`] emulates is mapped for loads at `ipa` by now.
    fn is_mapped_for_reads(&self, ipa: Ipa) -> bool;

    /// Counts an external abort that is injected for an access to `ipa` at `pc`. The first ones are logged.
    fn count_abort(&self, ipa: Ipa, pc: u64);

    /// Executes an HVC or SMC. The result is in x0 of `frame`.
    fn call(&self, vcpu: usize, frame: &mut TrapFrame) -> AfterCall;

    /// Sends what a store to one of the ICC_SGI registers asks for.
    fn send_sgi(&self, vcpu: usize, request: &SgiRequest);

    /// Emulates a store to ICC_DIR_EL1.
    fn deactivate(&self, vcpu: usize, intid: u32);

    /// Delivers a physical interrupt, which EL2 has acknowledged. Returns false if it is not the owner's.
    fn interrupt(&self, vcpu: usize, intid: u32) -> bool;

    /// Handles a maintenance interrupt of the list registers.
    fn handle_maintenance_interrupt(&self, vcpu: usize);

    /// Ends the zone because its vCPU cannot continue. Returns false for root, which nothing but a reset can
    /// end.
    fn crash(&self, vcpu: usize, crash: &Crash) -> bool;
}
