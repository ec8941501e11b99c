//! Counters of a console device's queue, beside those of every queue ([`ringvirtio::stats`]).

use std::sync::Arc;

use ringvirtio::stats::{QueueSnapshot, QueueStats};

ringvirtio::counters! {
    /// Counters of a queue since it was created.
    ConsoleStats =>
    /// A snapshot of [`ConsoleStats`].
    ConsoleSnapshot {
        /// Chains completed.
        chains,
        /// Bytes of output or input.
        bytes,
        /// Control messages that name no port, or mean nothing.
        messages_ignored,
        /// Times that input or a message waited for a buffer of the driver.
        no_buffers,
        ;
        /// The counters of the virtqueue.
        queue: Arc<QueueStats> => QueueSnapshot,
    }
}

impl ConsoleSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }
}
