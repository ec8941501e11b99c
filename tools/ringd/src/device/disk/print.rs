//! Tables of `ringctl disk`.

use std::process::ExitCode;

use super::config::Engine;
use super::report::DiskReport;
use crate::cli::print::table;
use crate::config::size::format_size;

/// `disk list`.
///
/// # Errors
/// Standard output is gone.
pub fn disks(disks: &[DiskReport]) -> anyhow::Result<ExitCode> {
    let rows: Vec<Vec<String>> = disks.iter().map(disk_row).collect();
    table(
        &[
            "ZONE", "SLOT", "MODE", "SIZE", "ENGINE", "QUEUES", "STATE", "IOPS", "BPS", "SERIAL", "PATH",
        ],
        &rows,
    )
}

fn disk_row(report: &DiskReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let active = report.queues.iter().filter(|queue| queue.active).count();
    let state = match active {
        _ if report.closed => "released",
        _ if report.queues.iter().any(|queue| queue.held > 0) => "stopped",
        0 => "idle",
        _ => "active",
    };
    let active = active.to_string();
    let start = [report.zone.clone(), report.slot.to_string()];
    let Some(disk) = &report.disk else {
        let nothing = [
            dash(),
            dash(),
            dash(),
            active,
            state.to_owned(),
            dash(),
            dash(),
            dash(),
        ];
        return start
            .into_iter()
            .chain(nothing)
            .chain(["(no medium)".into()])
            .collect();
    };
    let engine = match disk.engine {
        Engine::IoUring => "io_uring",
        Engine::Threads => "threads",
    };
    let rest = [
        if disk.readonly { "ro" } else { "rw" }.to_owned(),
        format_size(report.size),
        engine.to_owned(),
        active,
        state.to_owned(),
        disk.limits.iops.rate.map_or_else(dash, |rate| rate.to_string()),
        disk.limits.bps.rate.map_or_else(dash, format_size),
        disk.serial
            .clone()
            .filter(|serial| !serial.is_empty())
            .unwrap_or_else(dash),
        disk.path.display().to_string(),
    ];
    start.into_iter().chain(rest).collect()
}

/// `disk stats`.
///
/// # Errors
/// Standard output is gone.
pub fn disk_stats(disks: &[DiskReport]) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    for disk in disks {
        for queue in &disk.queues {
            let mut row = vec![disk.zone.clone(), disk.slot.to_string(), queue.queue.to_string()];
            let counters = [
                queue.reads,
                queue.writes,
                queue.flushes,
                queue.discards,
                queue.zeroes,
                queue.errors,
                queue.held,
                queue.bytes_read,
                queue.bytes_written,
                queue.merged,
                queue.throttled,
                queue.max_depth,
                queue.interrupts,
                queue.interrupts_suppressed,
                queue.read_time.p99 / 1000,
                queue.write_time.p99 / 1000,
            ];
            row.extend(counters.iter().map(u64::to_string));
            rows.push(row);
        }
    }
    let heading = [
        "ZONE",
        "SLOT",
        "QUEUE",
        "READS",
        "WRITES",
        "FLUSHES",
        "DISCARDS",
        "ZEROES",
        "ERRORS",
        "HELD",
        "BYTES-READ",
        "BYTES-WRITTEN",
        "MERGED",
        "THROTTLED",
        "MAX-DEPTH",
        "IRQS",
        "IRQS-SAVED",
        "READ-P99-US",
        "WRITE-P99-US",
    ];
    table(&heading, &rows)
}
