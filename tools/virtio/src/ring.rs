//! The split virtqueue in guest memory: the three areas, and nothing but loads and stores on them (2.7).
//!
//! [`SplitRing`] resolves the areas once. Each accessor reads guest memory exactly once and returns a private
//! copy, which [`crate::chain`] and [`crate::queue`] interpret. The device writes the used area only.
//!
//! `virtio-queue`'s walker is not used: it ends a malformed chain silently, where a device must ask for a
//! reset, and it translates a guest address at every access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::GuestAddress;

use crate::memory::{GuestRam, MemoryError, Slots};
use crate::virtio::{VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY};

/// Largest queue size of a split virtqueue (2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// A private copy of a descriptor (2.7.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// Index of the next one, if the flag says so.
    pub next: u16,
}

impl Descriptor {
    /// Bytes in memory.
    pub const SIZE: u32 = 16;

    #[inline]
    fn load(table: &Slots<AtomicU64>, index: usize) -> Option<Self> {
        // Two loads, each field in exactly one of them: the guest may rewrite it before, between or after.
        let addr = u64::from_le(table.get(index * 2)?.load(Ordering::Relaxed));
        let rest = u64::from_le(table.get(index * 2 + 1)?.load(Ordering::Relaxed));
        Some(Self::from_words([addr, rest]))
    }

    fn from_words([addr, rest]: [u64; 2]) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Returns a private copy of entry `index` of an indirect table at `table`; `None` if it is not RAM.
    pub fn load_indirect(ram: &GuestRam, table: GuestAddress, index: u16) -> Option<Self> {
        let addr = table.0.checked_add(u64::from(index) * u64::from(Self::SIZE))?;
        ram.read_words(GuestAddress(addr)).map(Self::from_words)
    }
}

/// Addresses of a queue's areas, as the transport latched them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddresses {
    /// Entries: a power of two up to [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Descriptor table.
    pub desc: GuestAddress,
    /// Driver area: the available ring.
    pub avail: GuestAddress,
    /// Device area: the used ring.
    pub used: GuestAddress,
}

/// Why a queue cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not a power of two, zero, or too large.
    #[error("queue size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// The descriptor table is bad.
    #[error("descriptor table: {0}")]
    Desc(MemoryError),
    /// The available ring is bad.
    #[error("available ring: {0}")]
    Avail(MemoryError),
    /// The used ring is bad.
    #[error("used ring: {0}")]
    Used(MemoryError),
}

/// A queue's areas.
pub struct SplitRing {
    size: u16,
    event_idx: bool,
    ram: Arc<GuestRam>,
    desc: Slots<AtomicU64>,
    /// `flags`, `idx`, `ring[size]`, `used_event`.
    avail: Slots<AtomicU16>,
    /// `flags`, `idx`, then entries that are used through `used_ring`, then `avail_event`.
    used: Slots<AtomicU16>,
    /// `ring[size]` of `id`, `len`.
    used_ring: Slots<AtomicU32>,
}

const FLAGS: usize = 0;
const IDX: usize = 1;
const RING: usize = 2;

impl SplitRing {
    /// Resolves the areas in guest RAM. Alignment: 16, 2 and 4 bytes (2.7).
    pub fn new(ram: &Arc<GuestRam>, at: &RingAddresses, event_idx: bool) -> Result<Self, RingError> {
        if !at.size.is_power_of_two() || at.size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(at.size));
        }
        let size = usize::from(at.size);
        let aligned = |addr: GuestAddress, align: usize| {
            if addr.0.is_multiple_of(align as u64) {
                Ok(addr)
            } else {
                Err(MemoryError::Misaligned { addr: addr.0, align })
            }
        };
        let desc = aligned(at.desc, 16)
            .and_then(|addr| ram.slots(addr, 2 * size))
            .map_err(RingError::Desc)?;
        let avail = aligned(at.avail, 2)
            .and_then(|addr| ram.slots(addr, size + 3))
            .map_err(RingError::Avail)?;
        let used_at = aligned(at.used, 4).map_err(RingError::Used)?;
        let used = ram.slots(used_at, 4 * size + 3).map_err(RingError::Used)?;
        // Inside of what was just resolved, so the sum does not wrap.
        let entries = GuestAddress(used_at.0.wrapping_add(4));
        let used_ring = ram.slots(entries, 2 * size).map_err(RingError::Used)?;
        Ok(Self {
            size: at.size,
            event_idx,
            ram: ram.clone(),
            desc,
            avail,
            used,
            used_ring,
        })
    }

    /// Returns the queue size.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Returns the guest's RAM.
    #[inline]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn load(table: &Slots<AtomicU16>, index: usize, order: Ordering) -> u16 {
        // Indices are constants or masked, so the element exists; 0 is what an idle ring holds.
        table.get(index).map_or(0, |cell| u16::from_le(cell.load(order)))
    }

    #[inline]
    fn store(table: &Slots<AtomicU16>, index: usize, value: u16, order: Ordering) {
        if let Some(cell) = table.get(index) {
            cell.store(value.to_le(), order);
        }
    }

    /// Returns `avail.idx`; what the driver wrote before it is visible afterwards.
    #[inline]
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        Self::load(&self.avail, IDX, Ordering::Acquire)
    }

    /// Returns the head in available entry number `index`.
    #[inline]
    #[must_use]
    pub fn avail_head(&self, index: u16) -> u16 {
        Self::load(&self.avail, RING + self.slot(index), Ordering::Relaxed)
    }

    /// Returns descriptor `index` of the queue's table.
    #[inline]
    #[must_use]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        Descriptor::load(&self.desc, index.into())
    }

    /// Writes used entry number `index`; not visible as used before [`Self::publish_used`].
    #[inline]
    pub fn write_used(&self, index: u16, head: u16, len: u32) {
        let slot = 2 * self.slot(index);
        if let (Some(id), Some(length)) = (self.used_ring.get(slot), self.used_ring.get(slot + 1)) {
            id.store(u32::from(head).to_le(), Ordering::Relaxed);
            length.store(len.to_le(), Ordering::Relaxed);
        }
    }

    /// Stores `used.idx` after all that was written before (2.7.8.2).
    #[inline]
    pub fn publish_used(&self, idx: u16) {
        Self::store(&self.used, IDX, idx, Ordering::Release);
    }

    /// Disables the driver's notifications. Under EVENT_IDX an `avail_event` in the past does it, and the
    /// flag must stay 0 (2.7.10.2).
    #[inline]
    pub fn disable_notifications(&self) {
        if !self.event_idx {
            Self::store(&self.used, FLAGS, VIRTQ_USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Enables the driver's notification of entry `next_avail`, then reads `avail.idx` again: entries made
    /// available before the driver could see that are in the result (2.7.10.1).
    #[inline]
    #[must_use]
    pub fn enable_notifications(&self, next_avail: u16) -> u16 {
        if self.event_idx {
            let avail_event = RING + 4 * usize::from(self.size);
            Self::store(&self.used, avail_event, next_avail, Ordering::Relaxed);
        } else {
            Self::store(&self.used, FLAGS, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.avail_idx()
    }

    /// Returns whether the driver wants an interrupt for used entries `old..new`, which are published
    /// (2.7.7.2).
    #[inline]
    #[must_use]
    pub fn interrupt_wanted(&self, old: u16, new: u16) -> bool {
        // The driver stores its request for an interrupt, then reads used.idx; here it is the other way
        // round.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event = Self::load(&self.avail, RING + usize::from(self.size), Ordering::Relaxed);
            new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            Self::load(&self.avail, FLAGS, Ordering::Relaxed) & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
        }
    }
}
