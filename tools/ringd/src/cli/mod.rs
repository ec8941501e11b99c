//! `ringctl`, the command that users type.
//!
//! [`zone_options`] turns a zone file and options into a zone, [`terminal`] carries a console, [`reconnect`]
//! waits across the death of a daemon, [`shutdown`] for a guest that was asked to end, [`mod@print`] shows
//! tables, [`defined`] is about zones whose files are kept in a directory. What is about one kind of device
//! is in [`crate::device`]. Messages go to standard error; [`status`] has the exit statuses.

pub mod check;
pub mod defined;
pub mod definitions;
pub mod print;
pub mod reconnect;
pub mod shutdown;
pub mod stats;
pub mod status;
pub mod terminal;
pub mod top;
pub mod trace;
pub mod zone_options;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use crate::control::client::{Client, ClientError};
use crate::control::protocol::{LogLevel, LogTarget, Reply, Request};
use crate::device::{disk, net};
use print::OutputOptions;
use zone_options::ZoneOptions;

/// Starts, stops and watches the zones of ringvisor.
#[derive(Parser, Debug)]
#[command(name = "ringctl", version)]
pub struct Options {
    /// The daemon's run directory.
    #[arg(long, global = true, value_name = "DIR", default_value = crate::daemon::RUN_DIR, env = "RINGD_RUN_DIR")]
    pub run_dir: PathBuf,
    /// The directory with the files of zones that are defined.
    #[arg(long, global = true, value_name = "DIR", default_value = definitions::DIRECTORY, env = "RINGVISOR_ZONES")]
    pub zones_dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Zones: run, start, shutdown, reboot, stop, list, pause, resume, wait, console; define, enable, show.
    #[command(subcommand)]
    Zone(ZoneCommand),
    /// Says everything that would keep zones from starting, without starting anything.
    ///
    /// The status is 3 if there is something.
    Check(check::CheckOptions),
    /// Disks of the zones: list, stats, attach, detach, resize, set-limit, resume.
    #[command(subcommand)]
    Disk(disk::cli::DiskCommand),
    /// Network devices of the zones: list, stats, set-link, set-limit.
    #[command(subcommand)]
    Net(net::cli::NetCommand),
    /// Lets another ringd take over; the zones notice no more than a pause.
    ///
    /// The program that is to take over is asked first whether it understands what the running one left; if
    /// not, nothing changes.
    Upgrade {
        /// The new program; if not given, the one at the running one's path.
        program: Option<PathBuf>,
    },
    /// Shows versions, memory and CPUs of the hypervisor.
    Info(OutputOptions),
    /// Shows all counters: exits, time at EL2, notifications, interrupts, requests, latencies.
    Stats(OutputOptions),
    /// Shows what zones, CPUs and disks do now.
    Top(top::TopOptions),
    /// Records the path of each request from the guest's store to its interrupt, and shows where the time
    /// goes.
    Trace(trace::TraceOptions),
    /// Reports what this machine lacks to run zones, and what to do; the status is 1 if something is wrong.
    Doctor(OutputOptions),
    /// Shows the hypervisor's log, also what a reset of the machine has left of it.
    Log,
    /// Changes what the hypervisor or the daemon logs.
    LogLevel {
        /// Whose log.
        #[arg(value_enum)]
        target: LogTarget,
        /// How much.
        #[arg(value_enum)]
        level: LogLevel,
    },
}

/// Commands for zones.
#[derive(Subcommand, Debug)]
pub enum ZoneCommand {
    /// Starts a zone and shows its console until it ends; the status is 0 if its guest powered off cleanly.
    ///
    /// On a terminal, what is typed goes to the guest; Ctrl-] leaves the console and the zone running.
    Run(Box<ZoneOptions>),
    /// Starts a zone and returns once its guest runs.
    Start {
        /// Start all zones whose files say so, in their order, instead of one.
        #[arg(long, exclusive = true)]
        boot: bool,
        /// The zone.
        #[command(flatten)]
        zone: Box<ZoneOptions>,
    },
    /// Presses the power key of a zone and waits until its guest has ended.
    ///
    /// The status is 0 if it powered off cleanly, and 4 if it still runs after the timeout.
    Shutdown(defined::EndOptions),
    /// Presses the power key of a zone, waits until its guest has ended, and starts it again.
    Reboot(shutdown::ShutdownOptions),
    /// Stops a zone at once, as pulling the plug would, and gives its CPUs and memory back.
    Stop(Name),
    /// Lists the zones, including those that have ended.
    List(OutputOptions),
    /// Pauses a zone's CPUs.
    Pause(Name),
    /// Resumes a paused zone.
    Resume(Name),
    /// Waits until a zone ends; the status is 0 if its guest powered off cleanly.
    Wait(Name),
    /// Shows what a zone has printed and follows it; what is typed goes to the guest. Ctrl-] leaves, or the
    /// key of --escape.
    ///
    /// Input that is no terminal is sent as it is; at its end the output is still followed.
    Console {
        /// The zone's name.
        name: String,
        /// Only show what is there, and end.
        #[arg(long)]
        dump: bool,
        /// Which console, and how it is left.
        #[command(flatten)]
        options: terminal::ConsoleOptions,
    },
    /// Zones that are kept as files.
    #[command(flatten)]
    Defined(defined::DefinedCommand),
}

/// Which zone.
#[derive(Args, Debug)]
pub struct Name {
    /// The zone's name.
    pub name: String,
}

/// Executes a command.
///
/// # Errors
/// Why it failed, for people.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let socket = options.run_dir.join("sock");
    let definitions = &definitions::Definitions(&options.zones_dir);
    let ask = |request: Request| -> Result<Reply, ClientError> { Client::connect(&socket)?.ask(&request) };
    let done = |request: Request| -> anyhow::Result<ExitCode> {
        ask(request)?;
        Ok(ExitCode::SUCCESS)
    };
    match options.command {
        Command::Zone(ZoneCommand::Run(zone)) => {
            let config = Box::new(zone.config(definitions)?);
            let name = config.name.clone();
            ask(Request::Start { config })?;
            let left = terminal::follow(
                &socket,
                &name,
                terminal::Input::IfTerminal,
                &terminal::ConsoleOptions::default(),
            )?;
            if left {
                return Ok(ExitCode::SUCCESS);
            }
            wait(reconnect::wait(&socket, &name)?, &name)
        }
        Command::Zone(ZoneCommand::Start { boot: true, .. }) => {
            defined::start_all(&options.zones_dir, &socket)
        }
        Command::Zone(ZoneCommand::Start { zone, .. }) => done(Request::Start {
            config: Box::new(zone.config(definitions)?),
        }),
        Command::Zone(ZoneCommand::Shutdown(end)) => defined::shut_down(&options.zones_dir, &socket, end),
        Command::Zone(ZoneCommand::Defined(command)) => defined::run(command, &options.zones_dir, &socket),
        Command::Zone(ZoneCommand::Reboot(options)) => shutdown::run(&socket, &options, true),
        Command::Zone(ZoneCommand::Stop(Name { name })) => done(Request::Stop { name }),
        Command::Zone(ZoneCommand::Pause(Name { name })) => done(Request::Pause { name }),
        Command::Zone(ZoneCommand::Resume(Name { name })) => done(Request::Resume { name }),
        Command::Zone(ZoneCommand::Wait(Name { name })) => wait(reconnect::wait(&socket, &name)?, &name),
        Command::Zone(ZoneCommand::Console {
            name,
            dump: true,
            options,
        }) => {
            terminal::dump(&socket, &name, options.port)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Zone(ZoneCommand::Console {
            name,
            dump: false,
            options,
        }) => {
            terminal::follow(&socket, &name, terminal::Input::Always, &options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Zone(ZoneCommand::List(output)) => match ask(Request::List {})? {
            Reply::Zones(zones) if output.json => print::json(&zones),
            Reply::Zones(zones) => print::zones(&zones),
            other => Err(ClientError::unexpected(&other).into()),
        },
        Command::Check(what) => check::run(&what, &options.zones_dir, &socket),
        Command::Disk(command) => disk::cli::run(command, ask),
        Command::Net(command) => net::cli::run(command, ask),
        Command::Upgrade { program } => upgrade(&socket, program),
        Command::Info(output) => match ask(Request::Info {})? {
            Reply::Info(info) if output.json => print::json(&info),
            Reply::Info(info) => print::info(&info),
            other => Err(ClientError::unexpected(&other).into()),
        },
        Command::Stats(output) => match ask(Request::Stats {})? {
            Reply::Stats(report) if output.json => print::json(&report),
            Reply::Stats(report) => stats::print(&report),
            other => Err(ClientError::unexpected(&other).into()),
        },
        Command::Top(top) => top::run(&socket, &top),
        Command::Trace(trace) => trace::run(&socket, &trace),
        Command::Doctor(output) => doctor(&socket, output.json),
        Command::Log => match ask(Request::Log {})? {
            Reply::Log(text) => {
                std::io::stdout().lock().write_all(text.as_bytes())?;
                Ok(ExitCode::SUCCESS)
            }
            other => Err(ClientError::unexpected(&other).into()),
        },
        Command::LogLevel { target, level } => done(Request::LogLevel { target, level }),
    }
}

fn doctor(socket: &std::path::Path, json: bool) -> anyhow::Result<ExitCode> {
    let checks = crate::doctor::examine(std::path::Path::new("/"), socket);
    if json {
        print::json(&checks)?;
    } else {
        print!("{}", crate::doctor::text(&checks));
    }
    let wrong = checks
        .iter()
        .any(|check| check.verdict == crate::doctor::Verdict::Wrong);
    Ok(ExitCode::from(u8::from(wrong)))
}

/// How long the new daemon may take to answer.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

/// Lets another program take over from the daemon, and waits until it answers.
fn upgrade(socket: &Path, program: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let program = match program {
        Some(path) => Some(std::path::absolute(path)?),
        None => None,
    };
    let mut client = Client::connect(socket)?;
    let before = client.pid;
    client.ask(&Request::Upgrade { program })?;
    drop(client);
    let deadline = Instant::now() + UPGRADE_TIMEOUT;
    loop {
        match Client::connect(socket) {
            Ok(mut client) if client.pid != before => {
                if let Ok(Reply::Info(info)) = client.ask(&Request::Info {}) {
                    eprintln!(
                        "ringd {} serves, as process {}",
                        info.ringd_version, info.ringd_pid
                    );
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(anyhow::Error::new(error).context("the new daemon does not answer"));
            }
            // The old one may be ending, or no daemon may run for a moment.
            Ok(_) | Err(_) => {}
        }
        if Instant::now() >= deadline {
            anyhow::bail!("the old daemon still answers");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the status of a command that waited for a zone's end.
fn wait(reply: Reply, name: &str) -> anyhow::Result<ExitCode> {
    match reply {
        Reply::Ended(ending) if ending.is_clean() => Ok(ExitCode::SUCCESS),
        Reply::Ended(ending) => Err(status::Unclean {
            name: name.into(),
            ending,
        }
        .into()),
        other => Err(ClientError::unexpected(&other).into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Options;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }
}
