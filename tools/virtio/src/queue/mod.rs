//! [`VirtQueue`]: the device side of a split virtqueue, without a device.
//!
//! Its parts: `NotificationControl` finds heads and enables or disables the driver's notifications,
//! `UsedRing` publishes what is complete, `Coalescer` decides when the driver is notified of it, and
//! [`InflightLog`](crate::inflight::InflightLog) survives the process. [`SetupError`] and [`QueueFault`]
//! are what is wrong with a queue at its set-up, or by its driver later.

mod coalescer;
mod notifications;
mod used;
mod virt_queue;

use crate::chain::ChainError;
use crate::inflight::InflightError;
use crate::ring::RingError;
pub use virt_queue::{MAX_BATCH, QueueSetup, VirtQueue};

/// Why a queue cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Size or addresses.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The log.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// Its number.
    #[error("the device has no queue {0}")]
    NoQueue(u16),
}

/// What the driver did that it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// More entries made available than there are, or the index went back.
    #[error("avail.idx is {idx}, {popped} are popped, and the queue has {size} entries")]
    AvailIndex {
        /// Read from the ring.
        idx: u16,
        /// Entries popped so far.
        popped: u16,
        /// Queue size.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("head {0} is outside of the descriptor table")]
    Head(u16),
    /// A head whose request is still in flight.
    #[error("head {0} was made available while it is in flight")]
    DuplicateHead(u16),
    /// A malformed chain.
    #[error("chain at head {0}: {1}")]
    Chain(u16, ChainError),
    /// A chain that is no request of the device's.
    #[error("request at head {0}: {1}")]
    Request(u16, &'static str),
}
