//! `ringctl stats` as text: counters that are not zero, one to a line, with what they belong to in front.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::device::report::Latency;
use crate::stats::StatsReport;

/// Prints the report.
///
/// # Errors
/// Standard output is gone.
pub fn print(report: &StatsReport) -> anyhow::Result<ExitCode> {
    io::stdout().lock().write_all(text(report).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Lines `what.of.whom.name value`, for people and for awk.
pub fn text(report: &StatsReport) -> String {
    let mut lines = Vec::new();
    let mut put = |who: &str, name: &str, value: u64| {
        if value > 0 {
            lines.push(format!("{who}.{name} {value}"));
        }
    };
    for (name, value) in &report.daemon.counts {
        put("daemon", name, *value);
    }
    for zone in &report.zones {
        let who = format!("zone.{}", zone.name);
        put(&who, "vcpus", zone.vcpus as u64);
        put(&who, "memory_bytes", zone.memory);
        put(&who, "restarts", zone.restarts.into());
        put(&who, "aborts", zone.aborts);
    }
    for cpu in &report.cpus {
        let who = format!("cpu{}", cpu.cpu);
        for (kind, counts) in [
            ("exits.", &cpu.exits),
            ("el2_ns.", &cpu.el2_ns),
            ("", &cpu.events),
        ] {
            for (name, value) in counts {
                put(&who, &format!("{kind}{name}"), *value);
            }
        }
    }
    for cpu in report.cpus.iter().filter(|cpu| cpu.longest_ns > 0) {
        let exit = cpu.longest_exit.as_deref().unwrap_or("?");
        put(&format!("cpu{}.longest_ns", cpu.cpu), exit, cpu.longest_ns);
    }
    for (kind, device) in report.devices.iter() {
        let prefix = format!("{kind}.{}.{}", device.zone, device.slot);
        for (name, value) in [
            ("notifications", device.notifications),
            ("notifications_pending", device.notifications_pending),
            ("doorbells", device.doorbells),
            ("interrupts", device.interrupts),
        ] {
            put(&prefix, name, value);
        }
        for queue in &device.queues {
            let prefix = format!("{prefix}.queue{}", queue.queue);
            put(&prefix, "depth", queue.depth);
            for (name, value) in &queue.counters {
                put(&prefix, name, *value);
            }
            for (kind, latency) in queue.latencies() {
                for (name, value) in percentiles(latency) {
                    put(&prefix, &format!("{kind}_{name}"), value);
                }
            }
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn percentiles(latency: &Latency) -> [(&'static str, u64); 4] {
    [
        ("p50_ns", latency.p50_ns),
        ("p99_ns", latency.p99_ns),
        ("p999_ns", latency.p999_ns),
        ("max_ns", latency.max_ns),
    ]
}

#[cfg(test)]
mod tests {
    use super::text;
    use crate::device::report::{DeviceReports, DeviceStats, Latency, QueueStats};
    use crate::stats::{CpuStats, StatsReport};

    #[test]
    fn counters_other_than_zero_are_printed() {
        let cpu = CpuStats {
            cpu: 2,
            exits: [("irq".to_owned(), 4), ("hvc".to_owned(), 0)].into(),
            longest_ns: 77,
            longest_exit: Some("irq".into()),
            ..CpuStats::default()
        };
        let reads = Latency {
            p99_ns: 9,
            ..Latency::default()
        };
        let queue = QueueStats {
            counters: [("merges".to_owned(), 3)].into(),
            latencies: [("reads".to_owned(), reads)].into(),
            ..QueueStats::default()
        };
        let disk = DeviceStats {
            zone: "z".into(),
            slot: 1,
            doorbells: 8,
            queues: vec![queue],
            ..DeviceStats::default()
        };
        let report = StatsReport {
            cpus: vec![cpu],
            devices: DeviceReports {
                disks: vec![disk],
                ..DeviceReports::default()
            },
            ..StatsReport::default()
        };
        assert_eq!(
            text(&report),
            "cpu2.exits.irq 4\ncpu2.longest_ns.irq 77\ndisk.z.1.doorbells 8\ndisk.z.1.queue0.merges 3\n\
             disk.z.1.queue0.read_p99_ns 9\n"
        );
    }
}
