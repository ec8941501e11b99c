//! The results as a table, as JSON and as charts: `plot.svg` with all of them, `summary.svg` for
//! docs/performance.md.

mod svg;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::plan::Plan;
use super::results::Results;

/// Writes all of them into `dir` and returns the table.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, plan: &Plan, results: &Results) -> Result<String> {
    let table = table::table(plan, results);
    let json = serde_json::to_string_pretty(results)? + "\n";
    for (name, text) in [
        ("table.txt", &table),
        ("results.json", &json),
        ("plot.svg", &svg::plot(plan, results)),
        ("summary.svg", &svg::summary(plan, results)),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(table)
}
