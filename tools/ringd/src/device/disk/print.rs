//! Tables of `ringctl disk`.

use std::process::ExitCode;

use ringblk::EngineKind;

use super::config::DiskConfig;
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
        _ if report.queues.iter().any(|queue| queue.count("held") > 0) => "stopped",
        0 => "idle",
        _ => "active",
    };
    let of_disk =
        |cell: fn(&DiskConfig) -> Option<String>| report.disk.as_ref().and_then(cell).unwrap_or_else(dash);
    let size = report
        .disk
        .as_ref()
        .map_or_else(dash, |_| format_size(report.size));
    vec![
        report.zone.clone(),
        report.slot.to_string(),
        of_disk(|disk| Some(if disk.readonly { "ro" } else { "rw" }.into())),
        size,
        of_disk(|disk| {
            Some(match disk.engine {
                EngineKind::IoUring => "io_uring".into(),
                EngineKind::Threads => "threads".into(),
            })
        }),
        active.to_string(),
        state.to_owned(),
        of_disk(|disk| Some(disk.limits.iops.rate?.to_string())),
        of_disk(|disk| Some(format_size(disk.limits.bps.rate?))),
        of_disk(|disk| disk.serial.clone().filter(|serial| !serial.is_empty())),
        report
            .disk
            .as_ref()
            .map_or_else(|| "(no medium)".into(), |disk| disk.path.display().to_string()),
    ]
}

/// `disk stats`.
///
/// # Errors
/// Standard output is gone.
pub fn disk_stats(disks: &[DiskReport]) -> anyhow::Result<ExitCode> {
    /// Heading and name of each counter.
    const COUNTERS: [(&str, &str); 14] = [
        ("READS", "reads"),
        ("WRITES", "writes"),
        ("FLUSHES", "flushes"),
        ("DISCARDS", "discards"),
        ("ZEROES", "zeroes"),
        ("ERRORS", "errors"),
        ("HELD", "held"),
        ("BYTES-READ", "bytes_read"),
        ("BYTES-WRITTEN", "bytes_written"),
        ("MERGED", "merged"),
        ("THROTTLED", "throttled"),
        ("MAX-DEPTH", "max_depth"),
        ("IRQS", "interrupts"),
        ("IRQS-SAVED", "interrupts_suppressed"),
    ];
    let mut rows = Vec::new();
    for disk in disks {
        for queue in &disk.queues {
            let counters = COUNTERS.iter().map(|(_, name)| queue.count(name));
            let times = [&queue.read_time, &queue.write_time].map(|time| time.p99 / 1000);
            let mut row = vec![disk.zone.clone(), disk.slot.to_string(), queue.queue.to_string()];
            row.extend(counters.chain(times).map(|number| number.to_string()));
            rows.push(row);
        }
    }
    let mut heading = vec!["ZONE", "SLOT", "QUEUE"];
    heading.extend(COUNTERS.iter().map(|(heading, _)| heading));
    heading.extend(["READ-P99-US", "WRITE-P99-US"]);
    table(&heading, &rows)
}
