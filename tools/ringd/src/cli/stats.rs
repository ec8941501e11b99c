//! `ringctl stats` as text: counters that are not zero, one to a line, with what they belong to in front.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::stats::{Counts, Latency, StatsReport};

/// Prints the report.
///
/// # Errors
/// Standard output is gone.
pub fn print(report: &StatsReport) -> anyhow::Result<ExitCode> {
    io::stdout().lock().write_all(text(report).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Lines `what.of.whom.name value`, for people and for awk.
#[must_use]
pub fn text(report: &StatsReport) -> String {
    let mut lines = Vec::new();
    let mut put = |who: &str, name: &str, value: u64| {
        if value > 0 {
            lines.push(format!("{who}.{name} {value}"));
        }
    };
    let daemon = &report.daemon;
    for (name, value) in [
        ("bells", daemon.bells),
        ("wakeups", daemon.wakeups),
        ("spurious_wakeups", daemon.spurious_wakeups),
        ("polled", daemon.polled),
        ("polled_in_vain", daemon.polled_in_vain),
        ("polling_ns", daemon.polling_ns),
        ("rounds", daemon.rounds),
        ("entries", daemon.entries),
        ("notifications", daemon.notifications),
        ("user_ns", daemon.user_ns),
        ("system_ns", daemon.system_ns),
        ("max_rss_bytes", daemon.max_rss_bytes),
    ] {
        put("daemon", name, value);
    }
    for zone in &report.zones {
        let who = format!("zone.{}", zone.name);
        put(&who, "vcpus", zone.vcpus as u64);
        put(&who, "memory_bytes", zone.memory);
        put(&who, "restarts", zone.restarts.into());
        put(&who, "aborts", zone.aborts);
    }
    let mut counts = |who: &str, kind: &str, counts: &Counts| {
        for (name, value) in counts {
            put(who, &format!("{kind}{name}"), *value);
        }
    };
    for cpu in &report.cpus {
        let who = format!("cpu{}", cpu.cpu);
        counts(&who, "exits.", &cpu.exits);
        counts(&who, "el2_ns.", &cpu.el2_ns);
        counts(&who, "", &cpu.events);
    }
    for cpu in report.cpus.iter().filter(|cpu| cpu.longest_ns > 0) {
        let exit = cpu.longest_exit.as_deref().unwrap_or("?");
        put(&format!("cpu{}.longest_ns", cpu.cpu), exit, cpu.longest_ns);
    }
    for disk in &report.disks {
        let who = format!("disk.{}.{}", disk.zone, disk.slot);
        for (name, value) in [
            ("notifications", disk.notifications),
            ("notifications_pending", disk.notifications_pending),
            ("doorbells", disk.doorbells),
            ("interrupts", disk.interrupts),
        ] {
            put(&who, name, value);
        }
        for queue in &disk.queues {
            let who = format!("{who}.queue{}", queue.queue);
            put(&who, "depth", queue.depth);
            for (name, value) in &queue.counters {
                put(&who, name, *value);
            }
            for (kind, latency) in [
                ("read", &queue.reads),
                ("write", &queue.writes),
                ("flush", &queue.flushes),
                ("file", &queue.file),
            ] {
                for (name, value) in percentiles(latency) {
                    put(&who, &format!("{kind}_{name}"), value);
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
    use super::*;
    use crate::stats::{CpuStats, DiskStats, QueueStats};

    #[test]
    fn what_is_not_zero_is_a_line() {
        let cpu = CpuStats {
            cpu: 2,
            exits: [("irq".to_owned(), 4), ("hvc".to_owned(), 0)].into(),
            longest_ns: 77,
            longest_exit: Some("irq".into()),
            ..CpuStats::default()
        };
        let queue = QueueStats {
            counters: [("merges".to_owned(), 3)].into(),
            reads: Latency {
                p99_ns: 9,
                ..Latency::default()
            },
            ..QueueStats::default()
        };
        let disk = DiskStats {
            zone: "z".into(),
            slot: 1,
            doorbells: 8,
            queues: vec![queue],
            ..DiskStats::default()
        };
        let report = StatsReport {
            cpus: vec![cpu],
            disks: vec![disk],
            ..StatsReport::default()
        };
        assert_eq!(
            text(&report),
            "cpu2.exits.irq 4\ncpu2.longest_ns.irq 77\ndisk.z.1.doorbells 8\ndisk.z.1.queue0.merges 3\n\
             disk.z.1.queue0.read_p99_ns 9\n"
        );
    }
}
