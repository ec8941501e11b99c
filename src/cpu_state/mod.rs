//! The state that EL1 and EL0 have in a CPU, from one owner of the CPU to the next.
//!
//! [`change`] is the sequence at a change of owner: what the last one left running ends ([`quiesce`]), EL2's
//! control registers are set for the new one ([`controls`]), and every register that either may write is
//! reset ([`reset`]). [`view`] is what an owner sees of the CPU's features. EL2 executes all of it through
//! [`Registers`]; tests on the host execute it on a model of the registers with every feature, and with each
//! absent. `docs/cpu-state.md` lists the state, feature by feature.
//!
//! # How to add a feature
//! Without a change here a zone does not see it, and it traps if the architecture lets it. To give it to
//! zones: [`Feature`] and its rule in `features.rs`; its registers in `registers.rs`; their reset values in
//! `reset.rs`; the bits that enable it in `controls.rs`; the field's mask in `view.rs`; rows in
//! `tests/state.rs` (the registers, and what traps them) and in `docs/cpu-state.md`.
//!
//! EL2 accesses no register that firmware may keep from it but those that Linux accesses at EL2
//! (Documentation/arch/arm64/booting.rst, `el2_setup.h`): firmware that starts Linux allows them.

pub mod controls;
mod features;
pub mod id;
pub mod registers;
mod reset;
#[cfg(test)]
mod tests;
pub mod view;

pub use features::{Feature, Features};
pub use reset::{change, initialise, quiesce};

/// For whom a CPU's control registers are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Root, which may use what does not endanger isolation.
    Root,
    /// A zone, which may use what is reset at a change of owner.
    Zone,
}

/// The stage 2 and identity of an owner.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// MPIDR_EL1 as the owner reads it.
    pub mpidr: u64,
    /// CNTVOFF_EL2, in ticks.
    pub counter_offset: u64,
}

/// The system registers of a CPU, and the instructions that order accesses to them.
pub trait Registers {
    /// Reads the register with this encoding.
    fn read<const REGISTER: u16>(&self) -> u64;

    /// Writes the register with this encoding.
    fn write<const REGISTER: u16>(&mut self, value: u64);

    /// Reads the identification register at this position ([`id::index`]).
    fn id(&self, register: usize) -> u64;

    /// Instruction synchronization barrier.
    fn isb(&mut self);

    /// PSB CSYNC, and a DSB: the profiling buffer is written.
    fn drain_profiling_buffer(&mut self);

    /// TSB CSYNC, and a DSB: the trace buffer is written.
    fn drain_trace_buffer(&mut self);

    /// BRB IALL: invalidates all branch records.
    fn invalidate_branch_records(&mut self);

    /// Zeroes value and control of breakpoints 0 to `breakpoints`, and of watchpoints 0 to `watchpoints`.
    /// Both are at most 15.
    fn zero_breakpoints(&mut self, breakpoints: u64, watchpoints: u64);

    /// Zeroes the SIMD and, if `sve`, the predicate and first-fault registers. Streaming mode is off.
    fn zero_vectors(&mut self, sve: bool);
}
