//! The daemon's side: [`Consumer`], one thread.

use super::entry::Entry;
use super::words::{Ring, sequence};
use crate::sync::{Ordering, mutated, ordering};

/// The consumer's state.
///
/// The loop: [`Self::pop`] until it returns `None`, then [`Self::prepare_to_sleep`]; sleep only if that
/// returns true.
#[derive(Debug)]
pub struct Consumer {
    /// Number of the next entry to pop.
    tail: u64,
}

impl Consumer {
    /// Takes over a ring from a consumer that has ended, or starts on a new one. `head` is
    /// [`super::Producer::head`], read after that consumer's end.
    ///
    /// Entries before `head` are lost, and their bits are cleared: the caller must treat every queue as
    /// notified and every device and the zone as changed, *after* this returns.
    #[must_use]
    pub fn attach(ring: &Ring<'_>, head: u64) -> Self {
        for word in ring.pending {
            word.swap(0, ordering("pending_clear", Ordering::Acquire));
        }
        ring.armed.swap(0, Ordering::Relaxed);
        Self { tail: head }
    }

    /// Returns the next entry without popping it. What its producer did before pushing it is visible from
    /// here on.
    ///
    /// `Err` is a slot with the right number and no valid entry: the ring was corrupted.
    pub fn peek(&self, ring: &Ring<'_>) -> Option<Result<Entry, u32>> {
        let word = ring
            .slot(self.tail)?
            .load(ordering("slot_read", Ordering::Acquire));
        // No entry encodes as 0, but the number of the last entry before 2^32 does: it must not match memory
        // that was never written.
        if word >> 32 != sequence(self.tail) || word as u32 == 0 {
            return None;
        }
        Some(Entry::decode(word as u32).ok_or(word as u32))
    }

    /// Pops the next entry. The caller must check what the entry names only after this: a later event makes a
    /// new entry, an earlier one is visible. Slots that hold no valid entry are skipped.
    pub fn pop(&mut self, ring: &Ring<'_>) -> Option<Entry> {
        loop {
            let next = self.peek(ring)?;
            self.tail = self.tail.wrapping_add(1);
            let Ok(entry) = next else { continue };
            if let Some((word, mask)) = entry.bit().and_then(|bit| ring.pending(bit)) {
                word.fetch_and(!mask, ordering("pending_clear", Ordering::Acquire));
            }
            return Some(entry);
        }
    }

    /// Arms the ring. True: the ring is empty, and the producer that adds the next entry raises the event
    /// interrupt. False: there is an entry to pop.
    #[must_use]
    pub fn prepare_to_sleep(&mut self, ring: &Ring<'_>) -> bool {
        ring.armed.swap(1, ordering("arm", Ordering::Acquire));
        if mutated("no_second_look") || self.peek(ring).is_none() {
            return true;
        }
        // A swap, not a store: it must not cut the release sequence that the next arming reads from.
        ring.armed.swap(0, Ordering::Relaxed);
        false
    }

    /// Returns the number of the next entry to pop.
    pub const fn tail(&self) -> u64 {
        self.tail
    }
}
