//! What can be counted, in one report: EL2's counters by CPU and device, the daemon's by queue, and its own.
//!
//! [`collect`] reads BAR 0 and atomics: no exit, and no lock that the reactor holds for longer than a round.
//! [`metrics`] gives the same to Prometheus.

pub mod metrics;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringvirtio::histogram::HistogramSnapshot;
use ringvisor::abi::counters::{CpuCounters, Event, Exit};
use ringvisor::abi::info::OWNER_NONE;
use serde::{Deserialize, Serialize};

use crate::io::QueueSnapshots;
use crate::zone::registry::Registry;
use crate::zone::{Status, phase_name};

/// When the daemon began to count.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts by name.
pub type Counts = BTreeMap<String, u64>;

/// Everything at some moment. Counters only rise, but for a CPU that changes hands and a device that is made anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsReport {
    /// Nanoseconds since the daemon began to count.
    pub time_ns: u64,
    /// The daemon.
    pub daemon: DaemonStats,
    /// Zones, with those that are over.
    pub zones: Vec<ZoneStats>,
    /// Physical CPUs, each with the vCPU that it runs.
    pub cpus: Vec<CpuStats>,
    /// Disks of the zones that exist.
    pub disks: Vec<DiskStats>,
}

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DaemonStats {
    /// Its version.
    pub version: String,
    /// EL2's version.
    pub el2_version: String,
    /// Its process.
    pub pid: u32,
    /// Times that EL2 rang since boot, for this daemon or an earlier one.
    pub bells: u64,
    /// Interrupts of the control device that it took.
    pub wakeups: u64,
    /// Those after which no ring had an entry.
    pub spurious_wakeups: u64,
    /// Times that it found something by looking on before going to sleep.
    #[serde(default)]
    pub polled: u64,
    /// Times that it looked on and found nothing.
    #[serde(default)]
    pub polled_in_vain: u64,
    /// Time that it looked on.
    #[serde(default)]
    pub polling_ns: u64,
    /// Rounds of the reactor.
    pub rounds: u64,
    /// Entries taken off the rings.
    pub entries: u64,
    /// Those that were notifications.
    pub notifications: u64,
    /// CPU time in user space.
    pub user_ns: u64,
    /// CPU time in the kernel.
    pub system_ns: u64,
    /// Most memory that it has had, in bytes.
    pub max_rss_bytes: u64,
}

/// A zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ZoneStats {
    /// Its name.
    pub name: String,
    /// EL2's number while it exists there.
    pub number: Option<u8>,
    /// Where it stands.
    pub state: String,
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// Wild accesses answered by an injected abort.
    pub aborts: u64,
}

/// A physical CPU, since its owner has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Its number.
    pub cpu: usize,
    /// Zone that has it, if one has; 0 is root.
    pub zone: Option<u8>,
    /// vCPU that it runs there.
    pub vcpu: u8,
    /// Exits by reason.
    pub exits: Counts,
    /// Nanoseconds at EL2 by reason.
    pub el2_ns: Counts,
    /// Longest single stay at EL2.
    pub longest_ns: u64,
    /// Its reason.
    pub longest_exit: Option<String>,
    /// What happened there.
    pub events: Counts,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Name of its zone.
    pub zone: String,
    /// Its slot; 0 is `/dev/vda`.
    pub slot: u8,
    /// Its image.
    pub path: String,
    /// Stores to QueueNotify.
    pub notifications: u64,
    /// Those that found the queue's pending bit set.
    pub notifications_pending: u64,
    /// Used-buffer doorbells that EL2 took.
    pub doorbells: u64,
    /// Times that its interrupt line rose.
    pub interrupts: u64,
    /// Its queues.
    pub queues: Vec<QueueStats>,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Number in its device.
    pub queue: usize,
    /// Whether the guest uses it now.
    pub active: bool,
    /// Requests in flight.
    pub depth: u64,
    /// Counters.
    pub counters: Counts,
    /// Reads, from the available ring to the status.
    pub reads: Latency,
    /// Writes, discards, zeroes.
    pub writes: Latency,
    /// Flushes.
    pub flushes: Latency,
    /// The image alone.
    pub file: Latency,
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The median.
    pub p50_ns: u64,
    /// What one in ten exceeds.
    pub p90_ns: u64,
    /// What one in a hundred exceeds.
    pub p99_ns: u64,
    /// What one in a thousand exceeds.
    pub p999_ns: u64,
    /// Buckets that are not empty: the largest duration of each, and how many fell into it.
    pub buckets: Vec<(u64, u64)>,
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

/// The smallest of `buckets` at or below whose bound the `fraction` of all values lies; 0 of none.
#[must_use]
pub fn quantile(buckets: &[(u64, u64)], fraction: f64) -> u64 {
    let count: u64 = buckets.iter().map(|(_, count)| count).sum();
    let rank = ((count as f64 * fraction).ceil() as u64).max(1);
    let mut seen = 0;
    for (upper, here) in buckets {
        seen += here;
        if seen >= rank {
            return *upper;
        }
    }
    0
}

/// Nanoseconds of ticks of a counter with this frequency.
#[must_use]
pub fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    let wide = u128::from(ticks) * 1_000_000_000 / u128::from(frequency.max(1));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Reads everything.
#[must_use]
pub fn collect(registry: &Registry) -> StatsReport {
    let context = registry.context();
    let hv = context.el2();
    let page = hv.info();
    let zones = registry.list();
    let frequency = u64::from(page.counter_frequency);
    let count = usize::try_from(page.cpu_count).unwrap_or(0);
    let cpus = page
        .cpus
        .iter()
        .take(count)
        .enumerate()
        .map(|(index, cpu)| CpuStats {
            cpu: index,
            zone: (cpu.owner != OWNER_NONE).then_some(cpu.owner),
            vcpu: cpu.vcpu,
            ..cpu_stats(&hv.cpu_counters(index), frequency)
        });
    let aborts = |status: &Status| {
        let number = usize::from(status.number?);
        page.zones.get(number).map(|zone| u64::from(zone.aborts))
    };
    let zone_stats = zones.iter().map(|status| ZoneStats {
        name: status.name.clone(),
        number: status.number,
        state: phase_name(status.state).to_owned(),
        vcpus: status.vcpus,
        memory: status.memory,
        restarts: status.restarts,
        aborts: aborts(status).unwrap_or(0),
    });
    let mut disks = Vec::new();
    for status in &zones {
        let (Some(number), Ok(zone)) = (status.number, registry.find(&status.name)) else {
            continue;
        };
        let queues = context.io.snapshots(number);
        for (slot, disk) in (0_u8..).zip(zone.disks()) {
            let Some(disk) = disk else { continue };
            let counters = hv.device_counters(number, slot);
            disks.push(DiskStats {
                zone: status.name.clone(),
                slot,
                path: disk.path.display().to_string(),
                notifications: counters.notifications,
                notifications_pending: counters.notifications_pending,
                doorbells: counters.doorbells,
                interrupts: counters.interrupts,
                queues: queues
                    .iter()
                    .filter(|queue| queue.slot == slot)
                    .map(queue_stats)
                    .collect(),
            });
        }
    }
    let version = page.version.split(|byte| *byte == 0).next().unwrap_or_default();
    StatsReport {
        time_ns: u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX),
        daemon: DaemonStats {
            el2_version: String::from_utf8_lossy(version).into_owned(),
            bells: page.bells.into(),
            ..daemon_stats(registry)
        },
        zones: zone_stats.collect(),
        cpus: cpus.collect(),
        disks,
    }
}

fn daemon_stats(registry: &Registry) -> DaemonStats {
    let bell = registry.context().io.bell_counters();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let usage = usage();
    DaemonStats {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        wakeups: get(&bell.wakeups),
        spurious_wakeups: get(&bell.spurious_wakeups),
        polled: get(&bell.polled),
        polled_in_vain: get(&bell.polled_in_vain),
        polling_ns: get(&bell.polling_ns),
        rounds: get(&bell.rounds),
        entries: get(&bell.entries),
        notifications: get(&bell.notifications),
        user_ns: usage.user_ns,
        system_ns: usage.system_ns,
        max_rss_bytes: usage.max_rss_bytes,
        ..DaemonStats::default()
    }
}

fn cpu_stats(counters: &CpuCounters, frequency: u64) -> CpuStats {
    let by_exit = |values: &[u64]| -> Counts {
        let named = Exit::ALL.iter().zip(values);
        named
            .map(|(exit, value)| (exit.name().to_owned(), *value))
            .collect()
    };
    let nanoseconds_of = counters.ticks.map(|ticks| nanoseconds(ticks, frequency));
    let events = Event::ALL.iter().zip(counters.events);
    CpuStats {
        exits: by_exit(&counters.exits),
        el2_ns: by_exit(&nanoseconds_of),
        longest_ns: nanoseconds(counters.longest, frequency),
        longest_exit: Exit::from_number(counters.longest_exit)
            .filter(|_| counters.longest > 0)
            .map(|exit| exit.name().to_owned()),
        events: events
            .map(|(event, value)| (event.name().to_owned(), value))
            .collect(),
        ..CpuStats::default()
    }
}

fn queue_stats(queue: &QueueSnapshots) -> QueueStats {
    let stats = &queue.stats;
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
    QueueStats {
        queue: queue.queue,
        active: queue.active,
        depth: stats.queue.batched.saturating_sub(ended),
        counters: stats
            .all_counters()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        reads: (&stats.latency.reads).into(),
        writes: (&stats.latency.writes).into(),
        flushes: (&stats.latency.flushes).into(),
        file: (&stats.latency.file).into(),
    }
}

/// What this process has used; zero where /proc does not tell.
#[derive(Default)]
struct Usage {
    user_ns: u64,
    system_ns: u64,
    max_rss_bytes: u64,
}

fn usage() -> Usage {
    /// Nanoseconds of the unit in which Linux tells programs CPU times (USER_HZ is 100 everywhere).
    const TICK: u64 = 10_000_000;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    // The name of the program, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut times = fields
        .split_whitespace()
        .skip(11)
        .map(|field| field.parse().unwrap_or(0) * TICK);
    let status = read("/proc/self/status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = peak
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Usage {
        user_ns: times.next().unwrap_or(0),
        system_ns: times.next().unwrap_or(0),
        max_rss_bytes: kib * 1024,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_buckets() {
        let buckets = [(10, 50), (20, 40), (30, 9), (1000, 1)];
        assert_eq!(quantile(&buckets, 0.5), 10);
        assert_eq!(quantile(&buckets, 0.9), 20);
        assert_eq!(quantile(&buckets, 0.99), 30);
        assert_eq!(quantile(&buckets, 0.999), 1000);
        assert_eq!(quantile(&[], 0.5), 0);
    }

    #[test]
    fn ticks_become_nanoseconds() {
        assert_eq!(nanoseconds(62_500_000, 62_500_000), 1_000_000_000);
        assert_eq!(nanoseconds(1, 62_500_000), 16);
        assert_eq!(nanoseconds(u64::MAX, 1), u64::MAX);
        assert_eq!(nanoseconds(5, 0), 5_000_000_000);
    }

    #[test]
    fn counters_get_their_names() {
        let mut counters: CpuCounters = zerocopy::FromZeros::new_zeroed();
        counters.exits[Exit::Hvc as usize] = 3;
        counters.ticks[Exit::Hvc as usize] = 625;
        counters.longest = 500;
        counters.longest_exit = Exit::Hvc as u64;
        counters.events[Event::Doorbells as usize] = 9;
        let stats = cpu_stats(&counters, 62_500_000);
        assert_eq!((stats.exits["hvc"], stats.el2_ns["hvc"]), (3, 10_000));
        assert_eq!(
            (stats.longest_ns, stats.longest_exit.as_deref()),
            (8000, Some("hvc"))
        );
        assert_eq!(stats.events["doorbells"], 9);
        assert_eq!(stats.exits.len(), Exit::ALL.len());
    }
}
