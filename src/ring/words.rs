//! The shared words of a ring: [`Ring`].

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The shared words of one ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    pub(super) slots: &'a [AtomicU64],
    pub(super) pending: &'a [AtomicU64],
    pub(super) armed: &'a AtomicU32,
}

impl<'a> Ring<'a> {
    /// Returns a ring over these words: a power of two of `slots`, and at most as many bits in `pending`. One
    /// word of bits is allowed with any number of slots, for tests that have few events.
    pub fn new(slots: &'a [AtomicU64], pending: &'a [AtomicU64], armed: &'a AtomicU32) -> Option<Self> {
        let fits = slots.len().is_power_of_two() && pending.len().checked_mul(64)? <= slots.len().max(64);
        fits.then_some(Self {
            slots,
            pending,
            armed,
        })
    }

    /// Empties slots and bits, and disarms the ring. Neither side may use the ring meanwhile.
    pub fn clear(&self) {
        for word in self.slots.iter().chain(self.pending) {
            word.store(0, Ordering::Relaxed);
        }
        self.armed.store(0, Ordering::Release);
    }

    /// Returns the slot of entry number `index`.
    pub(super) fn slot(&self, index: u64) -> Option<&'a AtomicU64> {
        let mask = self.slots.len().checked_sub(1)?;
        self.slots.get(index as usize & mask)
    }

    /// Returns word and mask of a pending bit, or `None` if the bitmap is shorter.
    pub(super) fn pending(&self, bit: usize) -> Option<(&'a AtomicU64, u64)> {
        Some((self.pending.get(bit / 64)?, 1 << (bit % 64)))
    }
}

/// Returns a slot's word: the low 32 bits of the entry's number plus one, so that zeroed memory holds no
/// entry, above the encoded entry.
pub(super) const fn slot_word(index: u64, entry: u32) -> u64 {
    sequence(index) << 32 | entry as u64
}

/// Returns the upper half of the slot word of entry number `index`.
pub(super) const fn sequence(index: u64) -> u64 {
    index.wrapping_add(1) & 0xffff_ffff
}
