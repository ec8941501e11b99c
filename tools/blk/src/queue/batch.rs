//! The transfers of a batch that wait to be submitted, and which of them may go as one: [`Batch`].
//!
//! Those that wait do not conflict: no write overlaps anything. So they may be sorted, and neighbours be
//! merged. When one conflicts, the caller submits what waits first.
//! [`MergePool`] has the buffer lists of operations that carry several requests.

use std::ops::Range;

use ringvirtio::buffers::IoList;

use super::slot::Work;

/// A transfer that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Staged {
    pub head: u16,
    /// [`Work::Read`] or [`Work::Write`].
    pub work: Work,
    /// Byte offsets in the image.
    pub start: u64,
    pub end: u64,
    /// Buffers.
    pub parts: u32,
}

/// The smallest range that holds all of some transfers.
#[derive(Clone, Copy)]
struct Envelope {
    start: u64,
    end: u64,
}

impl Envelope {
    const EMPTY: Self = Self {
        start: u64::MAX,
        end: 0,
    };

    fn add(&mut self, item: &Staged) {
        self.start = self.start.min(item.start);
        self.end = self.end.max(item.end);
    }

    fn meets(&self, item: &Staged) -> bool {
        item.start < self.end && self.start < item.end
    }
}

/// Transfers of one batch.
pub struct Batch {
    list: Vec<Staged>,
    reads: Envelope,
    writes: Envelope,
}

impl Batch {
    /// Room for `size` transfers.
    pub fn new(size: usize) -> Self {
        Self {
            list: Vec::with_capacity(size),
            reads: Envelope::EMPTY,
            writes: Envelope::EMPTY,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns whether the order of `new` and something that waits matters.
    pub fn conflicts(&self, new: &Staged) -> bool {
        let writing = new.work == Work::Write;
        // The envelopes decide in most cases.
        if !(self.writes.meets(new) || writing && self.reads.meets(new)) {
            return false;
        }
        let conflict =
            |old: &Staged| (writing || old.work == Work::Write) && old.start < new.end && new.start < old.end;
        self.list.iter().any(conflict)
    }

    pub fn push(&mut self, new: Staged) {
        match new.work {
            Work::Write => self.writes.add(&new),
            _ => self.reads.add(&new),
        }
        self.list.push(new);
    }

    /// Sorts the transfers so that neighbours are adjacent.
    pub fn sort(&mut self) {
        if self.list.len() > 1 {
            self.list
                .sort_unstable_by_key(|item| (item.work == Work::Write, item.start));
        }
    }

    /// Returns the transfers from `first` on that may go as one, in a sorted batch; none at the end.
    pub fn run(&self, first: usize, max_bytes: u64, max_parts: usize) -> Range<usize> {
        let mut items = self.list.iter().skip(first);
        let Some(leader) = items.next() else {
            return first..first;
        };
        let (mut end, mut parts, mut last) = (leader.end, leader.parts as usize, first + 1);
        for item in items {
            let more = parts.saturating_add(item.parts as usize);
            if item.work != leader.work
                || item.start != end
                || item.end - leader.start > max_bytes
                || more > max_parts
            {
                break;
            }
            (end, parts, last) = (item.end, more, last + 1);
        }
        first..last
    }

    /// Returns the heads of a run.
    pub fn heads(&self, run: Range<usize>) -> impl Iterator<Item = u16> {
        self.list
            .get(run)
            .unwrap_or_default()
            .iter()
            .map(|item| item.head)
    }

    pub fn clear(&mut self) {
        self.list.clear();
        self.reads = Envelope::EMPTY;
        self.writes = Envelope::EMPTY;
    }
}

/// The lists. One in use is taken out of `free`; the last one released is the first one used again, so they
/// are as few, and grow as little, as the traffic needs.
#[derive(Default)]
pub struct MergePool {
    lists: Vec<IoList>,
    free: Vec<u16>,
}

impl MergePool {
    /// Returns an empty list and its number.
    pub fn acquire(&mut self) -> Option<(u16, &mut IoList)> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.lists.push(IoList::default());
            self.free.reserve(self.lists.len());
            // Fewer than heads: each is of two or more.
            self.lists.len() as u16 - 1
        });
        let list = self.lists.get_mut(usize::from(index))?;
        list.clear();
        Some((index, list))
    }

    /// Releases a list, for use again.
    pub fn release(&mut self, index: u16) {
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Batch, Staged};
    use crate::queue::slot::Work;

    fn staged(head: u16, write: bool, start: u64, len: u64, parts: u32) -> Staged {
        let work = if write { Work::Write } else { Work::Read };
        Staged {
            head,
            work,
            start,
            end: start + len,
            parts,
        }
    }

    fn runs(batch: &mut Batch, max_bytes: u64, max_parts: usize) -> Vec<Vec<u16>> {
        batch.sort();
        let mut all = Vec::new();
        let mut first = 0;
        loop {
            let run = batch.run(first, max_bytes, max_parts);
            if run.is_empty() {
                return all;
            }
            first = run.end;
            all.push(batch.heads(run).collect());
        }
    }

    #[test]
    fn neighbours_of_a_kind_go_together() {
        let mut batch = Batch::new(8);
        for (head, write, start) in [
            (1, false, 512),
            (2, true, 4096),
            (3, false, 0),
            (4, true, 3584),
            (5, false, 1024),
            (6, false, 2048),
            (7, true, 4608),
        ] {
            let new = staged(head, write, start, 512, 1);
            assert!(!batch.conflicts(&new));
            batch.push(new);
        }
        assert_eq!(
            runs(&mut batch, 1 << 20, 1024),
            [vec![3, 1, 5], vec![6], vec![4, 2, 7]]
        );
        // By bytes, by parts.
        assert_eq!(runs(&mut batch, 1024, 1024).len(), 5);
        assert_eq!(runs(&mut batch, 1 << 20, 2).len(), 5);
        // One that is too large by itself still goes, alone.
        assert_eq!(runs(&mut batch, 1, 1).len(), 7);
    }

    #[test]
    fn conflicts() {
        let mut batch = Batch::new(8);
        batch.push(staged(1, false, 1000, 1000, 1));
        batch.push(staged(2, true, 5000, 1000, 1));
        batch.push(staged(3, true, 9000, 1000, 1));
        for (write, start, len, expected) in [
            (false, 1500, 100, false),
            (true, 1500, 100, true),
            (true, 0, 1000, false),
            (true, 2000, 3000, false),
            (false, 5999, 1, true),
            (true, 5999, 1, true),
            (true, 6000, 3000, false),
            (false, 0, 10_000, true),
        ] {
            assert_eq!(
                batch.conflicts(&staged(9, write, start, len, 1)),
                expected,
                "{start}+{len}"
            );
        }
        batch.clear();
        assert!(!batch.conflicts(&staged(9, true, 0, 10_000, 1)) && batch.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        // Every transfer goes exactly once, in runs that are contiguous, of one kind, and within the limits.
        #[test]
        fn runs_partition_the_batch(
            items in prop::collection::vec((any::<bool>(), 0_u64..64, 1_u64..5, 1_u32..5), 0..40),
            max_bytes in 1_u64..10,
            max_parts in 1_usize..12,
        ) {
            let mut batch = Batch::new(40);
            let mut taken = Vec::new();
            for (head, (write, start, len, parts)) in items.into_iter().enumerate() {
                let new = staged(head as u16, write, start, len, parts);
                let overlap = taken.iter().any(|old: &Staged| {
                    (write || old.work == Work::Write) && old.start < new.end && new.start < old.end
                });
                prop_assert_eq!(batch.conflicts(&new), overlap);
                if !overlap {
                    batch.push(new);
                    taken.push(new);
                }
            }
            let mut seen: Vec<u16> = Vec::new();
            for run in runs(&mut batch, max_bytes, max_parts) {
                let members: Vec<&Staged> =
                    run.iter().map(|head| taken.iter().find(|item| item.head == *head).unwrap()).collect();
                for pair in members.windows(2) {
                    prop_assert_eq!(pair[0].end, pair[1].start);
                    prop_assert_eq!(pair[0].work, pair[1].work);
                }
                if members.len() > 1 {
                    let bytes: u64 = members.iter().map(|item| item.end - item.start).sum();
                    let parts: usize = members.iter().map(|item| item.parts as usize).sum();
                    prop_assert!(bytes <= max_bytes && parts <= max_parts);
                }
                seen.extend(run);
            }
            seen.sort_unstable();
            let heads: Vec<u16> = taken.iter().map(|item| item.head).collect();
            prop_assert_eq!(seen, heads);
        }
    }
}
