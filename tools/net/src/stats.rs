//! Counters of a network device's queue, beside those of every queue ([`ringvirtio::stats`]).

use std::sync::Arc;

use ringvirtio::stats::{QueueSnapshot, QueueStats};

ringvirtio::counters! {
    /// Counters of a queue since it was created.
    NetStats =>
    /// A snapshot of [`NetStats`].
    NetSnapshot {
        /// Packets received or sent.
        packets,
        /// Their bytes, without headers of virtio.
        bytes,
        /// Packets received into more than one buffer.
        merged,
        /// Dropped: the driver's filter does not let them pass.
        dropped_filtered,
        /// Dropped: larger than the driver's buffers, or than any packet can be.
        dropped_too_long,
        /// Dropped: shorter than an Ethernet header.
        dropped_too_short,
        /// Dropped: they need an offload that the driver has not enabled.
        dropped_offload,
        /// Dropped: the link is down.
        dropped_link_down,
        /// Dropped: the driver has not put the pair of queues to use (5.1.6.5.5).
        dropped_unused_pair,
        /// Dropped: the back end refused them.
        dropped_refused,
        /// Times that no buffer of the driver was available.
        no_buffers,
        /// Times that the back end had no room.
        no_room,
        /// Commands carried out.
        commands,
        /// Commands refused.
        commands_refused,
        ;
        /// The counters of the virtqueue.
        queue: Arc<QueueStats> => QueueSnapshot,
    }
}

impl NetSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }

    /// Returns how many packets were dropped, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_filtered
            + self.dropped_too_long
            + self.dropped_too_short
            + self.dropped_offload
            + self.dropped_link_down
            + self.dropped_unused_pair
            + self.dropped_refused
    }
}
