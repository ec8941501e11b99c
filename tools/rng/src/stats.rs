//! Counters of an entropy device's queue, beside those of every queue ([`ringvirtio::stats`]).

use std::sync::Arc;

use ringvirtio::stats::{QueueSnapshot, QueueStats};

ringvirtio::counters! {
    /// Counters of a queue since it was created.
    RngStats =>
    /// A snapshot of [`RngStats`].
    RngSnapshot {
        /// Requests completed.
        requests,
        /// Random bytes written.
        bytes,
        /// Times that the host had no random bytes.
        starved,
        ;
        /// The counters of the virtqueue.
        queue: Arc<QueueStats> => QueueSnapshot,
    }
}

impl RngSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }
}
