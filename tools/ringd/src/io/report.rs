//! [`QueueReport`]: what a queue has done, as the daemon tells it to others.

use ringblk::BlockSnapshot;
use ringvirtio::histogram::HistogramSnapshot;
use serde::{Deserialize, Serialize};

/// Counters of one queue, since the driver set it up or this daemon took it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// virtio slot of its device.
    pub slot: u8,
    /// Number in its device.
    pub queue: usize,
    /// Whether the guest uses it now.
    pub active: bool,
    /// Requests read.
    pub reads: u64,
    /// Requests written.
    pub writes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discards done.
    pub discards: u64,
    /// Zeroes written.
    pub zeroes: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes given back.
    pub bytes_discarded: u64,
    /// Bytes of zeroes.
    pub bytes_zeroed: u64,
    /// Batches taken.
    pub batches: u64,
    /// Most requests in a batch.
    pub max_batch: u64,
    /// Most requests in flight at once.
    pub max_depth: u64,
    /// Operations on the image.
    pub operations: u64,
    /// Of them, writes that are durable by themselves: the guest has turned its write cache off.
    pub durable: u64,
    /// Operations that carried several requests.
    pub merges: u64,
    /// Requests that those carried.
    pub merged: u64,
    /// Operations that were tried again.
    pub retries: u64,
    /// Requests that a dead daemon had started.
    pub restarted: u64,
    /// Times that a limit held requests back.
    pub throttled: u64,
    /// Requests that have stopped the queue and wait for `ringctl disk resume`.
    pub held: u64,
    /// Times that the queue stopped.
    pub stops: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Interrupts that the guest did not want.
    pub interrupts_suppressed: u64,
    /// How long reads took.
    pub read_time: TimeReport,
    /// How long writes, discards and zeroes took.
    pub write_time: TimeReport,
    /// How long flushes took.
    pub flush_time: TimeReport,
    /// How long the image alone took.
    pub file_time: TimeReport,
}

/// A distribution of times, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeReport {
    /// Mean.
    pub mean: u64,
    /// Half of them were shorter.
    pub p50: u64,
    /// One in a hundred was longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl From<&HistogramSnapshot> for TimeReport {
    fn from(histogram: &HistogramSnapshot) -> Self {
        Self {
            mean: histogram.mean(),
            p50: histogram.quantile(0.5),
            p99: histogram.quantile(0.99),
            max: histogram.max(),
        }
    }
}

impl QueueReport {
    /// From the queue's own counters.
    #[must_use]
    pub fn new(slot: u8, queue: usize, active: bool, stats: &BlockSnapshot) -> Self {
        Self {
            slot,
            queue,
            active,
            reads: stats.reads,
            writes: stats.writes,
            flushes: stats.flushes,
            discards: stats.discards,
            zeroes: stats.zeroes,
            errors: stats.errors,
            bytes_read: stats.bytes_read,
            bytes_written: stats.bytes_written,
            bytes_discarded: stats.bytes_discarded,
            bytes_zeroed: stats.bytes_zeroed,
            batches: stats.queue.batches,
            max_batch: stats.queue.max_batch,
            max_depth: stats.queue.max_depth,
            operations: stats.operations,
            durable: stats.durable,
            merges: stats.merges,
            merged: stats.merged,
            retries: stats.retries,
            restarted: stats.queue.restarted,
            throttled: stats.queue.throttled,
            held: stats.held,
            stops: stats.stops,
            interrupts: stats.queue.interrupts,
            interrupts_suppressed: stats.queue.interrupts_suppressed,
            read_time: (&stats.latency.reads).into(),
            write_time: (&stats.latency.writes).into(),
            flush_time: (&stats.latency.flushes).into(),
            file_time: (&stats.latency.file).into(),
        }
    }
}
