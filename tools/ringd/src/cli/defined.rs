//! Commands for zones that are defined by files of a directory ([`super::definitions`]): `zone define`,
//! `undefine`, `enable`, `disable`, `edit`, `show`, `start --boot` and `shutdown --all`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::definitions::{Definitions, differences, starting};
use super::shutdown::{self, ShutdownOptions};
use super::status::{self, Missing};
use crate::config::ZoneConfig;
use crate::config::boot;
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Reply, Request};
use crate::regular;
use crate::zone::{Phase, Status};

/// Commands for zones that are defined.
#[derive(Subcommand, Debug)]
pub enum DefinedCommand {
    /// Keeps a zone file in the directory of zones, as NAME.toml; relative paths in it become absolute.
    ///
    /// The zone does not start by that.
    Define {
        /// The zone file.
        file: PathBuf,
        /// Take the place of one of the same name.
        #[arg(long)]
        replace: bool,
    },
    /// Removes a zone's file from the directory of zones; a zone that runs continues.
    Undefine {
        /// The zone's name.
        name: String,
    },
    /// Has a zone start with the machine.
    Enable {
        /// The zone's name.
        name: String,
    },
    /// Has a zone no longer start with the machine.
    Disable {
        /// The zone's name.
        name: String,
    },
    /// Changes a zone's file with $VISUAL or $EDITOR; what makes no sense is not taken.
    Edit {
        /// The zone's name.
        name: String,
    },
    /// Shows a zone's file, and on standard error how what runs differs from it.
    Show {
        /// The zone's name.
        name: String,
    },
}

/// Executes a command.
///
/// # Errors
/// Why it failed, for people.
pub fn run(command: DefinedCommand, directory: &Path, socket: &Path) -> anyhow::Result<ExitCode> {
    let definitions = Definitions(directory);
    match command {
        DefinedCommand::Define { file, replace } => {
            let name = definitions.define(&file, replace)?;
            eprintln!(
                "ringctl: zone {name} is defined by {}",
                definitions.path(&name)?.display()
            );
            compare(&definitions, &name, socket);
        }
        DefinedCommand::Undefine { name } => definitions.undefine(&name)?,
        DefinedCommand::Enable { name } => definitions.enable(&name, true)?,
        DefinedCommand::Disable { name } => definitions.enable(&name, false)?,
        DefinedCommand::Edit { name } => {
            definitions.edit(&name)?;
            compare(&definitions, &name, socket);
        }
        DefinedCommand::Show { name } => {
            let path = definitions.existing(&name)?;
            print!("{}", regular::read_to_string(&path, 1 << 20)?);
            definitions.load(&name)?;
            compare(&definitions, &name, socket);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the zones that exist.
///
/// # Errors
/// No daemon answers.
pub fn list(socket: &Path) -> Result<Vec<Status>, ClientError> {
    match Client::connect(socket)?.ask(&Request::List {})? {
        Reply::Zones(zones) => Ok(zones),
        other => Err(ClientError::unexpected(&other)),
    }
}

/// Returns the description with which a zone was started.
///
/// # Errors
/// There is no such zone, or no daemon.
pub fn running(socket: &Path, name: &str) -> Result<ZoneConfig, ClientError> {
    match Client::connect(socket)?.ask(&Request::Config { name: name.into() })? {
        Reply::Config(config) => Ok(*config),
        other => Err(ClientError::unexpected(&other)),
    }
}

/// Says how a zone's file differs from the zone that runs, if one does. Without a daemon nothing is compared.
fn compare(definitions: &Definitions<'_>, name: &str, socket: &Path) {
    if let Ok(file) = definitions.load(name)
        && let Ok(zones) = list(socket)
        && zones
            .iter()
            .any(|zone| zone.name == name && zone.state != Phase::Stopped)
        && let Ok(runs) = running(socket, name)
    {
        say_differences(name, &differences(&file.config, &runs));
    }
}

fn say_differences(name: &str, differences: &[String]) {
    for difference in differences {
        eprintln!("ringctl: zone {name}: {difference}; its next start applies it");
    }
}

/// Starts all zones that start with the machine, in order. What fails keeps no other zone from starting.
///
/// # Errors
/// The directory cannot be read, or no daemon answers.
pub fn start_all(directory: &Path, socket: &Path) -> anyhow::Result<ExitCode> {
    let all = Definitions(directory).all()?;
    let mut worst = 0;
    let mut failed = |error: &anyhow::Error| {
        eprintln!("ringctl: {error:#}");
        if worst == 0 {
            worst = status::of(error);
        }
    };
    for error in all.values().filter_map(|file| file.as_ref().err()) {
        failed(error);
    }
    let order = boot::order(&starting(&all));
    if !order.circle.is_empty() {
        let circle = order.circle.join(", ");
        failed(&anyhow::anyhow!(
            "zones {circle} do not start: by their `after` each waits for another of them"
        ));
    }
    for name in order.groups.iter().flatten() {
        let Some(Ok(file)) = all.get(name) else { continue };
        let exists = list(socket)?
            .into_iter()
            .find(|zone| zone.name == *name && zone.state != Phase::Stopped);
        if let Some(zone) = exists {
            eprintln!(
                "ringctl: zone {name} exists already, and is {}",
                zone.state.name()
            );
            if let Ok(runs) = running(socket, name) {
                say_differences(name, &differences(&file.config, &runs));
            }
            continue;
        }
        // What the file asks for.
        std::thread::sleep(file.boot.delay);
        let config = Box::new(file.config.clone());
        let started = Client::connect(socket).and_then(|mut client| client.ask(&Request::Start { config }));
        match started {
            Ok(_) => eprintln!("ringctl: zone {name} runs"),
            Err(error) => failed(&anyhow::Error::new(error).context(format!("zone {name} does not start"))),
        }
    }
    Ok(ExitCode::from(worst))
}

/// What `zone shutdown` ends.
#[derive(Args, Debug)]
pub struct EndOptions {
    /// The zone's name.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub name: Option<String>,
    /// All zones: first those that are not defined or start after others, last those that others start after.
    #[arg(long)]
    pub all: bool,
    /// How long a guest may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Stop it after that, as `zone stop` would.
    #[arg(long)]
    pub force: bool,
}

/// Shuts a zone or all zones down.
///
/// # Errors
/// There is no such zone, it did not end cleanly, or no daemon answers.
pub fn shut_down(directory: &Path, socket: &Path, options: EndOptions) -> anyhow::Result<ExitCode> {
    let EndOptions {
        name,
        all,
        timeout,
        force,
    } = options;
    let of = |name: String| ShutdownOptions { name, timeout, force };
    if !all {
        let name = name.ok_or_else(|| Missing("no zone is named".into()))?;
        return shutdown::run(socket, &of(name), false);
    }
    let mut left: Vec<Status> = list(socket)?;
    left.retain(|zone| zone.state != Phase::Stopped);
    // A file that makes no sense has no say; its zone ends with the first.
    let files = Definitions(directory).all().unwrap_or_default();
    let boots = files
        .iter()
        .filter_map(|(name, file)| Some((name.clone(), file.as_ref().ok()?.boot.clone())));
    let order = boot::order(&boots.collect());
    let mut groups: Vec<Vec<Status>> = Vec::new();
    for group in &order.groups {
        let (now, later) = left.into_iter().partition(|zone| group.contains(&zone.name));
        groups.push(now);
        left = later;
    }
    match groups.last_mut() {
        Some(last) => last.append(&mut left),
        None => groups.push(left),
    }
    let mut worst = ExitCode::SUCCESS;
    for group in groups.into_iter().rev() {
        // At the same time: each may take until its timeout.
        let threads: Vec<_> = group
            .into_iter()
            .map(|zone| {
                let (socket, options) = (socket.to_owned(), of(zone.name.clone()));
                std::thread::spawn(move || end(&socket, &options, zone.state))
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(code) if code == ExitCode::SUCCESS => {}
                Ok(code) => worst = code,
                Err(_) => worst = ExitCode::from(status::FAILED),
            }
        }
    }
    Ok(worst)
}

/// Ends one of all zones. One that cannot take the power key, as it is paused or has crashed, is stopped if
/// `force` says so.
fn end(socket: &Path, options: &ShutdownOptions, state: Phase) -> ExitCode {
    let name = &options.name;
    let ended = if state == Phase::Running || !options.force {
        shutdown::run(socket, options, false)
    } else {
        eprintln!("ringctl: zone {name} is {}: stopping it", state.name());
        let stopped =
            Client::connect(socket).and_then(|mut client| client.ask(&Request::Stop { name: name.clone() }));
        stopped.map(|_| ExitCode::SUCCESS).map_err(Into::into)
    };
    ended.unwrap_or_else(|error| {
        eprintln!("ringctl: {error:#}");
        ExitCode::from(status::of(&error))
    })
}
