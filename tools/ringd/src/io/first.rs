//! The first request of a queue: the end of a pause, for those who measure how long it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ringblk::{BlockQueue, BlockStats};

/// Says once, in the log, that a queue's first request has completed: after a take-over, that its disk is served.
pub(crate) struct FirstRequest {
    zone: u8,
    slot: u8,
    queue: usize,
    begin: Instant,
    /// Its counters, and how many requests it had when it was set up.
    watched: OnceLock<(Arc<BlockStats>, u16)>,
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
            watched: OnceLock::new(),
            said: AtomicBool::new(false),
        })
    }

    /// The queue, once there is one, before it is served.
    pub fn watch(&self, queue: &BlockQueue) {
        let _ = self
            .watched
            .set((queue.stats().clone(), queue.virtqueue().outstanding()));
    }

    /// Something was published: a request, or after a take-over maybe nothing.
    pub fn published(&self) {
        if self.said.load(Ordering::Relaxed) {
            return;
        }
        let Some((stats, found)) = self.watched.get() else {
            return;
        };
        if stats.reads.get() + stats.writes.get() + stats.flushes.get() > 0 {
            self.said.store(true, Ordering::Relaxed);
            let (zone, slot, queue) = (self.zone, self.slot, self.queue);
            // None found: the guest had nothing to wait for, and the time says nothing of the daemon.
            tracing::info!(zone, slot, queue, found, after = ?self.begin.elapsed(), "first request completed");
        }
    }
}
