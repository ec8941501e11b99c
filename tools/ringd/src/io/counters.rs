//! [`RingCounters`]: what the reactor has taken off the zones' rings.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the reactor has taken off the zones' rings; written by its thread alone.
#[derive(Debug, Default)]
pub struct RingCounters {
    /// Rounds of the reactor.
    pub rounds: AtomicU64,
    /// Interrupts of the control device taken.
    pub wakeups: AtomicU64,
    /// Those after which no ring had an event.
    pub spurious_wakeups: AtomicU64,
    /// Times that busy polling before going to sleep found something.
    pub polled: AtomicU64,
    /// Times that it did not.
    pub polls_without_work: AtomicU64,
    /// Nanoseconds spent busy polling.
    pub polling_ns: AtomicU64,
    /// Events taken.
    pub entries: AtomicU64,
    /// Those that were notifications of queues.
    pub notifications: AtomicU64,
}

/// Adds to a counter that only this thread writes.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(count),
        Ordering::Relaxed,
    );
}
