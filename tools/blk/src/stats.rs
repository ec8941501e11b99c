//! Counters of a block device's queue: its requests, beside what every queue counts ([`ringvirtio::stats`]).

use std::sync::Arc;

use ringvirtio::histogram::{Histogram, HistogramSnapshot};
use ringvirtio::stats::{QueueSnapshot, QueueStats};

ringvirtio::counters! {
    /// What a queue has done since it was made.
    BlockStats =>
    /// [`BlockStats`] at some moment.
    BlockSnapshot {
        /// Reads completed with OK.
        reads,
        /// Writes completed with OK.
        writes,
        /// Flushes completed with OK.
        flushes,
        /// Discards completed with OK.
        discards,
        /// Zeroes completed with OK.
        zeroes,
        /// Other requests completed with OK.
        others,
        /// Requests completed with IOERR.
        errors,
        /// Requests completed with UNSUPP.
        unsupported,
        /// Bytes read.
        bytes_read,
        /// Bytes written.
        bytes_written,
        /// Bytes discarded.
        bytes_discarded,
        /// Bytes of zeroes.
        bytes_zeroed,
        /// Operations submitted to the engine.
        operations,
        /// Of them, writes that are durable by themselves: the write cache is off.
        durable,
        /// Operations submitted again: short transfers, EINTR, EAGAIN, parts of a merged one that failed.
        retries,
        /// Operations that carried more than one request.
        merges,
        /// Requests that they carried.
        merged,
        /// Requests that failed and are held now; more than none: the queue is stopped.
        held,
        /// Times that a failing request stopped the queue.
        stops,
        ;
        /// What every virtqueue counts.
        queue: Arc<QueueStats> => QueueSnapshot,
        /// How long requests took, in nanoseconds.
        latency: Latencies => LatencySnapshot,
    }
}

impl BlockSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }
}

ringvirtio::counters! {
    /// Histograms of a queue. Requests are timed from the driver's notification to having their status; from
    /// being popped where no notification is known, since the driver saved it, or a limit kept them in the
    /// ring.
    Latencies =>
    /// [`Latencies`] at some moment.
    LatencySnapshot {
        ;
        /// Reads.
        reads: Histogram => HistogramSnapshot,
        /// Writes, discards, zeroes.
        writes: Histogram => HistogramSnapshot,
        /// Flushes.
        flushes: Histogram => HistogramSnapshot,
        /// The image alone: operations of the engine, from being submitted to being reaped.
        file: Histogram => HistogramSnapshot,
    }
}
