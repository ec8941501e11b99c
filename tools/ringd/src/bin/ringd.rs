//! `ringd`: see [`ringd::daemon`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match ringd::daemon::run(&ringd::daemon::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
