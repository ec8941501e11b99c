//! A worker of ringd's that an attacker has taken over: for `tests/system/worker-hostile.sh`.
//!
//! Started as `ringd` is, it is the daemon's broker, which starts the same program as its worker. That has
//! the worker's descriptors, mappings and restrictions, and then tries whatever a worker has no need of
//! ([`attempts`]), with a signal handler of its own in place of that which ends the process. It prints a line
//! for each attempt: `NAME: refused (WHY)` or `NAME: SUCCEEDED`.
//!
//! With `--no-sandbox` the attempts that the sandbox holds back succeed: the control.

mod attempts;
mod raw;

use std::process::ExitCode;

use clap::Parser;
use ringd::daemon::{self, Options};
use ringvirtio::waiter::uring::Uring;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if !options.worker {
        return daemon::run(options);
    }
    // As the worker makes its own, which it does not lend.
    let ring = Uring::disabled(8)?;
    let Some(worker) = daemon::restricted_worker(options)? else {
        return Ok(());
    };
    raw::survive_refusals()?;
    attempts::all(&worker, ring, options);
    Ok(())
}
