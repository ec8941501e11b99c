//! Counters of devices for `ringctl stats`, `top` and Prometheus, whatever the kind of device.

use std::collections::BTreeMap;

use ringvirtio::histogram::HistogramSnapshot;
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::disk;

/// Counters by name.
pub type Counts = BTreeMap<String, u64>;

/// The devices of the zones that exist, by kind. Part of [`crate::stats::StatsReport`], in JSON as well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceReports {
    /// Disks; drives without a medium are left out.
    pub disks: Vec<DeviceStats>,
    /// Entropy devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rngs: Vec<DeviceStats>,
    /// Network devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<DeviceStats>,
    /// Console devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consoles: Vec<DeviceStats>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStats {
    /// Name of its zone.
    pub zone: String,
    /// Its virtio slot.
    pub slot: u8,
    /// A disk's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Stores to QueueNotify.
    pub notifications: u64,
    /// Those that found the queue's pending bit set.
    pub notifications_pending: u64,
    /// Used buffer notifications that EL2 was asked for by doorbell.
    pub doorbells: u64,
    /// Rising edges of its interrupt line.
    pub interrupts: u64,
    /// Its queues.
    pub queues: Vec<QueueStats>,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Number in its device.
    pub queue: usize,
    /// Whether the driver uses it now.
    pub active: bool,
    /// Requests in flight.
    pub depth: u64,
    /// Counters.
    pub counters: Counts,
    /// Latencies by what was measured.
    #[serde(flatten)]
    pub latencies: BTreeMap<String, Latency>,
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Number of durations.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The median.
    pub p50_ns: u64,
    /// The 90th percentile.
    pub p90_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// The 99.9th percentile.
    pub p999_ns: u64,
    /// Buckets that are not empty: the upper bound of each, and its count.
    pub buckets: Vec<(u64, u64)>,
}

impl DeviceReports {
    /// Adds a device.
    pub fn add(&mut self, stats: DeviceStats, config: &Config) {
        match config {
            Config::Disk(None) => {}
            Config::Disk(Some(disk)) => self.disks.push(DeviceStats {
                path: Some(disk.path.display().to_string()),
                ..stats
            }),
            Config::Rng(_) => self.rngs.push(stats),
            Config::Net(_) => self.nets.push(stats),
            Config::Console(_) => self.consoles.push(stats),
        }
    }

    /// Returns all devices, with the names of their kinds.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &DeviceStats)> + Clone {
        let disks = self.disks.iter().map(|disk| ("disk", disk));
        let rngs = self.rngs.iter().map(|rng| ("rng", rng));
        let nets = self.nets.iter().map(|net| ("net", net));
        let consoles = self.consoles.iter().map(|console| ("console", console));
        disks.chain(rngs).chain(nets).chain(consoles)
    }
}

impl QueueStats {
    /// Returns the latencies with their names in metrics and text.
    pub fn latencies(&self) -> impl Iterator<Item = (&str, &Latency)> {
        let label = |name| disk::names::label(name).unwrap_or(name);
        self.latencies
            .iter()
            .map(move |(name, latency)| (label(name.as_str()), latency))
    }
}

impl From<&HistogramSnapshot> for Latency {
    fn from(histogram: &HistogramSnapshot) -> Self {
        Self {
            count: histogram.count(),
            sum_ns: histogram.sum(),
            max_ns: histogram.max(),
            p50_ns: histogram.quantile(0.5),
            p90_ns: histogram.quantile(0.9),
            p99_ns: histogram.quantile(0.99),
            p999_ns: histogram.quantile(0.999),
            buckets: histogram.buckets().collect(),
        }
    }
}

impl Latency {
    /// Returns the durations that were added since `before`, all of them if the histogram has begun anew.
    pub fn since(&self, before: Option<&Self>) -> Self {
        let before = before.filter(|old| old.count <= self.count);
        let old: BTreeMap<u64, u64> =
            before.map_or_else(BTreeMap::new, |old| old.buckets.iter().copied().collect());
        let of = |upper: &u64| old.get(upper).copied().unwrap_or(0);
        let (count, sum) = before.map_or((0, 0), |old| (old.count, old.sum_ns));
        Self {
            count: self.count - count,
            sum_ns: self.sum_ns.saturating_sub(sum),
            buckets: self
                .buckets
                .iter()
                .map(|(upper, count)| (*upper, count.saturating_sub(of(upper))))
                .filter(|(_, count)| *count > 0)
                .collect(),
            ..Self::default()
        }
    }

    /// Returns the durations of several histograms in one.
    pub fn merged<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
        let mut sum = Self::default();
        for one in all {
            (sum.count, sum.sum_ns) = (sum.count + one.count, sum.sum_ns + one.sum_ns);
            for (upper, count) in &one.buckets {
                *buckets.entry(*upper).or_default() += count;
            }
        }
        sum.buckets = buckets.into_iter().collect();
        sum
    }

    /// Returns the smallest bucket bound at or below which a `fraction` of all durations lies; 0 if there are
    /// none.
    pub fn quantile(&self, fraction: f64) -> u64 {
        let count: u64 = self.buckets.iter().map(|(_, count)| count).sum();
        let rank = ((count as f64 * fraction).ceil() as u64).max(1);
        let mut seen = 0;
        for (upper, here) in &self.buckets {
            seen += here;
            if seen >= rank {
                return *upper;
            }
        }
        0
    }
}

/// Returns counters by name.
pub fn counts(named: impl IntoIterator<Item = (&'static str, u64)>) -> Counts {
    named
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Returns how much a counter rose; one that has begun anew counts from 0.
pub fn rise(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::Latency;

    #[test]
    fn quantiles_of_buckets() {
        let latency = Latency {
            buckets: vec![(10, 50), (20, 40), (30, 9), (1000, 1)],
            ..Latency::default()
        };
        assert_eq!(latency.quantile(0.5), 10);
        assert_eq!(latency.quantile(0.9), 20);
        assert_eq!(latency.quantile(0.99), 30);
        assert_eq!(latency.quantile(0.999), 1000);
        assert_eq!(Latency::default().quantile(0.5), 0);
    }
}
