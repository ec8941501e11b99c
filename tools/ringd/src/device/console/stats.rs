//! Counters of a console device's queue for [`crate::device::report`].

use ringconsole::ConsoleSnapshot;

use crate::device::report::{QueueStats, counts};

/// Returns the counters for reports.
pub fn queue_stats(stats: &ConsoleSnapshot) -> QueueStats {
    QueueStats {
        counters: counts(stats.all_counters()),
        ..QueueStats::default()
    }
}
