//! [`NetServer`]: a network device's queues of packets, served by another process.

use std::sync::Arc;

use ringnet::{MadeQueue, NetStats, QueueServer};
use ringvirtio::{Callback, QueueHandler, QueueSetup};

use super::front::Front;

/// See the module.
pub struct NetServer(Front);

impl NetServer {
    /// Takes the connection to the server.
    #[must_use]
    pub const fn new(front: Front) -> Self {
        Self(front)
    }

    /// Returns how many pairs of queues the server has.
    #[must_use]
    pub const fn pairs(&self) -> u16 {
        self.0.queues() / 2
    }
}

impl QueueServer for NetServer {
    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queue(&self, number: u16, setup: QueueSetup) -> MadeQueue {
        let queue = self.0.queue(number, setup)?;
        let stats = NetStats {
            queue: queue.queue().stats().clone(),
            ..NetStats::default()
        };
        Ok((Box::new(queue), Arc::new(stats)))
    }

    fn release(&self, queue: Option<u16>, then: Callback) {
        self.0.release(queue, then);
    }

    fn set_active_pairs(&self, pairs: u16) {
        self.0.enable(pairs.saturating_mul(2));
    }
}
