//! What the transport shows of a block device: the features that it offers (5.2.3) and its configuration
//! space (5.2.4), with the topology of the host's device.

use std::os::fd::RawFd;

use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};

use crate::disk::Disk;
use crate::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROES_SECTORS};
use crate::virtio::{
    SECTOR_SIZE, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

/// virtio device id of a block device (5.2.1).
pub const DEVICE_ID: u32 = 2;
/// Largest queue that suits the device, for QueueNumMax.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Bytes of the configuration space: `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;
/// Offset of `writeback`, the byte that the driver may write.
pub const WRITEBACK: usize = 32;
/// `size_max`: the device could take larger segments, but no driver makes them.
const SIZE_MAX: u32 = 4 << 20;

/// Returns the configuration space of a disk with `queues` queues of up to `queue_max` entries. Padding and
/// the fields of features that are not offered are zero.
pub fn config(disk: &Disk, queue_max: u16, queues: u16) -> [u8; CONFIG_LEN] {
    let mut bytes = [0; CONFIG_LEN];
    let mut put = |offset: usize, field: &[u8]| {
        if let Some(to) = bytes.get_mut(offset..offset + field.len()) {
            to.copy_from_slice(field);
        }
    };
    let (_, capacity) = capacity(disk);
    put(0, &capacity);
    put(8, &SIZE_MAX.to_le_bytes());
    // Header and status byte take a descriptor each; a chain is no longer than the queue (2.7.5.3.1).
    put(12, &u32::from(queue_max.saturating_sub(2).max(1)).to_le_bytes());
    put(20, &disk.block_size().to_le_bytes());
    let topology = Topology::of(disk);
    put(24, &[topology.physical_exponent, topology.alignment_offset]);
    put(26, &topology.min_io.to_le_bytes());
    put(28, &topology.opt_io.to_le_bytes());
    if queues > 1 {
        put(34, &queues.to_le_bytes());
    }
    if !disk.limits().readonly {
        put(WRITEBACK, &[1]);
        // Holes are punched in whole blocks only.
        let block = disk.block_size().max(PHYSICAL_BLOCK) / SECTOR_SIZE as u32;
        for (offset, value) in [
            (36, MAX_DISCARD_SECTORS),
            (40, MAX_SEGMENTS),
            (44, block),
            (48, MAX_ZEROES_SECTORS),
            (52, MAX_SEGMENTS),
        ] {
            put(offset, &value.to_le_bytes());
        }
        // write_zeroes_may_unmap
        put(56, &[1]);
    }
    bytes
}

/// Returns the offset of `capacity` in the configuration space and its current bytes: what a resize changes.
pub fn capacity(disk: &Disk) -> (usize, [u8; 8]) {
    (0, disk.capacity().to_le_bytes())
}

/// Applies the driver's writes to the configuration space, given its current contents. Returns whether a
/// setting has changed; the caller then schedules the disk's queues. Called before queues are made and when
/// the driver writes.
pub fn driver_wrote(disk: &Disk, features: u64, config: &[u8]) -> bool {
    let may_write = features & feature(VIRTIO_BLK_F_CONFIG_WCE) != 0;
    match config.get(WRITEBACK) {
        Some(&writeback) if may_write => disk.control().set_writeback(writeback != 0),
        _ => false,
    }
}

/// Returns the features that the device offers for a disk with `queues` queues. It works with any subset of
/// them.
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

/// Physical block of most file systems and devices in bytes: the best unit for writes to an image.
const PHYSICAL_BLOCK: u32 = 4096;

/// The fields of VIRTIO_BLK_F_TOPOLOGY, in logical blocks: hints.
struct Topology {
    /// Logical blocks of a physical block, as a power of two.
    pub physical_exponent: u8,
    pub alignment_offset: u8,
    pub min_io: u16,
    pub opt_io: u32,
}

impl Topology {
    /// Returns the topology of the host's device, or that of a file.
    pub fn of(disk: &Disk) -> Self {
        let logical = disk.block_size().max(SECTOR_SIZE as u32);
        let mut physical = PHYSICAL_BLOCK;
        let (mut min_io, mut opt_io, mut alignment) = (0, 0, 0);
        if disk.is_device() {
            // SAFETY: each of these stores an `unsigned int`.
            let query = |request| unsafe { query(disk.fd(), request) };
            physical = query(BLKPBSZGET).unwrap_or(logical);
            min_io = query(BLKIOMIN).unwrap_or(0);
            opt_io = query(BLKIOOPT).unwrap_or(0);
            // Offset of the first whole physical block; -1 if there is none.
            alignment = query(BLKALIGNOFF)
                .filter(|&offset| offset < physical)
                .unwrap_or(0);
        }
        let physical = physical.max(logical);
        let blocks = |bytes: u32| bytes / logical;
        Self {
            physical_exponent: blocks(physical).max(1).ilog2() as u8,
            alignment_offset: u8::try_from(blocks(alignment)).unwrap_or(0),
            min_io: u16::try_from(blocks(min_io.max(physical))).unwrap_or(1),
            opt_io: blocks(opt_io),
        }
    }
}

// `linux/fs.h`: _IO(0x12, n).
const BLKIOMIN: libc::c_int = 0x1278;
const BLKIOOPT: libc::c_int = 0x1279;
const BLKALIGNOFF: libc::c_int = 0x127a;
const BLKPBSZGET: libc::c_int = 0x127b;

/// Queries a block device; `None` if it does not support the request.
///
/// # Safety
/// The request stores an `unsigned int` where its argument points, and nothing else.
unsafe fn query(fd: RawFd, request: libc::c_int) -> Option<u32> {
    let mut value: libc::c_uint = 0;
    // SAFETY: the caller guarantees what the request stores.
    (unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(&mut value)) } == 0).then_some(value)
}
