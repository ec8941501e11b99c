//! What the transport shows of a block device: the features offered and the configuration space (5.2.3, 5.2.4).

use crate::disk::Disk;
use crate::virtio::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
/// Bytes of the configuration space: `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;
/// QueueNumMax that suits the device.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Bit `number` as a feature mask.
#[must_use]
pub const fn feature(number: u32) -> u64 {
    1 << number
}

/// The features that the device offers for a disk, and works with in any subset.
#[must_use]
pub fn features(disk: &Disk) -> u64 {
    let offered = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
    ];
    let readonly = if disk.limits().readonly {
        feature(VIRTIO_BLK_F_RO)
    } else {
        0
    };
    offered
        .into_iter()
        .fold(readonly, |all, number| all | feature(number))
}

/// The configuration space of a disk whose queues have up to `queue_max` entries. Fields of features that are not
/// offered, and padding, are zero.
#[must_use]
pub fn config(disk: &Disk, queue_max: u16) -> [u8; CONFIG_LEN] {
    let mut bytes = [0; CONFIG_LEN];
    let mut put = |offset: usize, field: &[u8]| {
        if let Some(to) = bytes.get_mut(offset..offset + field.len()) {
            to.copy_from_slice(field);
        }
    };
    put(0, &disk.capacity().to_le_bytes());
    // The header and the status byte take a descriptor each; a chain is no longer than the queue (2.7.5.3.1).
    put(12, &u32::from(queue_max.saturating_sub(2).max(1)).to_le_bytes());
    put(20, &disk.block_size().to_le_bytes());
    bytes
}
