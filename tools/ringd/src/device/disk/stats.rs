//! Counters of a drive's queues for [`crate::device::report`].

use ringblk::{BlockSnapshot, BlockStats};

use super::names::LATENCIES;
use crate::device::report::{QueueStats, counts};

/// Whether a request has completed.
pub fn has_completed(counters: &BlockStats) -> bool {
    counters.reads.get() + counters.writes.get() + counters.flushes.get() > 0
}

/// Returns the counters for reports.
pub fn queue_stats(stats: &BlockSnapshot) -> QueueStats {
    let ended = [
        stats.reads,
        stats.writes,
        stats.flushes,
        stats.discards,
        stats.zeroes,
        stats.others,
        stats.errors,
        stats.unsupported,
    ];
    let ended: u64 = ended.iter().sum();
    let latency = &stats.latency;
    let histograms = [&latency.reads, &latency.writes, &latency.flushes, &latency.file];
    let latencies = LATENCIES.iter().zip(histograms);
    QueueStats {
        depth: stats.queue.batched.saturating_sub(ended),
        counters: counts(stats.all_counters()),
        latencies: latencies
            .map(|((name, _), histogram)| ((*name).to_owned(), histogram.into()))
            .collect(),
        ..QueueStats::default()
    }
}
