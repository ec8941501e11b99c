//! Tables and JSON on standard output.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::config::{Engine, size::format_size};
use crate::control::protocol::{DiskReport, InfoReport};
use crate::zone::{Status, phase_name};

/// Prints JSON.
///
/// # Errors
/// Standard output is gone.
pub fn json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    let mut output = io::stdout().lock();
    serde_json::to_writer_pretty(&mut output, value)?;
    writeln!(output)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints rows under a heading, in columns as wide as they need to be.
fn table(heading: &[&str], rows: &[Vec<String>]) -> anyhow::Result<ExitCode> {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let mut output = io::stdout().lock();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(output, "{}", cells.join("  ").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `zone list`.
///
/// # Errors
/// Standard output is gone.
pub fn zones(zones: &[Status]) -> anyhow::Result<ExitCode> {
    let dash = || "-".to_owned();
    let rows: Vec<Vec<String>> = zones
        .iter()
        .map(|zone| {
            let cpus: Vec<String> = zone.cpus.iter().map(u32::to_string).collect();
            vec![
                zone.name.clone(),
                zone.number.map_or_else(dash, |number| number.to_string()),
                phase_name(zone.state).to_owned(),
                if cpus.is_empty() { dash() } else { cpus.join(",") },
                format_size(zone.memory),
                zone.disks.to_string(),
                zone.restarts.to_string(),
                zone.ending.as_ref().map_or_else(dash, ToString::to_string),
            ]
        })
        .collect();
    table(
        &[
            "NAME", "ID", "STATE", "CPUS", "MEMORY", "DISKS", "RESTARTS", "ENDING",
        ],
        &rows,
    )
}

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
        _ if report.released => "released",
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

/// `info`.
///
/// # Errors
/// Standard output is gone.
pub fn info(info: &InfoReport) -> anyhow::Result<ExitCode> {
    let mut output = io::stdout().lock();
    writeln!(
        output,
        "hypervisor  {} (interface version {})",
        info.el2_version, info.abi_version
    )?;
    writeln!(
        output,
        "daemon      {} (process {})",
        info.ringd_version, info.ringd_pid
    )?;
    writeln!(
        output,
        "pages       {} of {} in use",
        info.pages_used, info.pages_total
    )?;
    writeln!(
        output,
        "heap        {} of {} bytes in use",
        info.heap_used, info.heap_total
    )?;
    writeln!(output, "zones       {}", info.zones)?;
    writeln!(output, "attaches    {}", info.attaches)?;
    writeln!(output, "bells       {}", info.bells)?;
    writeln!(output, "log level   {}", info.log_level)?;
    drop(output);
    let rows: Vec<Vec<String>> = info
        .cpus
        .iter()
        .map(|cpu| {
            let zone = cpu.zone.map_or_else(|| "-".to_owned(), |zone| zone.to_string());
            vec![
                format!("{:#x}", cpu.mpidr),
                zone,
                cpu.vcpu.to_string(),
                cpu.state.clone(),
            ]
        })
        .collect();
    table(&["MPIDR", "ZONE", "VCPU", "STATE"], &rows)
}
