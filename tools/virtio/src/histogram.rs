//! [`Histogram`]: counts of durations, in buckets no wider than an eighth of their value. Adding allocates
//! nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets to each power of two, as a power of two.
const SUB_BITS: u32 = 3;
const SUBS: u64 = 1 << SUB_BITS;
/// Durations from `2^MAX_BITS` nanoseconds (69 seconds) on share the last bucket.
const MAX_BITS: u32 = 36;
/// Buckets.
pub const BUCKETS: usize = (((MAX_BITS - SUB_BITS + 1) as u64) * SUBS) as usize;

/// Returns the bucket of a duration in nanoseconds.
#[inline]
fn bucket(value: u64) -> usize {
    let value = value.min((1 << MAX_BITS) - 1);
    if value < SUBS {
        return value as usize;
    }
    let exponent = value.ilog2() - SUB_BITS;
    ((u64::from(exponent) + 1) * SUBS + (value >> exponent) - SUBS) as usize
}

/// Returns the largest duration of a bucket.
fn upper(bucket: usize) -> u64 {
    let (row, column) = (bucket as u64 / SUBS, bucket as u64 % SUBS);
    if row == 0 {
        return column;
    }
    ((SUBS + column + 1) << (row - 1)) - 1
}

/// Durations in nanoseconds: written by one thread, read by any.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Adds a duration; only for the thread that owns the histogram.
    #[inline]
    pub fn record(&self, nanoseconds: u64) {
        let add = |cell: &AtomicU64, value: u64| {
            cell.store(
                cell.load(Ordering::Relaxed).wrapping_add(value),
                Ordering::Relaxed,
            );
        };
        if let Some(count) = self.counts.get(bucket(nanoseconds)) {
            add(count, 1);
        }
        add(&self.sum, nanoseconds);
        if nanoseconds > self.max.load(Ordering::Relaxed) {
            self.max.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// Returns a copy. While the owner records, it may miss what is being recorded.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            counts: self
                .counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
        }
    }
}

/// A histogram at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    counts: Vec<u64>,
    sum: u64,
    max: u64,
}

impl HistogramSnapshot {
    /// Returns the number of durations recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the longest duration, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Returns the sum, exactly.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns the mean; 0 of none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count()).unwrap_or(0)
    }

    /// Returns the duration that `fraction` (0.99) of them do not exceed, at most an eighth too much; 0 of
    /// none.
    pub fn quantile(&self, fraction: f64) -> u64 {
        let count = self.count();
        let rank = ((count as f64 * fraction).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (bucket, &here) in self.counts.iter().enumerate() {
            seen += here;
            if here > 0 && seen >= rank {
                return upper(bucket).min(self.max);
            }
        }
        0
    }

    /// Returns the buckets that are not empty, by rising duration: the largest duration of each, and its
    /// count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let all = self.counts.iter().enumerate();
        all.filter(|&(_, &count)| count > 0)
            .map(|(bucket, &count)| (upper(bucket), count))
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Histogram, bucket, upper};

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for index in 1..BUCKETS {
            assert_eq!(bucket(upper(index)), index);
            assert_eq!(bucket(upper(index - 1) + 1), index);
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        for value in [9, 100, 4095, 4096, 123_456_789, (1 << 36) - 1] {
            let above = upper(bucket(value));
            assert!(above >= value && above - value <= value / 8, "{value}: {above}");
        }
    }

    #[test]
    fn quantiles_of_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!(
            (histogram.snapshot().quantile(0.5), histogram.snapshot().mean()),
            (0, 0)
        );
        for value in 1..=1000 {
            histogram.record(value * 1000);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(
            (snapshot.count(), snapshot.max(), snapshot.sum(), snapshot.mean()),
            (1000, 1_000_000, 500_500_000, 500_500)
        );
        for (fraction, exact) in [(0.0, 1000), (0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let found = snapshot.quantile(fraction);
            assert!(
                (exact..=exact + exact / 8).contains(&found),
                "{fraction}: {found}"
            );
        }
        assert_eq!(snapshot.buckets().map(|(_, count)| count).sum::<u64>(), 1000);
    }
}
