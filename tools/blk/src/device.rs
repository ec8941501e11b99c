//! What the transport shows of a block device: the features offered and the configuration space (5.2.3, 5.2.4); and
//! what the driver's own writes to the latter mean ([`driver_wrote`]).

use std::os::fd::RawFd;

use crate::disk::Disk;
use crate::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROES_SECTORS};
use crate::virtio::{
    SECTOR_SIZE, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};

/// virtio device id of a block device.
pub const DEVICE_ID: u32 = 2;
/// Bytes of the configuration space: `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;
/// QueueNumMax that suits the device.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// `size_max`: larger segments would do no harm, but no driver makes them.
const SIZE_MAX: u32 = 4 << 20;
/// Offset of `writeback`, the byte that the driver may write.
pub const WRITEBACK: usize = 32;
/// Blocks of most file systems and devices: what an image is best written in.
const PHYSICAL_BLOCK: u32 = 4096;

/// The features that the device offers for a disk with so many queues, and works with in any subset.
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
    let lacks_zeroes = disk.remote().is_some_and(|remote| !remote.has_zeroes());
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

/// The configuration space of a disk with so many queues of up to `queue_max` entries. Fields of features that are
/// not offered, and padding, are zero.
#[must_use]
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
    // The header and the status byte take a descriptor each; a chain is no longer than the queue (2.7.5.3.1).
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

/// Where `capacity` is in the configuration space, and its bytes now: what a resize changes.
#[must_use]
pub fn capacity(disk: &Disk) -> (usize, [u8; 8]) {
    (0, disk.capacity().to_le_bytes())
}

/// Takes over what the driver may have written to the configuration space, given as it is now. `true` if something
/// changed: the disk's queues must be kicked then. Called before queues are made, and when the driver writes.
pub fn driver_wrote(disk: &Disk, features: u64, config: &[u8]) -> bool {
    let may_write = features & feature(VIRTIO_BLK_F_CONFIG_WCE) != 0;
    match config.get(WRITEBACK) {
        Some(&writeback) if may_write => disk.control().set_writeback(writeback != 0),
        _ => false,
    }
}

/// TOPOLOGY: hints, in logical blocks.
struct Topology {
    physical_exponent: u8,
    alignment_offset: u8,
    min_io: u16,
    opt_io: u32,
}

impl Topology {
    fn of(disk: &Disk) -> Self {
        let logical = disk.block_size().max(SECTOR_SIZE as u32);
        let mut physical = PHYSICAL_BLOCK;
        let (mut min_io, mut opt_io, mut alignment) = (0, 0, 0);
        if disk.is_device() {
            // SAFETY: each of these stores an `unsigned int`.
            let ask = |request| unsafe { ask(disk.fd(), request) };
            physical = ask(BLKPBSZGET).unwrap_or(logical);
            min_io = ask(BLKIOMIN).unwrap_or(0);
            opt_io = ask(BLKIOOPT).unwrap_or(0);
            // Where the first whole physical block starts; -1 if there is no such place.
            alignment = ask(BLKALIGNOFF).filter(|&offset| offset < physical).unwrap_or(0);
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

/// # Safety
/// The request stores an `unsigned int` where its argument points, and nothing else.
unsafe fn ask(fd: RawFd, request: libc::c_int) -> Option<u32> {
    let mut value: libc::c_uint = 0;
    // SAFETY: says the caller.
    (unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(&mut value)) } == 0).then_some(value)
}
