//! [`Ranges`]: who works at which bytes of a disk. Those who want the same bytes come one after the other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The ranges that are held.
#[derive(Default, Debug)]
pub struct Ranges {
    held: Mutex<Vec<(u64, u64)>>,
    freed: Condvar,
}

/// Bytes that nobody else works at, until it is dropped.
pub struct Held<'a> {
    ranges: &'a Ranges,
    range: (u64, u64),
}

impl Ranges {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has a byte of these.
    pub fn hold(&self, offset: u64, len: u64) -> Held<'_> {
        let range = (offset, offset.saturating_add(len));
        let overlaps =
            |held: &mut Vec<(u64, u64)>| held.iter().any(|&(from, to)| from < range.1 && range.0 < to);
        let waited = self.freed.wait_while(self.lock(), overlaps);
        waited.unwrap_or_else(PoisonError::into_inner).push(range);
        Held { ranges: self, range }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.ranges.lock();
        if let Some(place) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(place);
        }
        drop(held);
        self.ranges.freed.notify_all();
    }
}
