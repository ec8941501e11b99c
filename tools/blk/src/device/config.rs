//! The configuration space (5.2.4), and the driver's writes to it.

use ringvirtio::virtio::feature;

use super::topology::{PHYSICAL_BLOCK, Topology};
use crate::disk::Disk;
use crate::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROES_SECTORS};
use crate::virtio::{SECTOR_SIZE, VIRTIO_BLK_F_CONFIG_WCE};

/// Bytes of the configuration space: `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LEN: usize = 60;
/// Offset of `writeback`, the byte that the driver may write.
pub const WRITEBACK: usize = 32;
/// `size_max`: the device could take larger segments, but no driver makes them.
const SIZE_MAX: u32 = 4 << 20;

/// Returns the configuration space of a disk with `queues` queues of up to `queue_max` entries. Padding and
/// the fields of features that are not offered are zero.
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
#[must_use]
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
