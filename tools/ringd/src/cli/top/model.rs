//! [`Model`]: rates between two reports.

use std::collections::BTreeMap;

use crate::device::disk::top::DiskRow;
use crate::device::net::top::NetRow;
use crate::device::report::{Counts, rise};
use crate::stats::{CpuStats, StatsReport, ZoneStats};

/// The content of the screen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// The daemon.
    pub daemon: DaemonRow,
    /// Zones.
    pub zones: Vec<ZoneRow>,
    /// CPUs that have an owner.
    pub cpus: Vec<CpuRow>,
    /// Disks.
    pub disks: Vec<DiskRow>,
    /// Network devices.
    pub nets: Vec<NetRow>,
}

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DaemonRow {
    /// EL2's version.
    pub version: String,
    /// Wake-ups per second.
    pub wakeups: f64,
    /// Those that found no event.
    pub spurious: f64,
    /// CPUs that it keeps busy, of 1.
    pub cpu: f64,
    /// Most memory so far, in MiB.
    pub memory: f64,
}

/// A zone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ZoneRow {
    /// The zone.
    pub zone: ZoneStats,
    /// Exits per second, of all its vCPUs.
    pub exits: f64,
}

/// A CPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuRow {
    /// Its number.
    pub cpu: usize,
    /// Zone and vCPU.
    pub zone: String,
    /// vCPU.
    pub vcpu: u8,
    /// Exits per second.
    pub exits: f64,
    /// By reason, as the report names them.
    pub by: BTreeMap<String, f64>,
    /// Part of the time at EL2, of 1.
    pub el2: f64,
    /// Longest stay, in microseconds.
    pub longest: f64,
}

fn rises(before: Option<&Counts>, now: &Counts) -> BTreeMap<String, u64> {
    let old = |name: &str| before.and_then(|before| before.get(name)).copied().unwrap_or(0);
    now.iter()
        .map(|(name, value)| (name.clone(), rise(old(name), *value)))
        .collect()
}

impl Model {
    /// Returns the rates between two reports.
    pub fn new(before: &StatsReport, now: &StatsReport) -> Self {
        let seconds = (now.time_ns.saturating_sub(before.time_ns) as f64 / 1e9).max(1e-9);
        let idle = before.time_ns == now.time_ns;
        // Two reports of one moment have no rates.
        let rate = |count: u64| if idle { 0.0 } else { count as f64 / seconds };
        let cpus: Vec<CpuRow> = now
            .cpus
            .iter()
            .filter(|cpu| cpu.zone.is_some())
            .map(|cpu| cpu_row(before, now, cpu, rate))
            .collect();
        let zones = now.zones.iter().map(|zone| ZoneRow {
            zone: zone.clone(),
            exits: cpus
                .iter()
                .filter(|cpu| cpu.zone == zone.name)
                .map(|cpu| cpu.exits)
                .sum(),
        });
        let (old, new) = (&before.daemon, &now.daemon);
        let risen = |name: &str| rate(rise(old.count(name), new.count(name)));
        Self {
            daemon: DaemonRow {
                version: new.el2_version.clone(),
                wakeups: risen("wakeups"),
                spurious: risen("spurious_wakeups"),
                cpu: (risen("user_ns") + risen("system_ns")) / 1e9,
                memory: new.count("max_rss_bytes") as f64 / 1048576.0,
            },
            zones: zones.collect(),
            disks: now
                .devices
                .disks
                .iter()
                .map(|disk| DiskRow::new(&before.devices.disks, disk, rate))
                .collect(),
            nets: NetRow::all(&before.devices.nets, &now.devices.nets, rate),
            cpus,
        }
    }
}

fn cpu_row(before: &StatsReport, now: &StatsReport, cpu: &CpuStats, rate: impl Fn(u64) -> f64) -> CpuRow {
    let old = before
        .cpus
        .iter()
        .find(|old| (old.cpu, old.zone, old.vcpu) == (cpu.cpu, cpu.zone, cpu.vcpu));
    let by = rises(old.map(|old| &old.exits), &cpu.exits);
    let times = rises(old.map(|old| &old.el2_ns), &cpu.el2_ns);
    let name = match cpu.zone {
        Some(0) => "root".to_owned(),
        other => now
            .zones
            .iter()
            .find(|zone| zone.number == other)
            .map_or_else(|| "-".to_owned(), |zone| zone.name.clone()),
    };
    CpuRow {
        cpu: cpu.cpu,
        zone: name,
        vcpu: cpu.vcpu,
        exits: rate(by.values().sum()),
        by: by.into_iter().map(|(name, count)| (name, rate(count))).collect(),
        el2: rate(times.values().sum()) / 1e9,
        longest: cpu.longest_ns as f64 / 1e3,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::Model;
    use crate::device::report::{DeviceReports, DeviceStats, Latency, QueueStats};
    use crate::stats::{CpuStats, DaemonStats, StatsReport, ZoneStats};

    /// A zone with a disk after `n` seconds of a thousand reads each.
    pub fn report(n: u64) -> StatsReport {
        let cpu = |cpu, zone, exits: u64| CpuStats {
            cpu,
            zone: Some(zone),
            exits: [("irq".to_owned(), exits), ("permission".to_owned(), 2 * exits)].into(),
            el2_ns: [("irq".to_owned(), exits * 10_000)].into(),
            longest_ns: 12_345,
            ..CpuStats::default()
        };
        let reads = Latency {
            count: 1000 * n,
            sum_ns: 1000 * n * 200_000,
            buckets: vec![(100_000, 900 * n), (1_000_000, 100 * n)],
            ..Latency::default()
        };
        let queue = QueueStats {
            active: true,
            counters: [
                ("reads".to_owned(), 1000 * n),
                ("bytes_read".to_owned(), 4_096_000 * n),
            ]
            .into(),
            latencies: ["file", "reads"]
                .map(|name| (name.to_owned(), reads.clone()))
                .into(),
            ..QueueStats::default()
        };
        StatsReport {
            time_ns: 5_000_000_000 + n * 1_000_000_000,
            daemon: DaemonStats {
                el2_version: "9.9".into(),
                counts: [
                    ("wakeups".to_owned(), 500 * n),
                    ("user_ns".to_owned(), 250_000_000 * n),
                    ("max_rss_bytes".to_owned(), 4 << 20),
                ]
                .into(),
                ..DaemonStats::default()
            },
            zones: vec![ZoneStats {
                name: "guest1".into(),
                number: Some(1),
                state: "running".into(),
                vcpus: 1,
                memory: 256 << 20,
                ..ZoneStats::default()
            }],
            cpus: vec![cpu(0, 0, 100 * n), cpu(3, 1, 1000 * n), CpuStats::default()],
            devices: DeviceReports {
                disks: vec![DeviceStats {
                    zone: "guest1".into(),
                    notifications: 700 * n,
                    interrupts: 600 * n,
                    queues: vec![queue],
                    ..DeviceStats::default()
                }],
                ..DeviceReports::default()
            },
        }
    }

    #[test]
    fn rates_are_of_the_difference() {
        let model = Model::new(&report(1), &report(3));
        assert_eq!(model.cpus.len(), 2);
        let cpu = &model.cpus[1];
        assert_eq!(
            (cpu.zone.as_str(), cpu.exits, cpu.by["irq"]),
            ("guest1", 3000.0, 1000.0)
        );
        assert!((cpu.el2 - 0.01).abs() < 1e-9, "{}", cpu.el2);
        assert_eq!(model.zones[0].exits, 3000.0);
        let disk = &model.disks[0];
        assert_eq!(
            (disk.name.as_str(), disk.reads, disk.read_mb),
            ("vda", 1000.0, 4.096)
        );
        assert_eq!((disk.p50, disk.p99, disk.file), (100.0, 1000.0, 200.0));
        assert!((disk.depth - 0.2).abs() < 1e-9);
        assert_eq!(disk.interrupts, 600.0);
        assert_eq!((model.daemon.wakeups, model.daemon.cpu), (500.0, 0.25));
    }

    #[test]
    fn restarted_counters_count_from_zero() {
        let model = Model::new(
            &report(5),
            &StatsReport {
                time_ns: report(6).time_ns,
                ..report(1)
            },
        );
        assert_eq!(model.cpus[1].exits, 3000.0);
        assert_eq!((model.disks[0].reads, model.disks[0].p50), (1000.0, 100.0));
    }

    #[test]
    fn rates_of_an_empty_interval_are_zero() {
        let model = Model::new(&report(2), &report(2));
        assert_eq!(
            (model.cpus[1].exits, model.disks[0].reads, model.disks[0].p99),
            (0.0, 0.0, 0.0)
        );
    }
}
