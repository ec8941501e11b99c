//! The ring of a zone: events from EL2 to the daemon through memory that both can write.
//!
//! Parts: [`Entry`] (what an event is, and its pending bit), [`Ring`] (the shared words), [`Producer`] (EL2, any
//! number of CPUs), [`Consumer`] (the daemon, one thread), [`console`] (byte rings), `window` (the layout of
//! `abi::shared` as a type).
//!
//! # Why it can never be full
//! Every event has a pending bit. A producer adds an entry only if it finds the bit clear, the consumer clears it
//! only after it has taken the entry, and there are fewer bits than slots. So a producer never waits, never looks
//! for room and never reads an index of the consumer: its work is four atomic operations whatever the daemon
//! writes. Scribbling in the shared words costs the daemon its own events, nothing else.
//!
//! # Orderings
//! Every cross-thread hand-over goes through a read-modify-write on both sides, which are totally ordered per
//! word, so release and acquire are enough and no `SeqCst` fence is needed:
//! - *Set and clear of a pending bit* (`pending_set`, `pending_clear`): if the set comes first,
//!   the clear reads from it, and what the guest wrote before it notified is visible when the consumer then looks
//!   at the queue. If the clear comes first, the producer sees the bit clear and adds an entry.
//! - *Fill and read of a slot* (`slot_fill`, `slot_read`): an entry that was read had its bit
//!   set, so the clear that follows cannot come before that set and leave it standing with no entry behind it.
//! - *Arm and disarm* (`arm`, `disarm`): either the producer comes second, reads 1 and rings, or
//!   the consumer does, and its second look at the slot sees the entry.
//! - *Advance and read of the head* (`head_advance`, `head_read`): whoever reads a head on
//!   attaching sees the pending bits of all entries before it set, so that clearing all bits clears those.
//!
//! The names are those of [`crate::sync::ordering`]: `tests/ring_mutations.sh` weakens each in turn and sees a test
//! fail.

pub mod console;
mod consumer;
mod entry;
mod producer;
#[cfg(not(loom))]
mod window;

pub use consumer::Consumer;
pub use entry::{BITS, Entry};
pub use producer::{Bell, Producer};
#[cfg(not(loom))]
pub use window::ZoneWindow;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The shared words of one ring, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    slots: &'a [AtomicU64],
    pending: &'a [AtomicU64],
    armed: &'a AtomicU32,
}

impl<'a> Ring<'a> {
    /// A ring over these words: a power of two of `slots`, and no more bits in `pending` than that. One word of
    /// bits goes with any number of slots, for tests that have few events.
    #[must_use]
    pub fn new(slots: &'a [AtomicU64], pending: &'a [AtomicU64], armed: &'a AtomicU32) -> Option<Self> {
        let fits = slots.len().is_power_of_two() && pending.len().checked_mul(64)? <= slots.len().max(64);
        fits.then_some(Self {
            slots,
            pending,
            armed,
        })
    }

    /// Empties slots and bits, disarms the bell. Nobody else may use the ring meanwhile.
    pub fn clear(&self) {
        for word in self.slots.iter().chain(self.pending) {
            word.store(0, Ordering::Relaxed);
        }
        self.armed.store(0, Ordering::Release);
    }

    /// The slot of entry number `index`.
    fn slot(&self, index: u64) -> Option<&'a AtomicU64> {
        let mask = self.slots.len().checked_sub(1)?;
        self.slots.get(index as usize & mask)
    }

    /// Word and mask of a pending bit, or `None` if the bitmap is shorter.
    fn pending(&self, bit: usize) -> Option<(&'a AtomicU64, u64)> {
        Some((self.pending.get(bit / 64)?, 1 << (bit % 64)))
    }
}

/// A slot's word: the low 32 bits of the entry's number plus one, so that zeroed memory holds no entry, above
/// the encoded entry.
const fn slot_word(index: u64, entry: u32) -> u64 {
    sequence(index) << 32 | entry as u64
}

/// Upper half of the slot word of entry number `index`.
const fn sequence(index: u64) -> u64 {
    index.wrapping_add(1) & 0xffff_ffff
}
