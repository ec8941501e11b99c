//! [`DriverRing`]: the driver side of a split virtqueue (virtio 1.2, 2.7) that a server serves.
//!
//! Request `n` always uses descriptor `n`, which points to indirect table `n`, header `n` and status `n`; so
//! nothing is allocated. Everything the server writes is checked: a used entry can only name a request in
//! flight, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use ringblk::virtio::{
    SECTOR_SIZE, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use ringvirtio::memory::{MemoryError, Slots};
use ringvirtio::virtio::{
    VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_USED_F_NO_NOTIFY,
};
use vm_memory::MmapRegion;

/// Entries of a ring: the default of most servers.
pub const SIZE: u16 = 128;
/// Most buffers of a request: a chain is no longer than its queue (2.7.5.3.1), and two are header and status.
pub const SEGMENTS: usize = SIZE as usize - 2;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors of an indirect table.
const TABLE: usize = SIZE as usize;

// Offsets in the memory of a ring.
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const HEADERS: usize = 0x3000;
const RANGES: usize = 0x4000;
const STATUS: usize = 0x5000;
const TABLES: usize = 0x6000;
/// Bytes of a ring's memory.
pub const BYTES: usize = TABLES + TABLE * TABLE * DESCRIPTOR;

/// An invalid status, to detect that the server wrote none.
const NO_STATUS: u16 = 0xffff;

/// An invalid value that a server wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// More entries are used than requests were in flight.
    #[error("used.idx is {found} after {seen}, with {outstanding} requests in flight")]
    UsedIndex {
        /// Read from the ring.
        found: u16,
        /// Entries popped so far.
        seen: u16,
        /// Requests in flight.
        outstanding: u16,
    },
    /// A used entry that does not name a request in flight.
    #[error("used entry names request {0}, which is not in flight")]
    UsedId(u32),
    /// An undefined status.
    #[error("request {id} has status {status:#x}, expected 0 to 2")]
    Status {
        /// The request.
        id: u16,
        /// Its status byte.
        status: u8,
    },
}

/// A request to a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Reads from the disk.
    Read {
        /// First byte, a multiple of 512.
        offset: u64,
    },
    /// Writes to the disk.
    Write {
        /// First byte, a multiple of 512.
        offset: u64,
    },
    /// Makes completed writes durable.
    Flush,
    /// Deallocates a range.
    Discard {
        /// First byte, a multiple of 512.
        offset: u64,
        /// Bytes, a multiple of 512.
        len: u64,
    },
    /// Makes a range read zero.
    WriteZeroes {
        /// First byte, a multiple of 512.
        offset: u64,
        /// Bytes, a multiple of 512.
        len: u64,
        /// The blocks may be deallocated.
        unmap: bool,
    },
}

/// A completed request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsedRequest {
    /// The token of the request.
    pub token: u64,
    /// Its status byte: 0 to 2 (virtio 1.2, 5.2.6).
    pub status: u8,
}

/// The driver side of one ring.
pub struct DriverRing {
    /// Guest-physical address of the ring's memory.
    base: u64,
    desc: Slots<AtomicU64>,
    avail: Slots<AtomicU16>,
    used: Slots<AtomicU16>,
    used_ring: Slots<AtomicU32>,
    headers: Slots<AtomicU64>,
    ranges: Slots<AtomicU64>,
    status: Slots<AtomicU16>,
    tables: Slots<AtomicU64>,
    event_idx: bool,
    /// By descriptor: the token of the request in flight.
    tokens: Vec<Option<u64>>,
    free: Vec<u16>,
    avail_idx: u16,
    /// As published last.
    published_idx: u16,
    /// Used entries popped so far.
    seen: u16,
}

impl DriverRing {
    /// Makes a ring at `offset` of `mapping`, which is zeroed and has the guest-physical address `base`
    /// there.
    ///
    /// # Errors
    /// The mapping is too small.
    pub fn new(
        mapping: &Arc<MmapRegion>,
        offset: usize,
        base: u64,
        event_idx: bool,
    ) -> Result<Self, MemoryError> {
        let size = usize::from(SIZE);
        Ok(Self {
            base,
            desc: Slots::in_mapping(mapping, offset, 2 * size)?,
            avail: Slots::in_mapping(mapping, offset + AVAIL, size + 3)?,
            used: Slots::in_mapping(mapping, offset + USED, 4 * size + 3)?,
            used_ring: Slots::in_mapping(mapping, offset + USED + 4, 2 * size)?,
            headers: Slots::in_mapping(mapping, offset + HEADERS, 2 * size)?,
            ranges: Slots::in_mapping(mapping, offset + RANGES, 2 * size)?,
            status: Slots::in_mapping(mapping, offset + STATUS, size)?,
            tables: Slots::in_mapping(mapping, offset + TABLES, 2 * TABLE * size)?,
            event_idx,
            tokens: vec![None; size],
            free: (0..SIZE).rev().collect(),
            avail_idx: 0,
            published_idx: 0,
            seen: 0,
        })
    }

    /// Returns the offsets of descriptor table, available ring and used ring in the ring's memory.
    pub const fn areas() -> [usize; 3] {
        [0, AVAIL, USED]
    }

    /// Returns the number of requests in flight.
    pub fn outstanding(&self) -> u16 {
        SIZE.saturating_sub(self.free.len() as u16)
    }

    /// Returns whether there is no room for a request.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Adds a request with buffers at guest-physical addresses, at most [`SEGMENTS`]. Returns
    /// `false` if the ring is full. The server sees the request after [`Self::publish`].
    pub fn push(&mut self, token: u64, request: Request, parts: &[(u64, u32)]) -> bool {
        let Some(id) = self.free.pop() else {
            return false;
        };
        let slot = usize::from(id);
        let (kind, sector) = match request {
            Request::Read { offset } => (VIRTIO_BLK_T_IN, offset / SECTOR_SIZE),
            Request::Write { offset } => (VIRTIO_BLK_T_OUT, offset / SECTOR_SIZE),
            Request::Flush => (VIRTIO_BLK_T_FLUSH, 0),
            Request::Discard { offset, len } => {
                self.set_range(slot, offset, len, 0);
                (VIRTIO_BLK_T_DISCARD, 0)
            }
            Request::WriteZeroes { offset, len, unmap } => {
                let flags = if unmap {
                    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
                } else {
                    0
                };
                self.set_range(slot, offset, len, flags);
                (VIRTIO_BLK_T_WRITE_ZEROES, 0)
            }
        };
        store(&self.headers, 2 * slot, kind.into());
        store(&self.headers, 2 * slot + 1, sector);
        if let Some(status) = self.status.get(slot) {
            status.store(NO_STATUS, Ordering::Relaxed);
        }
        let at = |offset: usize| self.base.wrapping_add(offset as u64);
        let mut count = 0;
        self.set_entry(slot, &mut count, at(HEADERS + 16 * slot), 16, 0);
        match request {
            Request::Discard { .. } | Request::WriteZeroes { .. } => {
                self.set_entry(slot, &mut count, at(RANGES + 16 * slot), 16, 0);
            }
            Request::Flush => {}
            Request::Read { .. } | Request::Write { .. } => {
                let write = matches!(request, Request::Write { .. });
                let flags = if write { 0 } else { VIRTQ_DESC_F_WRITE };
                for &(addr, len) in parts.iter().take(SEGMENTS) {
                    self.set_entry(slot, &mut count, addr, len, flags);
                }
            }
        }
        let table = 2 * TABLE * slot;
        self.set_entry(slot, &mut count, at(STATUS + 2 * slot), 1, VIRTQ_DESC_F_WRITE);
        // The last descriptor has no next one.
        let last = table + 2 * (count - 1) + 1;
        store(&self.tables, last, 1 | u64::from(VIRTQ_DESC_F_WRITE) << 32);
        store(&self.desc, 2 * slot, at(TABLES + TABLE * DESCRIPTOR * slot));
        let bytes = (count * DESCRIPTOR) as u64;
        store(
            &self.desc,
            2 * slot + 1,
            bytes | u64::from(VIRTQ_DESC_F_INDIRECT) << 32,
        );
        if let Some(entry) = self.avail.get(2 + usize::from(self.avail_idx % SIZE)) {
            entry.store(id.to_le(), Ordering::Relaxed);
        }
        self.avail_idx = self.avail_idx.wrapping_add(1);
        if let Some(kept) = self.tokens.get_mut(slot) {
            *kept = Some(token);
        }
        true
    }

    /// Sets descriptor `count` of an indirect table, chained to the next one.
    fn set_entry(&self, slot: usize, count: &mut usize, addr: u64, len: u32, flags: u16) {
        let index = 2 * (TABLE * slot + *count);
        *count += 1;
        store(&self.tables, index, addr);
        let flags = u64::from(flags | VIRTQ_DESC_F_NEXT);
        store(
            &self.tables,
            index + 1,
            u64::from(len) | flags << 32 | (*count as u64) << 48,
        );
    }

    fn set_range(&self, slot: usize, offset: u64, len: u64, flags: u32) {
        store(&self.ranges, 2 * slot, offset / SECTOR_SIZE);
        let sectors = (len / SECTOR_SIZE) & 0xffff_ffff;
        store(&self.ranges, 2 * slot + 1, sectors | u64::from(flags) << 32);
    }

    /// Makes the pushed requests available. Returns whether the server must be kicked.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published_idx, self.avail_idx);
        if old == new {
            return false;
        }
        self.published_idx = new;
        if let Some(idx) = self.avail.get(1) {
            idx.store(new.to_le(), Ordering::Release);
        }
        // The server stores its event index or flag, then reads avail.idx; here the order is reversed
        // (2.7.10.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = load(&self.used, 2 + 4 * usize::from(SIZE));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(&self.used, 0) & VIRTQ_USED_F_NO_NOTIFY == 0
        }
    }

    /// Pops the next completed request.
    ///
    /// # Errors
    /// The server wrote an invalid value; the ring cannot be used any more.
    pub fn pop(&mut self) -> Result<Option<UsedRequest>, RingFault> {
        let idx = self
            .used
            .get(1)
            .map_or(0, |idx| u16::from_le(idx.load(Ordering::Acquire)));
        let (seen, outstanding) = (self.seen, self.outstanding());
        let fresh = idx.wrapping_sub(seen);
        if fresh == 0 {
            return Ok(None);
        }
        if fresh > outstanding {
            return Err(RingFault::UsedIndex {
                found: idx,
                seen,
                outstanding,
            });
        }
        let entry = self.used_ring.get(2 * usize::from(seen % SIZE));
        let id = entry.map_or(u32::MAX, |id| u32::from_le(id.load(Ordering::Relaxed)));
        let slot = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(token) = self.tokens.get_mut(slot).and_then(Option::take) else {
            return Err(RingFault::UsedId(id));
        };
        let id = slot as u16;
        // The server writes one of the two bytes.
        let [status, _] = self
            .status
            .get(slot)
            .map_or(NO_STATUS, |status| status.load(Ordering::Relaxed))
            .to_ne_bytes();
        if status > 2 {
            return Err(RingFault::Status { id, status });
        }
        self.free.push(id);
        self.seen = seen.wrapping_add(1);
        Ok(Some(UsedRequest { token, status }))
    }

    /// Returns whether there are completed requests to pop.
    pub fn has_completions(&self) -> bool {
        load(&self.used, 1) != self.seen
    }

    /// Enables the call for the next completed request. Returns `true` if there is one already.
    pub fn arm(&mut self) -> bool {
        if self.event_idx
            && let Some(event) = self.avail.get(2 + usize::from(SIZE))
        {
            event.store(self.seen.to_le(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        load(&self.used, 1) != self.seen
    }
}

fn store(table: &Slots<AtomicU64>, index: usize, value: u64) {
    if let Some(word) = table.get(index) {
        word.store(value.to_le(), Ordering::Relaxed);
    }
}

fn load(table: &Slots<AtomicU16>, index: usize) -> u16 {
    table
        .get(index)
        .map_or(0, |word| u16::from_le(word.load(Ordering::Relaxed)))
}
