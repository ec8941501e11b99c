//! Counters of a queue: written by its reactor's thread alone, read by anyone at any time, without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only for the queue's own thread, which is why no atomic addition is needed.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    pub(crate) fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a queue has done since it was made.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Reads completed with OK.
    pub reads: Counter,
    /// Writes completed with OK.
    pub writes: Counter,
    /// Flushes completed with OK.
    pub flushes: Counter,
    /// Other requests completed with OK.
    pub others: Counter,
    /// Requests completed with IOERR.
    pub errors: Counter,
    /// Requests completed with UNSUPP.
    pub unsupported: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Bytes written.
    pub bytes_written: Counter,
    /// Times that requests were found in the available ring.
    pub batches: Counter,
    /// Requests in those batches.
    pub batched: Counter,
    /// Most requests in flight at once.
    pub max_depth: Counter,
    /// Operations given to the engine.
    pub operations: Counter,
    /// Operations that were given again: short transfers, EINTR, EAGAIN.
    pub retries: Counter,
    /// Publications of the used index.
    pub publications: Counter,
    /// Interrupts raised.
    pub interrupts: Counter,
    /// Publications after which the driver wanted none.
    pub interrupts_suppressed: Counter,
    /// Notifications that found nothing.
    pub spurious_kicks: Counter,
    /// Requests run again after a restart of the daemon.
    pub restarted: Counter,
}
