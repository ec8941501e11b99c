//! `ringctl`: see [`ringd::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match ringd::cli::run(ringd::cli::Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ringctl: {error:#}");
            ExitCode::from(ringd::cli::status::of(&error))
        }
    }
}
