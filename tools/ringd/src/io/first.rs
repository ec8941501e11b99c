//! [`FirstRequest`]: logs the first request of a queue, the end of a pause for those who measure it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::device::backend::QueueCounters;

/// Logs once that a queue's first request has completed: after a take-over, that its device is served.
pub(super) struct FirstRequest {
    zone: u8,
    slot: u8,
    queue: usize,
    begin: Instant,
    /// The queue's counters, and how many requests were outstanding when it was set up.
    watched: OnceLock<(QueueCounters, u16)>,
    logged: AtomicBool,
}

impl FirstRequest {
    /// Returns one for a queue that is being set up.
    pub fn new(zone: u8, slot: u8, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            zone,
            slot,
            queue,
            begin: Instant::now(),
            watched: OnceLock::new(),
            logged: AtomicBool::new(false),
        })
    }

    /// Sets the queue, before it is served.
    pub fn watch(&self, counters: QueueCounters, outstanding: u16) {
        let _ = self.watched.set((counters, outstanding));
    }

    /// A used buffer notification was sent: for a request, or after a take-over maybe for nothing.
    pub fn published(&self) {
        if self.logged.load(Ordering::Relaxed) {
            return;
        }
        let Some((counters, found)) = self.watched.get() else {
            return;
        };
        if counters.has_completed() {
            self.logged.store(true, Ordering::Relaxed);
            let (zone, slot, queue) = (self.zone, self.slot, self.queue);
            // None found: the guest had nothing to wait for, and the time says nothing of the daemon.
            tracing::info!(zone, slot, queue, found, after = ?self.begin.elapsed(), "first request completed");
        }
    }
}
