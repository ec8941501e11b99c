//! Counters of a network device's queue for [`crate::device::report`].

use ringnet::NetSnapshot;

use crate::device::report::{QueueStats, counts};

/// Returns the counters for reports.
pub fn queue_stats(stats: &NetSnapshot) -> QueueStats {
    QueueStats {
        counters: counts(stats.all_counters()),
        ..QueueStats::default()
    }
}
