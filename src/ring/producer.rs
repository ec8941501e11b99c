//! EL2's side: [`Producer`], shared by all CPUs of EL2.

use super::entry::Entry;
use super::words::{Ring, slot_word};
use crate::sync::{AtomicU64, Ordering, mutated, ordering};

/// Whether the consumer must be woken by the event interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Wakeup {
    /// It sleeps, or is about to: raise the interrupt.
    Required,
    /// It is awake, or another producer wakes it.
    NotRequired,
}

/// The producers' state, in EL2's own memory: no byte of it comes from the daemon.
#[derive(Debug)]
pub struct Producer {
    /// Entries ever added.
    head: AtomicU64,
}

impl Producer {
    /// Returns a producer for an empty ring.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self::starting_at(0)
    }

    /// Returns a producer whose next entry has number `head`. Slots must hold nothing from a later entry.
    #[cfg(not(loom))]
    pub const fn starting_at(head: u64) -> Self {
        Self {
            head: AtomicU64::new(head),
        }
    }

    /// As above, for loom, whose atomics cannot be constants.
    #[cfg(loom)]
    pub fn starting_at(head: u64) -> Self {
        Self {
            head: AtomicU64::new(head),
        }
    }

    /// Adds `entry` unless it is pending already. Never waits.
    ///
    /// What this CPU did before is visible to the consumer when it processes the entry.
    pub fn push(&self, ring: &Ring<'_>, entry: Entry) -> Wakeup {
        self.offer(ring, entry).unwrap_or(Wakeup::NotRequired)
    }

    /// As [`Self::push`]; `None` if the entry was pending already.
    #[inline]
    pub fn offer(&self, ring: &Ring<'_>, entry: Entry) -> Option<Wakeup> {
        let (word, mask) = ring.pending(entry.bit()?)?;
        if word.fetch_or(mask, ordering("pending_set", Ordering::Release)) & mask != 0 {
            return None;
        }
        let index = self
            .head
            .fetch_add(1, ordering("head_advance", Ordering::Release));
        if let Some(slot) = ring.slot(index) {
            slot.store(
                slot_word(index, entry.encode()),
                ordering("slot_fill", Ordering::Release),
            );
        }
        let disarm = ordering("disarm", Ordering::Release);
        if mutated("disarm_by_store") {
            let armed = ring.armed.load(Ordering::Relaxed);
            ring.armed.store(0, disarm);
            return Some(if armed == 1 {
                Wakeup::Required
            } else {
                Wakeup::NotRequired
            });
        }
        Some(if ring.armed.swap(0, disarm) == 1 {
            Wakeup::Required
        } else {
            Wakeup::NotRequired
        })
    }

    /// Returns the number of entries ever added: where a consumer that attaches begins.
    pub fn head(&self) -> u64 {
        self.head.load(ordering("head_read", Ordering::Acquire))
    }
}

#[cfg(not(loom))]
impl Default for Producer {
    fn default() -> Self {
        Self::new()
    }
}
