//! [`VirtQueue`]: the device side of a split virtqueue, without a device.
//!
//! Its parts: `NotificationControl` finds heads and enables or disables the driver's notifications, `UsedRing`
//! publishes what is complete, `Coalescer` decides when the driver is notified of it, and
//! [`InflightLog`](crate::inflight::InflightLog) survives the process.

mod coalescer;
mod fault;
mod notifications;
mod used;
mod virt_queue;

pub use fault::{QueueFault, SetupError};
pub use virt_queue::{MAX_BATCH, QueueSetup, VirtQueue};
