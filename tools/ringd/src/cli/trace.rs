//! `ringctl trace`: records, joins, writes the file and the summary.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::control::client::Client;
use crate::trace::{Trace, TraceStart, chrome, join, summary};

/// What to record.
#[derive(Args, Debug)]
pub struct TraceOptions {
    /// How long, in seconds.
    #[arg(long, short, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Write everything to this file, for ui.perfetto.dev or chrome://tracing.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Records a trace of all zones.
///
/// # Errors
/// The daemon is gone or refuses, or the file cannot be written.
pub fn run(socket: &Path, options: &TraceOptions) -> anyhow::Result<ExitCode> {
    // A file that cannot be written fails before the recording.
    let file = options.output.as_ref().map(|path| {
        let file = File::create(path);
        file.with_context(|| format!("cannot write {}", path.display()))
    });
    let file = file.transpose()?;
    let client = Client::connect(socket)?;
    let mut trace = Trace::default();
    let TraceStart { frequency, cpus } =
        client.trace(options.seconds.saturating_mul(1000), |chunk| trace.add(chunk))?;
    (trace.frequency, trace.cpus) = (frequency, cpus);
    trace.sort();
    let joined = join::join(&trace);
    if let (Some(file), Some(path)) = (file, &options.output) {
        let mut file = BufWriter::new(file);
        chrome::write(&trace, &joined, &mut file)
            .and_then(|()| file.flush())
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!(
            "wrote {}: open it with ui.perfetto.dev or chrome://tracing",
            path.display()
        );
    }
    io::stdout()
        .lock()
        .write_all(summary::text(&trace, &joined).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
