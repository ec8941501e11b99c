//! The topology of the host's device, from its ioctls.

use std::os::fd::RawFd;

use crate::disk::Disk;
use crate::virtio::SECTOR_SIZE;

/// Physical block of most file systems and devices in bytes: the best unit for writes to an image.
pub(super) const PHYSICAL_BLOCK: u32 = 4096;

/// The fields of VIRTIO_BLK_F_TOPOLOGY, in logical blocks: hints.
pub(super) struct Topology {
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
