//! All counters in one report: EL2's by CPU and device, the daemon's by queue, and its own.
//!
//! [`collect`] reads BAR 0 and atomics: no exit, and no lock that the reactor holds for longer than a round.
//! [`metrics`] serves the same to Prometheus.

pub mod metrics;

use std::sync::LazyLock;
use std::time::Instant;

use ringvisor::abi::counters::{CpuCounters, CpuEvent, Exit};
use ringvisor::abi::info::OWNER_NONE;
use serde::{Deserialize, Serialize};

use crate::device::report::{Counts, DeviceReports, DeviceStats, counts};
use crate::zone::registry::Registry;
use crate::zone::{Status, observe};
use crate::{hv, limits};

/// When the daemon began to count.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// All counters at some moment. They only rise, except when a CPU changes its owner or a device is made anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsReport {
    /// Nanoseconds since the daemon began to count.
    pub time_ns: u64,
    /// The daemon.
    pub daemon: DaemonStats,
    /// Zones, including those that have ended.
    pub zones: Vec<ZoneStats>,
    /// Physical CPUs, each with the vCPU that it runs.
    pub cpus: Vec<CpuStats>,
    /// Devices of the zones that exist.
    #[serde(flatten)]
    pub devices: DeviceReports,
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
    /// Counters by name: those of [`crate::io::counters`] and [`crate::limits`]; `bells`: interrupts of the
    /// control device that EL2 raised since boot, for this daemon or an earlier one; `user_ns`, `system_ns`:
    /// CPU time; `max_rss_bytes`: most memory that it has used.
    #[serde(flatten)]
    pub counts: Counts,
}

impl DaemonStats {
    /// Returns a counter; 0 if there is none of that name.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}

/// A zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ZoneStats {
    /// Its name.
    pub name: String,
    /// EL2's number while it exists there.
    pub number: Option<u8>,
    /// Its phase.
    pub state: String,
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// External aborts that EL2 injected.
    pub aborts: u64,
}

/// A physical CPU, since it has its owner.
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
    /// Events there.
    pub events: Counts,
}

/// Returns ticks of a counter with this frequency in nanoseconds.
pub fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    let wide = u128::from(ticks) * 1_000_000_000 / u128::from(frequency.max(1));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// Reads all counters.
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
        state: status.state.name().to_owned(),
        vcpus: status.vcpus,
        memory: status.memory,
        restarts: status.restarts,
        aborts: aborts(status).unwrap_or(0),
    });
    let mut devices = DeviceReports::default();
    for device in observe::devices(registry) {
        let counters = hv.device_counters(device.number, device.slot);
        let stats = DeviceStats {
            notifications: counters.notifications,
            notifications_pending: counters.notifications_pending,
            doorbells: counters.doorbells,
            interrupts: counters.interrupts,
            ..device.stats()
        };
        devices.add(stats, &device.config);
    }
    let daemon = usage()
        .into_iter()
        .chain([("bells", page.event_interrupts.into())]);
    let rings = context.io.counters.snapshot();
    let daemon = daemon.chain(rings.counters()).chain(limits::counters());
    StatsReport {
        time_ns: u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX),
        daemon: DaemonStats {
            version: env!("CARGO_PKG_VERSION").into(),
            el2_version: hv::text(&page.version),
            pid: std::process::id(),
            counts: counts(daemon),
        },
        zones: zone_stats.collect(),
        cpus: cpus.collect(),
        devices,
    }
}

fn cpu_stats(counters: &CpuCounters, frequency: u64) -> CpuStats {
    let by_exit = |values: &[u64]| {
        counts(
            Exit::ALL
                .iter()
                .map(|exit| exit.name())
                .zip(values.iter().copied()),
        )
    };
    let nanoseconds_of = counters.ticks.map(|ticks| nanoseconds(ticks, frequency));
    let events = CpuEvent::ALL.iter().map(|event| event.name());
    CpuStats {
        exits: by_exit(&counters.exits),
        el2_ns: by_exit(&nanoseconds_of),
        longest_ns: nanoseconds(counters.longest, frequency),
        longest_exit: Exit::from_number(counters.longest_exit)
            .filter(|_| counters.longest > 0)
            .map(|exit| exit.name().to_owned()),
        events: counts(events.zip(counters.events)),
        ..CpuStats::default()
    }
}

/// Returns what this process has used; zero where /proc cannot be read.
fn usage() -> [(&'static str, u64); 3] {
    /// Nanoseconds of the unit in which Linux reports CPU times (USER_HZ is 100 everywhere).
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
    [
        ("user_ns", times.next().unwrap_or(0)),
        ("system_ns", times.next().unwrap_or(0)),
        ("max_rss_bytes", kib * 1024),
    ]
}

#[cfg(test)]
mod tests {
    use ringvisor::abi::counters::{CpuCounters, CpuEvent, Exit};

    use super::{cpu_stats, nanoseconds};

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
        counters.events[CpuEvent::Doorbells as usize] = 9;
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
