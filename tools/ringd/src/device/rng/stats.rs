//! Counters of an entropy device's queue for [`crate::device::report`].

use ringrng::RngSnapshot;

use crate::device::report::{QueueStats, counts};

/// Returns the counters for reports.
pub fn queue_stats(stats: &RngSnapshot) -> QueueStats {
    QueueStats {
        depth: stats.queue.batched.saturating_sub(stats.requests),
        counters: counts(stats.all_counters()),
        ..QueueStats::default()
    }
}
