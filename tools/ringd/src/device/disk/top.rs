//! Disks in `ringctl top`: rates between two reports.

use crate::device::report::{DeviceStats, Latency, QueueStats, rise};

/// The columns of the table: heading, width, whether it is right-aligned.
pub const COLUMNS: [(&str, u16, bool); 11] = [
    ("ZONE", 8, false),
    ("DISK", 4, false),
    ("READ/s", 6, true),
    ("WRITE/s", 7, true),
    ("R MB/s", 6, true),
    ("W MB/s", 6, true),
    ("P50 us", 6, true),
    ("P99 us", 6, true),
    ("FILE us", 7, true),
    ("DEPTH", 5, true),
    ("IRQ/s", 6, true),
];

/// A disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskRow {
    /// Its zone.
    pub zone: String,
    /// Its name in a Linux guest.
    pub name: String,
    /// Reads per second.
    pub reads: f64,
    /// Writes per second.
    pub writes: f64,
    /// MB read per second.
    pub read_mb: f64,
    /// MB written per second.
    pub write_mb: f64,
    /// Median latency in microseconds.
    pub p50: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99: f64,
    /// Mean latency of the image alone in microseconds.
    pub file: f64,
    /// Mean number of requests in flight (Little's law).
    pub depth: f64,
    /// Interrupts per second.
    pub interrupts: f64,
}

impl DiskRow {
    /// Returns the row of a disk from the report `before` and the one `now`; `rate` turns counts into rates
    /// per second.
    pub fn new(before: &[DeviceStats], now: &DeviceStats, rate: impl Fn(u64) -> f64) -> Self {
        let old = before
            .iter()
            .find(|old| (&old.zone, old.slot) == (&now.zone, now.slot));
        let old_queue = |queue: &QueueStats| {
            let old = old.map_or(&[] as &[QueueStats], |old| &old.queues);
            old.iter().find(|old| old.queue == queue.queue)
        };
        let count = |name: &str| -> u64 {
            let get = |queue: &QueueStats| queue.counters.get(name).copied().unwrap_or(0);
            let queues = now.queues.iter();
            queues
                .map(|queue| rise(old_queue(queue).map_or(0, get), get(queue)))
                .sum()
        };
        let latency = |name: &str| -> Latency {
            let since = |queue: &QueueStats| {
                let before = old_queue(queue).and_then(|queue| queue.latencies.get(name));
                Some(queue.latencies.get(name)?.since(before))
            };
            let all: Vec<Latency> = now.queues.iter().filter_map(since).collect();
            Latency::merged(all.iter())
        };
        let kinds = ["reads", "writes", "flushes"].map(latency);
        let requests = Latency::merged(kinds.iter());
        let file = latency("file");
        let letter = char::from(b'a'.saturating_add(now.slot));
        Self {
            zone: now.zone.clone(),
            name: if now.slot < 26 {
                format!("vd{letter}")
            } else {
                format!("#{}", now.slot)
            },
            reads: rate(count("reads")),
            writes: rate(count("writes")),
            read_mb: rate(count("bytes_read")) / 1e6,
            write_mb: rate(count("bytes_written")) / 1e6,
            p50: requests.quantile(0.5) as f64 / 1e3,
            p99: requests.quantile(0.99) as f64 / 1e3,
            file: file.sum_ns as f64 / file.count.max(1) as f64 / 1e3,
            depth: rate(requests.sum_ns) / 1e9,
            interrupts: rate(rise(old.map_or(0, |old| old.interrupts), now.interrupts)),
        }
    }

    /// Returns the cells of the row; `number` formats a number.
    pub fn cells(&self, number: fn(f64) -> String) -> Vec<String> {
        let mut cells = vec![self.zone.clone(), self.name.clone()];
        let numbers = [
            self.reads,
            self.writes,
            self.read_mb,
            self.write_mb,
            self.p50,
            self.p99,
            self.file,
            self.depth,
            self.interrupts,
        ];
        cells.extend(numbers.map(number));
        cells
    }
}
