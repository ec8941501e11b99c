//! What a block request asks for, decided from a private copy of its header (5.2.6). Pure: no memory, no file.
//!
//! [`Header`] is parsed from the 16 bytes copied off the chain, [`plan`] turns it and the lengths into a [`Plan`].

use crate::virtio::{
    SECTOR_SIZE, Status, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

/// `struct virtio_blk_req` without data and status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// `VIRTIO_BLK_T_*`.
    pub kind: u32,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
}

impl Header {
    /// Bytes in memory: type, reserved, sector.
    pub const SIZE: usize = 16;

    /// Parses the little-endian bytes.
    #[must_use]
    pub fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let raw = u128::from_le_bytes(bytes);
        Self {
            kind: raw as u32,
            sector: (raw >> 64) as u64,
        }
    }
}

/// What limits requests: a snapshot of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Whether writes are refused.
    pub readonly: bool,
}

/// What to do for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Fill the writable buffers from the image at a byte offset.
    Read(u64),
    /// Store the readable buffers to the image at a byte offset.
    Write(u64),
    /// Make completed writes durable.
    Flush,
    /// Give the serial.
    GetId,
    /// Nothing: the answer is known.
    Answer(Status),
}

/// Decides. `readable` and `writable` are the bytes of data, without header and status.
#[must_use]
pub fn plan(header: Header, readable: u64, writable: u64, limits: Limits) -> Plan {
    match header.kind {
        VIRTIO_BLK_T_IN => match byte_range(header.sector, writable, limits.capacity) {
            Some(_) if writable == 0 => Plan::Answer(Status::Ok),
            Some(offset) => Plan::Read(offset),
            None => Plan::Answer(Status::IoErr),
        },
        // 5.2.6.2: a write to a read-only device fails, whatever it is.
        VIRTIO_BLK_T_OUT if limits.readonly => Plan::Answer(Status::IoErr),
        VIRTIO_BLK_T_OUT => match byte_range(header.sector, readable, limits.capacity) {
            Some(_) if readable == 0 => Plan::Answer(Status::Ok),
            Some(offset) => Plan::Write(offset),
            None => Plan::Answer(Status::IoErr),
        },
        VIRTIO_BLK_T_FLUSH if limits.readonly => Plan::Answer(Status::Ok),
        VIRTIO_BLK_T_FLUSH => Plan::Flush,
        VIRTIO_BLK_T_GET_ID => Plan::GetId,
        _ => Plan::Answer(Status::Unsupp),
    }
}

/// The byte offset of a transfer that is whole sectors inside the disk; else `None`.
fn byte_range(sector: u64, len: u64, capacity: u64) -> Option<u64> {
    if !len.is_multiple_of(SECTOR_SIZE) {
        return None;
    }
    let end = sector.checked_add(len / SECTOR_SIZE)?;
    if end > capacity {
        return None;
    }
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    // The kernel counts in signed 64 bits.
    i64::try_from(offset.checked_add(len)?).ok()?;
    Some(offset)
}
