//! The atomics of everything that is shared between CPUs or with the daemon: `core`'s, or loom's when a loom
//! test explores all interleavings (`--cfg loom`).
//!
//! [`ordering`] and [`mutated`] mark the points on which correctness depends. In loom builds the environment
//! variable `RING_MUTATION` names one of them, which is then weakened or left out, to prove that a test
//! notices. In all other builds they have no effect.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Returns `ordering`, or `Relaxed` in a run that mutates `name`.
#[inline(always)]
pub fn ordering(name: &str, ordering: Ordering) -> Ordering {
    if mutated(name) {
        Ordering::Relaxed
    } else {
        ordering
    }
}

/// Returns whether this run mutates `name`: never.
#[cfg(not(loom))]
#[inline(always)]
pub fn mutated(_name: &str) -> bool {
    false
}

/// Whether this run mutates `name`.
#[cfg(loom)]
pub fn mutated(name: &str) -> bool {
    extern crate std;
    static MUTATION: std::sync::OnceLock<Option<std::string::String>> = std::sync::OnceLock::new();
    MUTATION
        .get_or_init(|| std::env::var("RING_MUTATION").ok())
        .as_deref()
        == Some(name)
}
