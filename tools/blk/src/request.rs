//! What a block request asks for, decided from a private copy of its header (5.2.6). Pure: no memory, no file.
//!
//! [`Header`] is parsed from the 16 bytes copied off the chain, [`plan`] turns it and the lengths into a [`Plan`].
//! The ranges of a discard or of zeroes are [`Segment`]s, parsed and checked one by one.

use crate::virtio::{
    SECTOR_SIZE, Status, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Most segments of a discard or of zeroes: `max_discard_seg` and `max_write_zeroes_seg`.
pub const MAX_SEGMENTS: u32 = 64;
/// Most sectors of a segment of a discard: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors of a segment of zeroes: 128 MiB, for some file systems must have them written.
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
    /// Carry out the segments in the readable buffers: so many, of this kind.
    Ranges(RangeKind, u32),
    /// Nothing: the answer is known.
    Answer(Status),
}

/// A request about ranges of sectors, without data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeKind {
    /// They are of no use any more.
    Discard,
    /// They read zero afterwards.
    Zeroes,
}

/// What the driver may ask for, by the features negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// DISCARD
    pub discard: bool,
    /// WRITE_ZEROES
    pub zeroes: bool,
}

/// A range of a discard or of zeroes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Blocks may be given back.
    pub unmap: bool,
}

impl Segment {
    /// Bytes in memory: sector, number of sectors, flags.
    pub const SIZE: usize = 16;

    /// Parses and checks `struct virtio_blk_discard_write_zeroes`.
    pub fn parse(bytes: [u8; Self::SIZE], kind: RangeKind, capacity: u64) -> Result<Self, Status> {
        let raw = u128::from_le_bytes(bytes);
        let (sector, count, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        // 5.2.6.2: unknown flags, and unmap of a discard, are unsupported.
        let (known, most) = match kind {
            RangeKind::Discard => (0, MAX_DISCARD_SECTORS),
            RangeKind::Zeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_ZEROES_SECTORS),
        };
        if flags & !known != 0 {
            return Err(Status::Unsupp);
        }
        if count > most {
            return Err(Status::IoErr);
        }
        let len = u64::from(count) * SECTOR_SIZE;
        Ok(Self {
            offset: byte_range(sector, len, capacity).ok_or(Status::IoErr)?,
            len,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }
}

/// Decides. `readable` and `writable` are the bytes of data, without header and status.
#[must_use]
pub fn plan(header: Header, readable: u64, writable: u64, limits: Limits, negotiated: Negotiated) -> Plan {
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
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.readonly => Plan::Answer(Status::IoErr),
        VIRTIO_BLK_T_DISCARD if negotiated.discard => ranges(RangeKind::Discard, readable),
        VIRTIO_BLK_T_WRITE_ZEROES if negotiated.zeroes => ranges(RangeKind::Zeroes, readable),
        _ => Plan::Answer(Status::Unsupp),
    }
}

fn ranges(kind: RangeKind, readable: u64) -> Plan {
    match u32::try_from(readable / Segment::SIZE as u64) {
        Ok(count @ 1..=MAX_SEGMENTS) if readable.is_multiple_of(Segment::SIZE as u64) => {
            Plan::Ranges(kind, count)
        }
        _ => Plan::Answer(Status::IoErr),
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
