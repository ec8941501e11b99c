//! A zone's window in the shared page as a type: [`ZoneWindow`], laid out as in `abi::shared`.
//!
//! All fields are atomics, for which every bit pattern is valid: code that has mapped the page can make a
//! reference to this type without further checks.

use super::console::{Input, Output};
use super::entry::Entry;
use super::words::Ring;
use crate::abi::{MAX_QUEUES, MAX_SLOTS, shared};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

const PENDING_PAD: usize = shared::ARMED - shared::PENDING - shared::PENDING_WORDS * 8;
const ARMED_PAD: usize = shared::CONSOLE_OUT_WRITTEN - shared::ARMED - 4;
const OUT_PAD: usize = shared::CONSOLE_IN_WRITTEN - shared::CONSOLE_OUT_CLAIMED - 8;
const IN_WRITTEN_PAD: usize = shared::CONSOLE_IN_READ - shared::CONSOLE_IN_WRITTEN - 8;
const IN_READ_PAD: usize = shared::CONSOLE_IN - shared::CONSOLE_IN_READ - 8;

/// One zone's part of the shared page.
#[derive(Debug)]
#[repr(C)]
pub struct ZoneWindow {
    slots: [AtomicU64; shared::RING_SLOTS],
    pending: [AtomicU64; shared::PENDING_WORDS],
    pad0: [AtomicU8; PENDING_PAD],
    armed: AtomicU32,
    pad1: [AtomicU8; ARMED_PAD],
    out_written: AtomicU64,
    out_claimed: AtomicU64,
    pad2: [AtomicU8; OUT_PAD],
    in_written: AtomicU64,
    pad3: [AtomicU8; IN_WRITTEN_PAD],
    in_read: AtomicU64,
    pad4: [AtomicU8; IN_READ_PAD],
    in_bytes: [AtomicU8; shared::CONSOLE_IN_SIZE],
    out_bytes: [AtomicU8; shared::CONSOLE_OUT_SIZE],
    notified: [AtomicU64; MAX_SLOTS * MAX_QUEUES],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(ZoneWindow, slots) == shared::RING);
    assert!(offset_of!(ZoneWindow, pending) == shared::PENDING);
    assert!(offset_of!(ZoneWindow, armed) == shared::ARMED);
    assert!(offset_of!(ZoneWindow, out_written) == shared::CONSOLE_OUT_WRITTEN);
    assert!(offset_of!(ZoneWindow, out_claimed) == shared::CONSOLE_OUT_CLAIMED);
    assert!(offset_of!(ZoneWindow, in_written) == shared::CONSOLE_IN_WRITTEN);
    assert!(offset_of!(ZoneWindow, in_read) == shared::CONSOLE_IN_READ);
    assert!(offset_of!(ZoneWindow, in_bytes) == shared::CONSOLE_IN);
    assert!(offset_of!(ZoneWindow, out_bytes) == shared::CONSOLE_OUT);
    assert!(offset_of!(ZoneWindow, notified) == shared::NOTIFIED);
    assert!(size_of::<ZoneWindow>() <= shared::ZONE_STRIDE);
    assert!(shared::ZONE_STRIDE.is_multiple_of(align_of::<ZoneWindow>()));
    assert!(shared::RING_SLOTS.is_power_of_two());
    assert!(shared::CONSOLE_IN_SIZE.is_power_of_two() && shared::CONSOLE_OUT_SIZE.is_power_of_two());
};

impl ZoneWindow {
    /// Returns the event ring.
    pub const fn ring(&self) -> Ring<'_> {
        Ring {
            slots: &self.slots,
            pending: &self.pending,
            armed: &self.armed,
        }
    }

    /// Returns the console output ring.
    pub const fn output(&self) -> Output<'_> {
        Output {
            claimed: &self.out_claimed,
            written: &self.out_written,
            bytes: &self.out_bytes,
        }
    }

    /// Returns the console input ring.
    pub const fn input(&self) -> Input<'_> {
        Input {
            written: &self.in_written,
            read: &self.in_read,
            bytes: &self.in_bytes,
        }
    }

    /// Stamps a notification with `now`, if it will add an entry; for EL2, before it offers the entry. If the
    /// daemon writes to the stamp or the pending bits it corrupts only a value that it alone reads.
    #[inline]
    pub fn stamp_notification(&self, slot: u8, queue: u8, now: u64) {
        let entry = Entry::Notify { slot, queue };
        let Some((word, mask)) = entry.bit().and_then(|bit| self.ring().pending(bit)) else {
            return;
        };
        if word.load(Ordering::Relaxed) & mask == 0
            && let Some(at) = self.notified(slot, queue)
        {
            at.store(now, Ordering::Relaxed);
        }
    }

    /// Returns the counter value at which a queue was notified, if it was; for the daemon, once it has popped
    /// the entry.
    pub fn notified_at(&self, slot: u8, queue: u8) -> Option<u64> {
        let at = self.notified(slot, queue)?.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }

    fn notified(&self, slot: u8, queue: u8) -> Option<&AtomicU64> {
        let in_range = usize::from(queue) < MAX_QUEUES;
        in_range.then(|| {
            self.notified
                .get(usize::from(slot) * MAX_QUEUES + usize::from(queue))
        })?
    }

    /// Empties everything, for a new zone, before its producers start at 0. Entries of an earlier zone in the
    /// slots would be taken for entries of this one.
    pub fn clear(&self) {
        self.ring().clear();
        for position in [
            &self.out_written,
            &self.out_claimed,
            &self.in_written,
            &self.in_read,
        ] {
            position.store(0, Ordering::Relaxed);
        }
        for at in &self.notified {
            at.store(0, Ordering::Relaxed);
        }
    }
}
