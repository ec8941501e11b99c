//! The first request of a queue: the end of a pause, for those who measure how long it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ringblk::QueueStats;

/// Says once, in the log, that a queue's first request has completed: after a take-over, that its disk is served.
pub(crate) struct FirstRequest {
    zone: u8,
    slot: u8,
    queue: usize,
    begin: Instant,
    stats: OnceLock<Arc<QueueStats>>,
    said: AtomicBool,
}

impl FirstRequest {
    /// A queue that is being set up.
    pub fn new(zone: u8, slot: u8, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            zone,
            slot,
            queue,
            begin: Instant::now(),
            stats: OnceLock::new(),
            said: AtomicBool::new(false),
        })
    }

    /// Its counters, once there are any.
    pub fn watch(&self, stats: &Arc<QueueStats>) {
        let _ = self.stats.set(stats.clone());
    }

    /// Something was published: a request, or after a take-over maybe nothing.
    pub fn published(&self) {
        if self.said.load(Ordering::Relaxed) {
            return;
        }
        let done = |stats: &Arc<QueueStats>| stats.reads.get() + stats.writes.get() + stats.flushes.get() > 0;
        if self.stats.get().is_some_and(done) {
            self.said.store(true, Ordering::Relaxed);
            let (zone, slot, queue) = (self.zone, self.slot, self.queue);
            tracing::info!(zone, slot, queue, after = ?self.begin.elapsed(), "first request completed");
        }
    }
}
