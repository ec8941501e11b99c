//! [`Backend`] for disks: what EL2 shows of one, and its queues.

use std::sync::Arc;

use ringblk::{BlockQueue, Disk};
use ringvirtio::{QueueHandler, QueueSetup, SetupError};
use ringvisor::abi::command::DeviceSpec;

use crate::device::backend::{Backend, QueueCounters, spec};
use crate::device::config::Config;
use crate::device::inflight;

const _: () = assert!(ringblk::QUEUE_SIZE_MAX <= inflight::QUEUE_SIZE_MAX);

/// Offset of `capacity` in the configuration space (virtio 1.2, 5.2.4).
const CAPACITY: u16 = 0;

impl Backend for Arc<Disk> {
    fn describe(&self, config: &Config, queues: u16) -> DeviceSpec {
        let space = ringblk::config(self, ringblk::QUEUE_SIZE_MAX, queues);
        let features = ringblk::features(self, queues);
        let mut spec = spec(
            ringblk::DEVICE_ID,
            features,
            queues,
            ringblk::QUEUE_SIZE_MAX,
            &space,
        );
        if config.disk().is_some_and(|disk| !disk.discard) {
            withhold_discard(&mut spec);
        }
        spec
    }

    fn live_config(&self) -> Option<(u16, Vec<u8>)> {
        Some((CAPACITY, self.capacity().to_le_bytes().into()))
    }

    /// The size of a server's disk.
    fn may_change_unattended(&self) -> bool {
        self.remote().is_some()
    }

    /// `writeback`, the one byte that a driver writes (virtio 1.2, 5.2.5).
    fn driver_wrote_config(&self, features: u64, space: &[u8; 256]) -> bool {
        ringblk::device::driver_wrote(self, features, space)
    }

    fn queue(
        &self,
        _number: u16,
        setup: QueueSetup,
    ) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError> {
        let queue = BlockQueue::new(self.clone(), setup)?;
        let counters = QueueCounters::Disk(queue.stats().clone());
        Ok((Box::new(queue), counters))
    }
}

/// Withholds discarding from the driver: neither DISCARD nor WRITE_ZEROES with unmap is offered (virtio 1.2,
/// 5.2.4).
fn withhold_discard(spec: &mut DeviceSpec) {
    const LIMITS: std::ops::Range<usize> = 36..48;
    const MAY_UNMAP: usize = 56;
    spec.features &= !(1 << ringblk::virtio::VIRTIO_BLK_F_DISCARD);
    let fields = LIMITS.chain([MAY_UNMAP]);
    for at in fields {
        if let Some(byte) = spec.config.get_mut(at) {
            *byte = 0;
        }
    }
}
