//! [`Device`], [`Backend`]: an open device as the reactor's side uses it.

use std::ops::Deref;
use std::sync::Arc;

use ringvirtio::{Callback, QueueHandler, QueueSetup, SetupError};
use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::DeviceSpec;

use super::config::Config;
use super::report::QueueStats;
use super::{console, disk, net, rng};

/// Vendor ID register: "QEMU", which some drivers insist on (RT-Thread, xv6).
const VENDOR_ID: u32 = 0x554d_4551;

/// Returns the description of a device with this ID, these features, queues of `queue_max` entries and this
/// configuration space.
pub fn spec(device_id: u32, features: u64, queues: u16, queue_max: u16, config: &[u8]) -> DeviceSpec {
    let mut spec = DeviceSpec {
        device_id,
        vendor_id: VENDOR_ID,
        features,
        queues: queues.into(),
        config_len: config.len() as u32,
        queue_max: [0; MAX_QUEUES],
        config: [0; 256],
    };
    let used = spec.queue_max.iter_mut().take(queues.into());
    used.for_each(|max| *max = queue_max);
    spec.config
        .iter_mut()
        .zip(config)
        .for_each(|(to, from)| *to = *from);
    spec
}

/// An open device of some kind.
#[derive(Clone)]
pub enum Device {
    /// A drive's disk, or [`ringblk::Disk::absent`].
    Disk(Arc<ringblk::Disk>),
    /// An entropy device.
    Rng(Arc<ringrng::Rng>),
    /// A network device.
    Net(Arc<ringnet::Net>),
    /// A console device.
    Console(Arc<ringconsole::Console>),
}

impl Device {
    /// Returns the disk of a drive.
    pub fn disk(&self) -> Option<&Arc<ringblk::Disk>> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Rng(_) | Self::Net(_) | Self::Console(_) => None,
        }
    }
}

impl Deref for Device {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Disk(disk) => disk,
            Self::Rng(rng) => rng,
            Self::Net(net) => net,
            Self::Console(console) => console,
        }
    }
}

/// An open device.
pub trait Backend: Send + Sync {
    /// Returns what EL2 shows the driver of a device with this description and number of queues: device ID,
    /// features, queue sizes, configuration space.
    fn describe(&self, config: &Config, queues: u16) -> DeviceSpec;

    /// Returns the field of the configuration space that may change while the driver uses the device: offset
    /// and bytes.
    fn live_config(&self) -> Option<(u16, Vec<u8>)> {
        None
    }

    /// Whether that field may change while there is no daemon.
    fn may_change_unattended(&self) -> bool {
        false
    }

    /// The driver may have written to the configuration space `space`. Returns whether the queues must be
    /// scheduled.
    fn driver_wrote_config(&self, _features: u64, _space: &[u8; 256]) -> bool {
        false
    }

    /// Makes the device side of virtqueue `number`, which the driver has set up, with its counters.
    ///
    /// # Errors
    /// The queue cannot be where the driver says.
    fn queue(
        &self,
        number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError>;

    /// The queue, or all, have left the reactor, or were never there. Calls `then` once no other process uses
    /// the driver's memory on their account.
    fn release(&self, _queue: Option<u16>, then: Callback) {
        then();
    }
}

/// The counters of a queue that is served.
#[derive(Clone)]
pub enum QueueCounters {
    /// Of a drive.
    Disk(Arc<ringblk::BlockStats>),
    /// Of an entropy device.
    Rng(Arc<ringrng::RngStats>),
    /// Of a network device.
    Net(Arc<ringnet::NetStats>),
    /// Of a console device.
    Console(Arc<ringconsole::ConsoleStats>),
}

/// The counters of a queue at some moment, whatever its device.
#[derive(Clone, Debug)]
pub enum Counters {
    /// Of a drive.
    Disk(Box<ringblk::BlockSnapshot>),
    /// Of an entropy device.
    Rng(Box<ringrng::RngSnapshot>),
    /// Of a network device.
    Net(Box<ringnet::NetSnapshot>),
    /// Of a console device.
    Console(Box<ringconsole::ConsoleSnapshot>),
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
    pub fn snapshot(&self) -> Counters {
        match self {
            Self::Disk(counters) => Counters::Disk(Box::new(counters.snapshot())),
            Self::Rng(counters) => Counters::Rng(Box::new(counters.snapshot())),
            Self::Net(counters) => Counters::Net(Box::new(counters.snapshot())),
            Self::Console(counters) => Counters::Console(Box::new(counters.snapshot())),
        }
    }

    /// Returns how many notifications found nothing.
    pub fn spurious_notifications(&self) -> u64 {
        match self {
            Self::Disk(counters) => counters.queue.spurious_notifications.get(),
            Self::Rng(counters) => counters.queue.spurious_notifications.get(),
            Self::Net(counters) => counters.queue.spurious_notifications.get(),
            Self::Console(counters) => counters.queue.spurious_notifications.get(),
        }
    }

    /// Whether a request has completed.
    pub fn has_completed(&self) -> bool {
        match self {
            Self::Disk(counters) => disk::stats::has_completed(counters),
            Self::Rng(counters) => counters.requests.get() > 0,
            Self::Net(counters) => counters.packets.get() + counters.commands.get() > 0,
            Self::Console(counters) => counters.chains.get() > 0,
        }
    }
}

impl QueueSnapshot {
    /// Returns the queue for reports.
    pub fn stats(&self) -> QueueStats {
        let stats = match &self.counters {
            Counters::Disk(counters) => disk::stats::queue_stats(counters),
            Counters::Rng(counters) => rng::stats::queue_stats(counters),
            Counters::Net(counters) => net::stats::queue_stats(counters),
            Counters::Console(counters) => console::stats::queue_stats(counters),
        };
        QueueStats {
            queue: self.queue,
            active: self.active,
            ..stats
        }
    }
}
