//! [`RangeLocks`]: locks on byte ranges of a disk. Threads that lock overlapping ranges run one after the
//! other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The locked ranges.
#[derive(Default)]
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::RangeLocks;

    #[test]
    fn only_overlapping_ranges_wait() {
        let locks = RangeLocks::default();
        let first = locks.lock(512, 512);
        // Adjacent on both sides.
        drop([locks.lock(0, 512), locks.lock(1024, 512)]);
        let (locked, waiting) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _second = locks.lock(1023, 1);
                locked.send(()).unwrap();
            });
            assert!(waiting.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            waiting.recv_timeout(Duration::from_secs(60)).unwrap();
        });
        assert!(locks.list().is_empty());
    }
}
