//! The system tests: scripts that run in root (`tests/system`) or on the host (`tests/host`).
//!
//! - [`catalog`]: which tests there are, and on which machines each runs.
//! - [`boot`]: boots a machine and runs its tests one after the other; boots again after one that killed the
//!   machine.
//! - [`host`]: runs a host script.
//! - [`report`]: result lines and summary, as `cargo test` prints them.

pub mod boot;
pub mod catalog;
pub mod host;
pub mod report;

use std::thread;

use anyhow::Result;
use parking_lot::Mutex;

use crate::options::{Hypervisor, MachineOptions, given};
use crate::project::Project;
use crate::shard::{Durations, Shard};
use crate::suite;
use catalog::{Catalog, Job};
use report::Report;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only tests whose names contain one of these words.
    pub words: Vec<String>,
    /// Also the machines that are only for `make test-all`.
    #[arg(long)]
    pub all: bool,
    /// One part of the tests: i/n.
    #[arg(long, env = "SHARD")]
    pub shard: Option<String>,
    /// Lists the tests and runs none.
    #[arg(long)]
    pub list: bool,
    /// Shows what passed tests printed, too.
    #[arg(long)]
    pub verbose: bool,
    /// Machines to run at the same time.
    #[arg(long, env = "RINGVISOR_JOBS", default_value_t = 3)]
    pub jobs: usize,
    /// Options for every machine; a machine's own settings go before them.
    #[command(flatten)]
    pub machine: MachineOptions,
}

/// Runs the tests; returns 0 if all passed.
///
/// # Errors
/// The tests' descriptions are wrong, or there is none of that name.
pub fn run(project: &Project, arguments: Arguments) -> Result<u8> {
    let catalog = Catalog::read(&project.dir.join("tests"))?;
    let with_el2 = arguments.machine.hypervisor()? != Hypervisor::None;
    let mut words = arguments.words.clone();
    if let Ok(filter) = std::env::var("FILTER") {
        words.extend(
            given(Some(&filter))
                .into_iter()
                .flat_map(str::split_whitespace)
                .map(str::to_owned),
        );
    }
    let mut selection = catalog.select(&words, arguments.all, with_el2)?;
    let durations = Durations::read(&project.dir.join("tests"))?;
    if let Some(shard) = given(arguments.shard.as_ref()) {
        let shard: Shard = shard.parse()?;
        let mut loads = suite::loads(project, arguments.all, shard)?;
        let seconds: Vec<u64> = selection.jobs.iter().map(|job| job.seconds(&durations)).collect();
        let mut selected = shard.select(&seconds, &mut loads).into_iter();
        selection.jobs.retain(|_| selected.next() == Some(true));
    }
    // The longest first, so that none is left to run alone at the end.
    selection
        .jobs
        .sort_by_key(|job| std::cmp::Reverse(job.seconds(&durations)));
    if arguments.list {
        for name in selection.names() {
            println!("{name}: test");
        }
        return Ok(0);
    }
    let report = Report::new(arguments.verbose, selection.names().count());
    for name in &selection.ignored {
        report.ignored(name);
    }
    let jobs = Mutex::new(selection.jobs.into_iter());
    thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = jobs.lock().next();
                    match next {
                        Some(Job::Boot { machine, scripts }) => {
                            boot::run(project, &arguments.machine, &machine, scripts, &report);
                        }
                        Some(Job::Host { script }) => {
                            host::run(project, &arguments.machine, &script, &report)
                        }
                        None => break,
                    }
                }
            });
        }
    });
    Ok(report.finish())
}
