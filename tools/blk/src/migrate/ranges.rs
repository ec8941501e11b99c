//! [`RangeLocks`]: locks on byte ranges of a disk. Threads that lock overlapping ranges run one after the
//! other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The locked ranges.
#[derive(Default, Debug)]
pub struct RangeLocks {
    locked: Mutex<Vec<(u64, u64)>>,
    unlocked: Condvar,
}

/// A locked range; unlocked on drop.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: (u64, u64),
}

impl RangeLocks {
    fn list(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks a range; waits until no overlapping range is locked.
    pub fn lock(&self, offset: u64, len: u64) -> RangeGuard<'_> {
        let range = (offset, offset.saturating_add(len));
        let overlaps =
            |locked: &mut Vec<(u64, u64)>| locked.iter().any(|&(from, to)| from < range.1 && range.0 < to);
        let list = self.unlocked.wait_while(self.list(), overlaps);
        list.unwrap_or_else(PoisonError::into_inner).push(range);
        RangeGuard { locks: self, range }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut list = self.locks.list();
        if let Some(index) = list.iter().position(|range| *range == self.range) {
            list.swap_remove(index);
        }
        drop(list);
        self.locks.unlocked.notify_all();
    }
}
