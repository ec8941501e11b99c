//! [`Served`]: what a server needs of a device.

use std::sync::Arc;

use ringblk::{BlockQueue, Disk, device};
use ringnet::Net;
use ringnet::offloads::PACKETS;
use ringnet::virtio::VIRTIO_NET_F_MRG_RXBUF;
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature};
use ringvirtio::{QueueHandler, QueueSetup, SetupError};

/// Default queue size of QEMU's guests; a disk's `seg_max` is derived from it.
const QUEUE_SIZE: u16 = 128;

/// A device that can be served.
pub trait Served: Send + Sync + 'static {
    /// Returns the features of a device with this many queues.
    fn features(&self, queues: u16) -> u64;

    /// Returns the configuration space of a device with this many queues; fields behind it read zero.
    fn config(&self, queues: u16) -> Vec<u8>;

    /// The driver may have written to the configuration space. Returns whether the queues must be scheduled.
    fn driver_wrote(&self, _features: u64, _config: &[u8; 256]) -> bool {
        false
    }

    /// The device is reset.
    fn reset(&self) {}

    /// Another driver comes, or the same one with other features.
    fn begin(&self) {}

    /// Makes the device side of a queue.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    fn queue(self: &Arc<Self>, number: u16, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, SetupError>
    where
        Self: Sized;
}

impl Served for Disk {
    fn features(&self, queues: u16) -> u64 {
        device::features(self, queues)
    }

    fn config(&self, queues: u16) -> Vec<u8> {
        let mut config = device::config(self, QUEUE_SIZE, queues).to_vec();
        if !self.limits().readonly
            && let Some(writeback) = config.get_mut(device::WRITEBACK)
        {
            *writeback = self.control().writeback().into();
        }
        config
    }

    fn driver_wrote(&self, features: u64, config: &[u8; 256]) -> bool {
        device::driver_wrote(self, features, config)
    }

    fn reset(&self) {
        self.control().set_writeback(true);
    }

    fn queue(self: &Arc<Self>, _number: u16, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, SetupError> {
        Ok(Box::new(BlockQueue::new(self.clone(), setup)?))
    }
}

/// The queues of packets; the control queue is the front end's.
impl Served for Net {
    fn features(&self, _queues: u16) -> u64 {
        let rings = feature(VIRTIO_RING_F_INDIRECT_DESC) | feature(VIRTIO_RING_F_EVENT_IDX);
        let packets = PACKETS | feature(VIRTIO_NET_F_MRG_RXBUF) | feature(VIRTIO_F_VERSION_1);
        Self::features(self) & (rings | packets)
    }

    fn begin(&self) {
        self.forget_driver();
    }

    fn config(&self, _queues: u16) -> Vec<u8> {
        self.space().to_vec()
    }

    fn queue(self: &Arc<Self>, number: u16, setup: QueueSetup) -> Result<Box<dyn QueueHandler>, SetupError> {
        Ok(Self::queue(self, number, setup)?.0)
    }
}
