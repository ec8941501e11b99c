//! The virtio entropy device (virtio 1.2, 5.4): random bytes for a guest, from the host's getrandom(2).
//!
//! It has one queue, no features of its own and no configuration space. A request is a buffer that the device
//! may write; the device fills up to [`MAX_BYTES`] of it, as 5.4.6.1 allows. A request with bytes for the
//! device to read, or without room for a byte, is an error of the driver and breaks the queue.
//!
//! # How a daemon uses it
//! ```
//! # use ringvirtio::{QueueId, QueueSetup, ReactorHandle, SetupError};
//! /// Per queue, when the driver is ready; the transport offers `ringrng::features()`.
//! fn serve(handle: &ReactorHandle, setup: QueueSetup) -> Result<QueueId, SetupError> {
//!     let queue = ringrng::RngQueue::new(ringrng::Rng::new(), setup)?;
//!     Ok(handle.add(Box::new(queue)))
//! }
//! ```
//!
//! # Map
//! [`queue`] the device, its queue and its counters

pub mod queue;

#[cfg(test)]
mod tests;

pub use queue::{
    DEVICE_ID, MAX_BYTES, QUEUE_SIZE_MAX, Rng, RngQueue, RngSnapshot, RngStats, Source, features,
};
