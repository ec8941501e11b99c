//! [`Backend`]: an open device as the reactor's side uses it.

use std::sync::Arc;

use ringblk::{GuestRam, InflightArea, Queue, QueueFault, RingAddresses, SetupError};
use ringvisor::abi::command::DeviceSpec;

use super::config::Config;
use super::disk;
use super::report::QueueStats;

/// Vendor ID register of ringvisor's devices: "RNGV".
pub const VENDOR_ID: u32 = u32::from_le_bytes(*b"RNGV");

/// The device side of one virtqueue: what the reactor drives.
pub type QueueHandler = Queue;

/// An open device.
pub trait Backend: Send + Sync {
    /// Returns what EL2 shows the driver of a device with this description and number of queues: device ID, features,
    /// queue sizes, configuration space.
    fn describe(&self, config: &Config, queues: u16) -> DeviceSpec;

    /// Returns the field of the configuration space that may change while the driver uses the device: offset and
    /// bytes.
    fn live_config(&self) -> Option<(u16, Vec<u8>)> {
        None
    }

    /// Whether that field may change while there is no daemon.
    fn may_change_unattended(&self) -> bool {
        false
    }

    /// The driver may have written to the configuration space `space`. Returns whether the queues must be scheduled.
    fn driver_wrote_config(&self, _features: u64, _space: &[u8; 256]) -> bool {
        false
    }

    /// Makes the device side of a virtqueue that the driver has set up, with its counters.
    ///
    /// # Errors
    /// The queue cannot be where the driver says.
    fn queue(&self, parts: QueueParts) -> Result<(QueueHandler, QueueCounters), SetupError>;
}

/// What a virtqueue is made of, whatever its device.
pub struct QueueParts {
    /// The zone's RAM.
    pub ram: Arc<GuestRam>,
    /// Where the driver put the rings.
    pub ring: RingAddresses,
    /// Features that the driver accepted.
    pub features: u64,
    /// The queue's in-flight log.
    pub inflight: InflightArea,
    /// Tells a log of this life of the queue from older ones.
    pub epoch: u64,
    /// Sends a used buffer notification.
    pub notify_driver: Box<dyn Fn() + Send>,
    /// Sets DEVICE_NEEDS_RESET after a violation by the driver.
    pub needs_reset: Box<dyn Fn(&QueueFault) + Send>,
}

/// The counters of a queue that is served.
#[derive(Clone)]
pub enum QueueCounters {
    /// Of a drive.
    Disk(Arc<ringblk::stats::QueueStats>),
}

/// The counters of a queue at some moment, whatever its device.
#[derive(Clone, Debug)]
pub enum Counters {
    /// Of a drive.
    Disk(Box<ringblk::stats::QueueSnapshot>),
}

/// A queue and its counters at some moment.
#[derive(Clone, Debug)]
pub struct QueueSnapshot {
    /// Number in its device.
    pub queue: usize,
    /// Whether the driver uses it now.
    pub active: bool,
    /// Its counters.
    pub counters: Counters,
}

impl QueueCounters {
    /// Returns the counters as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Counters {
        match self {
            Self::Disk(counters) => Counters::Disk(Box::new(counters.snapshot())),
        }
    }

    /// Whether a request has completed.
    #[must_use]
    pub fn has_completed(&self) -> bool {
        match self {
            Self::Disk(counters) => disk::stats::has_completed(counters),
        }
    }
}

impl QueueSnapshot {
    /// Returns the queue for reports.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        let stats = match &self.counters {
            Counters::Disk(counters) => disk::stats::queue_stats(counters),
        };
        QueueStats {
            queue: self.queue,
            active: self.active,
            ..stats
        }
    }
}
