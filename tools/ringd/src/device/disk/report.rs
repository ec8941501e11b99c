//! [`DiskReport`]: a drive, its disk and its queues, for `ringctl disk`.

use ringvirtio::histogram::HistogramSnapshot;
use serde::{Deserialize, Serialize};

use super::SECTOR;
use super::config::DiskConfig;
use super::migration::MigrationReport;
use crate::device::backend::{Counters, QueueSnapshot};
use crate::device::view::Observed;

/// A drive, its disk and its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its zone.
    pub zone: String,
    /// Its slot; 0 is `/dev/vda`.
    pub slot: u8,
    /// The disk; `None`: the drive has no medium.
    pub disk: Option<DiskConfig>,
    /// Capacity in bytes.
    pub size: u64,
    /// Whether its host device is closed until the disk is resumed.
    #[serde(rename = "released", default)]
    pub closed: bool,
    /// Counters by queue.
    pub queues: Vec<QueueReport>,
    /// The migration of the disk.
    #[serde(rename = "moving", default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
    /// Why its last migration failed.
    #[serde(rename = "move_failure", default, skip_serializing_if = "Option::is_none")]
    pub migration_failure: Option<String>,
}

impl DiskReport {
    /// Returns the report of a drive.
    #[must_use]
    pub fn new(observed: &Observed) -> Self {
        let disk = observed.device.as_ref().and_then(|device| device.disk());
        let (view, slot) = (&observed.view, observed.slot);
        let recorded = observed.recovering.then(|| view.state());
        Self {
            zone: observed.zone.clone(),
            slot,
            disk: observed.config.disk().cloned(),
            size: disk.map_or(0, |disk| disk.capacity()).saturating_mul(SECTOR),
            closed: disk.is_some_and(|disk| disk.is_closed()),
            queues: observed
                .queues
                .iter()
                .filter_map(|queue| QueueReport::new(slot, queue))
                .collect(),
            migration: view.disk.migration_report(slot, recorded.as_ref()),
            migration_failure: view.disk.failure(slot),
        }
    }
}

/// Counters of a queue since the driver set it up or this daemon took it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// Its device's slot.
    pub slot: u8,
    /// Number in its device.
    pub queue: usize,
    /// Whether the driver uses it now.
    pub active: bool,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Discards completed.
    pub discards: u64,
    /// WRITE_ZEROES requests completed.
    pub zeroes: u64,
    /// Requests completed with an error.
    pub errors: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes discarded.
    pub bytes_discarded: u64,
    /// Bytes of zeroes.
    pub bytes_zeroed: u64,
    /// Batches popped off the available ring.
    pub batches: u64,
    /// Most requests in a batch.
    pub max_batch: u64,
    /// Most requests in flight at once.
    pub max_depth: u64,
    /// Operations submitted to the image.
    pub operations: u64,
    /// Those that were durable writes, because the driver has turned the write cache off.
    pub durable: u64,
    /// Operations that served several requests.
    pub merges: u64,
    /// Requests served by those.
    pub merged: u64,
    /// Operations that were retried.
    pub retries: u64,
    /// Requests that an earlier daemon had started.
    pub restarted: u64,
    /// Times that a rate limit delayed requests.
    pub throttled: u64,
    /// Requests that wait for `ringctl disk resume`.
    pub held: u64,
    /// Times that the queue stopped.
    pub stops: u64,
    /// Used buffer notifications sent.
    pub interrupts: u64,
    /// Used buffer notifications that the driver had suppressed.
    pub interrupts_suppressed: u64,
    /// Latency of reads.
    pub read_time: TimeReport,
    /// Latency of writes, discards and WRITE_ZEROES.
    pub write_time: TimeReport,
    /// Latency of flushes.
    pub flush_time: TimeReport,
    /// Latency of the image alone.
    pub file_time: TimeReport,
}

/// A distribution of latencies, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeReport {
    /// Mean.
    pub mean: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
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
    /// Returns the report of a queue of the drive in `slot`.
    #[must_use]
    pub fn new(slot: u8, queue: &QueueSnapshot) -> Option<Self> {
        let Counters::Disk(stats) = &queue.counters else {
            return None;
        };
        Some(Self {
            slot,
            queue: queue.queue,
            active: queue.active,
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
        })
    }
}
