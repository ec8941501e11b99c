//! Decodes block requests from a private copy of their header (5.2.6). Pure: it accesses neither guest memory
//! nor files.
//!
//! [`Header`] is parsed from the 16 bytes copied off the chain, [`plan`] turns it and the lengths into a
//! [`Plan`]. The ranges of a discard or a write-zeroes request are [`Segment`]s, parsed and checked one by
//! one.

use crate::virtio::{
    RequestStatus, SECTOR_SIZE, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Most segments of a discard or write-zeroes request: `max_discard_seg` and `max_write_zeroes_seg`.
pub const MAX_SEGMENTS: u32 = 64;
/// Most sectors of a discard segment: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors of a write-zeroes segment: 128 MiB, because on some file systems the zeroes must be written.
pub const MAX_ZEROES_SECTORS: u32 = 1 << 18;

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
    pub fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let raw = u128::from_le_bytes(bytes);
        Self {
            kind: raw as u32,
            sector: (raw >> 64) as u64,
        }
    }
}

/// The limits that requests are checked against: a snapshot of the disk's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Writes are refused.
    pub readonly: bool,
}

/// What a request requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Fill the writable buffers from the image at a byte offset.
    Read(u64),
    /// Store the readable buffers to the image at a byte offset.
    Write(u64),
    /// Make completed writes durable.
    Flush,
    /// Return the serial.
    GetId,
    /// Run the segments in the readable buffers: their kind and number.
    Ranges(RangeKind, u32),
    /// Complete at once with this status.
    Complete(RequestStatus),
}

/// A request on ranges of sectors, without data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeKind {
    /// Their contents are not needed any more.
    Discard,
    /// They read zero afterwards.
    Zeroes,
}

/// The optional requests that the negotiated features allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// DISCARD
    pub discard: bool,
    /// WRITE_ZEROES
    pub zeroes: bool,
}

/// A range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The blocks may be deallocated.
    pub unmap: bool,
}

impl Segment {
    /// Bytes in memory: sector, number of sectors, flags.
    pub const SIZE: usize = 16;

    /// Parses and checks `struct virtio_blk_discard_write_zeroes`.
    ///
    /// # Errors
    /// The status that the request completes with.
    pub fn parse(bytes: [u8; Self::SIZE], kind: RangeKind, capacity: u64) -> Result<Self, RequestStatus> {
        let raw = u128::from_le_bytes(bytes);
        let (sector, count, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        // 5.2.6.2: unknown flags, and unmap of a discard, are unsupported.
        let (known, most) = match kind {
            RangeKind::Discard => (0, MAX_DISCARD_SECTORS),
            RangeKind::Zeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_ZEROES_SECTORS),
        };
        if flags & !known != 0 {
            return Err(RequestStatus::Unsupp);
        }
        if count > most {
            return Err(RequestStatus::IoErr);
        }
        let len = u64::from(count) * SECTOR_SIZE;
        Ok(Self {
            offset: byte_range(sector, len, capacity).ok_or(RequestStatus::IoErr)?,
            len,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }
}

/// Decides what a request requires. `readable` and `writable` are the bytes of data, without header and
/// status.
pub fn plan(header: Header, readable: u64, writable: u64, limits: Limits, negotiated: Negotiated) -> Plan {
    match header.kind {
        VIRTIO_BLK_T_IN => match byte_range(header.sector, writable, limits.capacity) {
            Some(_) if writable == 0 => Plan::Complete(RequestStatus::Ok),
            Some(offset) => Plan::Read(offset),
            None => Plan::Complete(RequestStatus::IoErr),
        },
        // 5.2.6.2: any write to a read-only device fails.
        VIRTIO_BLK_T_OUT if limits.readonly => Plan::Complete(RequestStatus::IoErr),
        VIRTIO_BLK_T_OUT => match byte_range(header.sector, readable, limits.capacity) {
            Some(_) if readable == 0 => Plan::Complete(RequestStatus::Ok),
            Some(offset) => Plan::Write(offset),
            None => Plan::Complete(RequestStatus::IoErr),
        },
        VIRTIO_BLK_T_FLUSH if limits.readonly => Plan::Complete(RequestStatus::Ok),
        VIRTIO_BLK_T_FLUSH => Plan::Flush,
        VIRTIO_BLK_T_GET_ID => Plan::GetId,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.readonly => {
            Plan::Complete(RequestStatus::IoErr)
        }
        VIRTIO_BLK_T_DISCARD if negotiated.discard => ranges(RangeKind::Discard, readable),
        VIRTIO_BLK_T_WRITE_ZEROES if negotiated.zeroes => ranges(RangeKind::Zeroes, readable),
        _ => Plan::Complete(RequestStatus::Unsupp),
    }
}

fn ranges(kind: RangeKind, readable: u64) -> Plan {
    match u32::try_from(readable / Segment::SIZE as u64) {
        Ok(count @ 1..=MAX_SEGMENTS) if readable.is_multiple_of(Segment::SIZE as u64) => {
            Plan::Ranges(kind, count)
        }
        _ => Plan::Complete(RequestStatus::IoErr),
    }
}

/// Returns the byte offset of a transfer; `None` if it is not whole sectors inside the disk.
fn byte_range(sector: u64, len: u64, capacity: u64) -> Option<u64> {
    if !len.is_multiple_of(SECTOR_SIZE) {
        return None;
    }
    let end = sector.checked_add(len / SECTOR_SIZE)?;
    if end > capacity {
        return None;
    }
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    // The kernel's offsets are signed 64 bits.
    i64::try_from(offset.checked_add(len)?).ok()?;
    Some(offset)
}
