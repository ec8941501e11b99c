//! [`DiskReport`]: a drive, its disk and its queues, for `ringctl disk`.

use ringvirtio::histogram::HistogramSnapshot;
use serde::{Deserialize, Serialize};

use super::SECTOR;
use super::config::DiskConfig;
use super::migration::MigrationReport;
use crate::device::backend::{Counters, QueueSnapshot};
use crate::device::report::{Counts, counts};
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
    /// The slot of its drive.
    pub slot: u8,
    /// Its number in the drive.
    pub queue: usize,
    /// Whether the driver uses it now.
    pub active: bool,
    /// Counters by name: [`ringblk::BlockSnapshot::all_counters`].
    #[serde(flatten)]
    pub counters: Counts,
    /// Time of reads, in nanoseconds.
    pub read_time: TimeReport,
    /// Of writes, discards, zeroes.
    pub write_time: TimeReport,
    /// Of flushes.
    pub flush_time: TimeReport,
    /// Of the image alone.
    pub file_time: TimeReport,
}

/// A histogram of durations in short, in nanoseconds.
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
    pub fn new(slot: u8, queue: &QueueSnapshot) -> Option<Self> {
        let Counters::Disk(stats) = &queue.counters else {
            return None;
        };
        Some(Self {
            slot,
            queue: queue.queue,
            active: queue.active,
            counters: counts(stats.all_counters()),
            read_time: (&stats.latency.reads).into(),
            write_time: (&stats.latency.writes).into(),
            flush_time: (&stats.latency.flushes).into(),
            file_time: (&stats.latency.file).into(),
        })
    }

    /// Returns a counter; 0 if there is none of that name.
    pub fn count(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}
