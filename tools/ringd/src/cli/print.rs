//! Tables and JSON on standard output.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::config::size::format_size;
use crate::control::protocol::InfoReport;
use crate::zone::Status;

/// How to print.
#[derive(Args, Debug)]
pub struct OutputOptions {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

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
///
/// # Errors
/// Standard output is gone.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> anyhow::Result<ExitCode> {
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
                zone.state.name().to_owned(),
                if cpus.is_empty() { dash() } else { cpus.join(",") },
                format_size(zone.memory),
                zone.devices.disks.to_string(),
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

/// `info`.
///
/// # Errors
/// Standard output is gone.
pub fn info(info: &InfoReport) -> anyhow::Result<ExitCode> {
    let mut output = io::stdout().lock();
    for (name, value) in [
        (
            "hypervisor",
            format!("{} (interface version {})", info.el2_version, info.abi_version),
        ),
        (
            "daemon",
            format!("{} (process {})", info.ringd_version, info.ringd_pid),
        ),
        (
            "pages",
            format!("{} of {} in use", info.pages_used, info.pages_total),
        ),
        (
            "heap",
            format!("{} of {} bytes in use", info.heap_used, info.heap_total),
        ),
        ("zones", info.zones.to_string()),
        ("attaches", info.attaches.to_string()),
        ("bells", info.bells.to_string()),
        ("log level", info.log_level.to_string()),
    ] {
        writeln!(output, "{name:<12}{value}")?;
    }
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
