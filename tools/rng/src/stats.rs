//! Counters of an entropy device's queue, beside what every queue counts ([`ringvirtio::stats`]).

use std::sync::Arc;

use ringvirtio::stats::{QueueSnapshot, QueueStats};

ringvirtio::counters! {
    /// What a queue has done since it was made.
    RngStats =>
    /// [`RngStats`] at some moment.
    RngSnapshot {
        /// Requests completed.
        requests,
        /// Random bytes written.
        bytes,
        /// Times that the host had no random bytes.
        starved,
        ;
        /// What every virtqueue counts.
        queue: Arc<QueueStats> => QueueSnapshot,
    }
}

impl RngSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }
}
