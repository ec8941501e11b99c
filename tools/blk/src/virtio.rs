//! The numbers of the virtio specification that a block device uses, under the specification's names (5.2).
//!
//! Values come from the kernel's headers (`virtio-bindings`); the widths here are those of the structures
//! that hold them.

pub use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use virtio_bindings::virtio_blk as blk;

/// Bytes of the serial, NUL-padded.
pub const VIRTIO_BLK_ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// Bytes of a sector: the unit of `sector` and `capacity`, independent of `blk_size`.
pub const SECTOR_SIZE: u64 = 512;

/// The status byte of a request (5.2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RequestStatus {
    /// `VIRTIO_BLK_S_OK`
    Ok = blk::VIRTIO_BLK_S_OK as u8,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = blk::VIRTIO_BLK_S_IOERR as u8,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupp = blk::VIRTIO_BLK_S_UNSUPP as u8,
}
