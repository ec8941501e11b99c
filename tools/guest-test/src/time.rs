//! The generic timer as clock.

use core::arch::asm;

/// Returns the virtual counter, ordered after preceding instructions.
pub fn now() -> u64 {
    let value: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, preserves_flags)) }
    value
}

/// Returns the physical counter, ordered after preceding instructions.
pub fn now_physical() -> u64 {
    let value: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) value, options(nostack, preserves_flags)) }
    value
}

/// Returns the frequency of the counter in Hz.
pub fn frequency() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Returns the counts of so many milliseconds.
pub fn milliseconds(count: u64) -> u64 {
    frequency() * count / 1000
}

/// Busy-waits.
pub fn sleep(ms: u64) {
    let end = now() + milliseconds(ms);
    while now() < end {
        core::hint::spin_loop();
    }
}

/// Waits until `condition` holds, at most `ms` milliseconds. Returns whether it does.
pub fn wait(ms: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = now() + milliseconds(ms);
    loop {
        if condition() {
            return true;
        }
        if now() >= end {
            return false;
        }
        core::hint::spin_loop();
    }
}
