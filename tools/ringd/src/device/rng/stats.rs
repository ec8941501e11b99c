//! Counters of an entropy device's queue for [`crate::device::report`].

use ringrng::RngSnapshot;

use crate::device::report::QueueStats;

/// Returns the counters for reports.
#[must_use]
pub fn queue_stats(stats: &RngSnapshot) -> QueueStats {
    QueueStats {
        depth: stats.queue.batched.saturating_sub(stats.requests),
        counters: stats
            .all_counters()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        ..QueueStats::default()
    }
}
