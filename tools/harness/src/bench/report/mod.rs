//! The results as a table, as JSON and as a plot.

mod svg;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::plan::Plan;
use super::results::Results;

/// Writes all three into `dir` and returns the table.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, plan: &Plan, results: &Results) -> Result<String> {
    let table = table::table(plan, results);
    let json = serde_json::to_string_pretty(results)? + "\n";
    let plot = svg::plot(plan, results);
    for (name, text) in [
        ("table.txt", &table),
        ("results.json", &json),
        ("plot.svg", &plot),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(table)
}
