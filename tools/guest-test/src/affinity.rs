//! The affinity of the calling CPU.

use core::arch::asm;

/// Returns the number of the calling CPU, its lowest affinity field: a zone has at most 16 CPUs, all in one
/// cluster.
pub fn current() -> usize {
    (mpidr() & 0xf) as usize
}

/// Returns the affinity fields of MPIDR_EL1.
pub fn mpidr() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value & 0xff_00ff_ffff
}
