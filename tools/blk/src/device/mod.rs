//! What the transport shows of a block device: the features that it offers (5.2.3) and its configuration
//! space (5.2.4), with the topology of the host's device.

mod config;
mod features;
mod topology;

pub use config::{CONFIG_LEN, WRITEBACK, capacity, config, driver_wrote};
pub use features::features;

/// virtio device id of a block device (5.2.1).
pub const DEVICE_ID: u32 = 2;
/// Largest queue that suits the device, for QueueNumMax.
pub const QUEUE_SIZE_MAX: u16 = 256;
