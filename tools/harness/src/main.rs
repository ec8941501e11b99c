//! Command line of the harness. The Makefile's targets call it; see [`harness`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use harness::options::{MachineOptions, given};
use harness::project::Project;
use harness::{bench, exec, interactive, suite, symbols, system};

/// Boots ringvisor machines in QEMU.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Boots the machine with a user at root's console.
    Run {
        #[command(flatten)]
        machine: MachineOptions,
        /// The zone file (below /srv/zones) to start, or `none`; linux.toml if not given.
        #[arg(long, env = "ZONE")]
        zone: Option<String>,
    },
    /// Runs a script in root, shows the console, and ends with the script's status.
    Exec {
        #[command(flatten)]
        machine: MachineOptions,
        /// The script, run by root's shell.
        #[arg(long, env = "SCRIPT")]
        script: Option<String>,
        /// A directory whose contents are in /mnt/files.
        #[arg(long, env = "FILES")]
        files: Option<String>,
        /// Seconds until the machine is stopped by force.
        #[arg(long, env = "TIMEOUT")]
        timeout: Option<String>,
    },
    /// Starts the machine stopped at its first instruction, under gdb-multiarch.
    Gdb {
        #[command(flatten)]
        machine: MachineOptions,
        /// A file of gdb commands to run instead of asking the user.
        #[arg(long)]
        batch: Option<PathBuf>,
    },
    /// Reads a log on standard input and shows the hypervisor's backtraces in it as functions and lines.
    Symbolize,
    /// Runs the system tests whose names contain one of the words.
    System(system::Arguments),
    /// Runs every stage of the tests.
    Suite(suite::Arguments),
    /// Measures ringvisor, KVM with QEMU, and QEMU alone.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("harness: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<u8> {
    let arguments = Arguments::parse();
    let project = Project::find()?;
    match arguments.what {
        What::Run { machine, zone } => {
            // An empty variable is one that was not given: make exports them all.
            let zone = given(zone.as_ref()).unwrap_or("linux.toml");
            let zone = (zone != "none").then(|| zone.to_owned());
            interactive::run(&project, &machine, zone).map(|()| 0)
        }
        What::Exec {
            machine,
            script,
            files,
            timeout,
        } => {
            let Some(script) = given(script.as_ref()) else {
                bail!("SCRIPT=file is missing; see make help")
            };
            let files = given(files.as_ref()).map(PathBuf::from);
            let limit = seconds(given(timeout.as_ref()).unwrap_or("600"))?;
            let stop = exec::exec(&project, &machine, script.as_ref(), files, limit)?;
            if stop.code() != 0 {
                eprintln!("harness: {stop}");
            }
            Ok(stop.code())
        }
        What::Gdb { machine, batch } => interactive::debug(&project, &machine, batch.as_deref()),
        What::Symbolize => {
            let text = std::io::read_to_string(std::io::stdin())?;
            let lines = symbols::resolve(&project.hypervisor_elf(), &symbols::offsets(&text))?;
            println!("{}", lines.join("\n"));
            Ok(0)
        }
        What::System(arguments) => system::run(&project, arguments),
        What::Suite(arguments) => suite::run(&project, &arguments),
        What::Bench(arguments) => bench::run(&project, &arguments),
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().filter(|&s: &u64| s > 0);
    seconds
        .map(Duration::from_secs)
        .with_context(|| format!("TIMEOUT={text}: expected a number of seconds"))
}
