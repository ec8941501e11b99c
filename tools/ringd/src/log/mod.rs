//! The daemon's log: standard error, or a file of bounded size ([`file`]), with a limit for lines that are
//! alike ([`limit`]).

pub mod file;
mod limit;

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::control::protocol::LogLevel;
use crate::control::server::SetLogLevel;
use file::LogFile;
use limit::Limit;

/// Starts logging to standard error, or to the file at this path; returns the way to change the level.
///
/// # Errors
/// The file cannot be written.
pub fn start(level: LogLevel, path: Option<&Path>) -> anyhow::Result<SetLogLevel> {
    let (filter, handle) = tracing_subscriber::reload::Layer::new(level_filter(level));
    let layer = || {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(false)
    };
    let registry = tracing_subscriber::registry().with(filter);
    match path {
        None => {
            let limit = Limit::new(Box::new(|line| eprint!("{line}")));
            let layer = layer().with_writer(io::stderr).with_filter(limit);
            registry.with(layer).init();
        }
        Some(path) => {
            let file = LogFile::open(path);
            let file = Arc::new(file.with_context(|| format!("cannot write the log {}", path.display()))?);
            let of_limit = file.clone();
            // A line about lines that is lost is no loss.
            let limit = Limit::new(Box::new(move |line| drop(of_limit.append(line.as_bytes()))));
            let layer = layer().with_writer(file).with_filter(limit);
            registry.with(layer).init();
        }
    }
    Ok(Box::new(move |level| {
        let _ = handle.reload(level_filter(level));
    }))
}

/// Returns the filter of a level.
pub fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
