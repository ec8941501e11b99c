//! The features that the device offers (5.2.3).

use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};

use crate::disk::Disk;
use crate::virtio::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Returns the features that the device offers for a disk with `queues` queues. It works with any subset of
/// them.
#[must_use]
pub fn features(disk: &Disk, queues: u16) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
    ];
    let writable = [
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    let lacks_zeroes = disk
        .remote()
        .is_some_and(|remote| !remote.supports_write_zeroes());
    let by_access: &[u32] = if disk.limits().readonly {
        &[VIRTIO_BLK_F_RO]
    } else {
        &writable
    };
    let several: &[u32] = if queues > 1 { &[VIRTIO_BLK_F_MQ] } else { &[] };
    let offered = always.iter().chain(by_access).chain(several);
    let all = offered.fold(0, |all, &number| all | feature(number));
    if lacks_zeroes {
        all & !feature(VIRTIO_BLK_F_WRITE_ZEROES)
    } else {
        all
    }
}
