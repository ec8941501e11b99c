//! Counters of a queue: written by its reactor's thread alone, read by anyone at any time, without locks.
//!
//! [`QueueStats`] is what the queue counts with, [`QueueSnapshot`] a copy to be shown.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Histogram, HistogramSnapshot};

/// One counter with a single writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only for the queue's own thread, which is why no atomic addition is needed.
    pub(crate) fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares the counters once: as they are counted, and as they are copied.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a queue has done since it was made.
        #[derive(Debug, Default)]
        pub struct QueueStats {
            $($(#[$doc])* pub $name: Counter,)*
            /// How long requests took, in nanoseconds.
            pub latency: Latencies,
        }

        /// [`QueueStats`] at some moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct QueueSnapshot {
            $($(#[$doc])* pub $name: u64,)*
            /// How long requests took, in nanoseconds.
            pub latency: LatencySnapshot,
        }

        impl QueueStats {
            /// A copy. While the queue works, its numbers may differ by what is being counted.
            #[must_use]
            pub fn snapshot(&self) -> QueueSnapshot {
                QueueSnapshot {
                    $($name: self.$name.get(),)*
                    latency: self.latency.snapshot(),
                }
            }
        }

        impl QueueSnapshot {
            /// The counters by name, for whoever shows them all.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
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
    /// Times that requests were found in the available ring.
    batches,
    /// Requests in those batches.
    batched,
    /// Most requests taken in one round.
    max_batch,
    /// Most requests in flight at once.
    max_depth,
    /// Operations given to the engine.
    operations,
    /// Of them, writes that are durable by themselves: the write cache is off.
    durable,
    /// Operations that were given again: short transfers, EINTR, EAGAIN, parts of a merged one that failed.
    retries,
    /// Operations that carried more than one request.
    merges,
    /// Requests that they carried.
    merged,
    /// Publications of the used index.
    publications,
    /// Interrupts raised.
    interrupts,
    /// Times that the driver wanted none.
    interrupts_suppressed,
    /// Publications that were left to a later interrupt.
    interrupts_coalesced,
    /// Notifications that found nothing.
    spurious_kicks,
    /// Requests run again after a restart of the daemon.
    restarted,
    /// Times that requests were left in the available ring for a limit's sake.
    throttled,
    /// Requests that failed and are held back now; more than none: the queue is stopped.
    held,
    /// Times that a failing request stopped the queue.
    stops,
}

/// Histograms of a queue. Requests are timed from the driver's notification to having their status; where no notification is
/// known of, since the driver saved it, or a limit kept them in the ring, from being taken off the ring.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Reads.
    pub reads: Histogram,
    /// Writes, discards, zeroes.
    pub writes: Histogram,
    /// Flushes.
    pub flushes: Histogram,
    /// The image alone: operations of the engine, from being pushed to being reaped.
    pub file: Histogram,
}

impl Latencies {
    /// A copy.
    #[must_use]
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            reads: self.reads.snapshot(),
            writes: self.writes.snapshot(),
            flushes: self.flushes.snapshot(),
            file: self.file.snapshot(),
        }
    }
}

/// [`Latencies`] at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencySnapshot {
    /// Reads.
    pub reads: HistogramSnapshot,
    /// Writes, discards, zeroes.
    pub writes: HistogramSnapshot,
    /// Flushes.
    pub flushes: HistogramSnapshot,
    /// The image alone.
    pub file: HistogramSnapshot,
}
