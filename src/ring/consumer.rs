//! The daemon's side: [`Consumer`], one thread.

use super::entry::Entry;
use super::words::{Ring, sequence};
use crate::sync::{Ordering, mutated, ordering};

/// The consumer's state.
///
/// The loop: [`Self::pop`] until it gives `None`, then [`Self::prepare_to_sleep`]; sleep only if that says so.
#[derive(Debug)]
pub struct Consumer {
    /// Number of the next entry to take.
    tail: u64,
}

impl Consumer {
    /// Takes a ring over from a consumer that is gone (or from nobody). `head` is [`super::Producer::head`], read
    /// after that one's end.
    ///
    /// Entries before `head` are lost, and their bits are cleared: the caller treats every queue as notified and
    /// every device and the zone as changed, *after* this returns.
    #[must_use]
    pub fn attach(ring: &Ring<'_>, head: u64) -> Self {
        for word in ring.pending {
            word.swap(0, ordering("pending_clear", Ordering::Acquire));
        }
        ring.armed.swap(0, Ordering::Relaxed);
        Self { tail: head }
    }

    /// The next entry without taking it. What its producer did before pushing it is visible from here on.
    ///
    /// `Err` is a slot with the right number and no valid entry: somebody else wrote into the ring.
    #[must_use]
    pub fn peek(&self, ring: &Ring<'_>) -> Option<Result<Entry, u32>> {
        let word = ring
            .slot(self.tail)?
            .load(ordering("slot_read", Ordering::Acquire));
        // No entry encodes as 0, but the number of the last entry before 2^32 does: it is not to be found in
        // memory that was never written.
        if word >> 32 != sequence(self.tail) || word as u32 == 0 {
            return None;
        }
        Some(Entry::decode(word as u32).ok_or(word as u32))
    }

    /// Takes the next entry. The caller looks at what the entry names only after this: an event that comes
    /// later makes a new entry, one that came earlier is visible. Slots that hold no valid entry are skipped.
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

    /// Asks for the bell. `true`: the ring is empty, and whoever adds an entry from now on rings. `false`: there
    /// is an entry, take it.
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

    /// Number of the next entry to take.
    #[must_use]
    pub const fn tail(&self) -> u64 {
        self.tail
    }
}
