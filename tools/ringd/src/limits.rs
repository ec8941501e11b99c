//! What the daemon withheld from guests that asked for too much; `ringctl stats` shows it beside the
//! reactor's counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Log lines that were left out ([`crate::log`]).
pub static LOG_LINES: AtomicU64 = AtomicU64::new(0);
/// Restarts of zones that were delayed ([`crate::zone`]).
pub static RESTARTS: AtomicU64 = AtomicU64::new(0);

/// Counts one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Returns the counters by name.
pub fn counters() -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("log_lines_left_out", &LOG_LINES),
        ("restarts_delayed", &RESTARTS),
    ]
    .into_iter()
    .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
}
