//! The virtio entropy device (virtio 1.2, 5.4): random bytes for a guest, from the host's getrandom(2).
//!
//! It has one queue, no features of its own and no configuration space. A request is a buffer that the device
//! may write; the device fills up to [`MAX_BYTES`] of it, as 5.4.6.1 allows. A request with bytes for the
//! device to read, or without room for a byte, is an error of the driver and breaks the queue.
//!
//! # How a daemon uses it
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (reactor, handle) = ringvirtio::Reactor::new(Default::default())?;
//! # let setup: ringvirtio::QueueSetup = todo!();
//! // Per device; the transport offers `ringrng::features()`.
//! let rng = ringrng::Rng::new();
//! // Per queue, when the driver is ready.
//! let queue = ringrng::RngQueue::new(rng, setup)?;
//! let id = handle.add(Box::new(queue));
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//! [`rng`] the device · [`queue`] its queue · [`stats`] counters

// Nothing that a guest says may end the daemon: no panicking construct outside of tests.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::indexing_slicing,
        clippy::string_slice
    )
)]

pub mod queue;
pub mod rng;
pub mod stats;

#[cfg(test)]
mod tests;

pub use queue::{MAX_BYTES, RngQueue};
pub use rng::{DEVICE_ID, QUEUE_SIZE_MAX, Rng, Source, features};
pub use stats::{RngSnapshot, RngStats};
