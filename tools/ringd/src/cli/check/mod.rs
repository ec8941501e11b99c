//! `ringctl check FILE...`: everything that would keep zones from starting, without starting anything.
//!
//! [`mistakes`] is about the text of a file, [`conflicts`] about what it asks for: of this machine, beside
//! zones that run, zones that start with the machine, and the other files. Nothing is written, and images are
//! opened for reading.

mod conflicts;
mod mistakes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::definitions::Definitions;
use super::status::REFUSED;
use super::{defined, print};
use crate::config::boot;
use crate::config::file::{self, ZoneFile};
use crate::control::client::ClientError;
use crate::zone::Phase;
use conflicts::{Other, Place};

/// What to check.
#[derive(Args, Debug)]
pub struct CheckOptions {
    /// Zone files.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: print::OutputOptions,
}

/// Something that would go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The text line in it, from 1 on, if the problem is at one.
    pub line: Option<usize>,
    /// What is wrong, for people.
    pub message: String,
}

/// A file that is checked.
struct Checked {
    path: PathBuf,
    origin: String,
    text: String,
    zone: ZoneFile,
}

/// Checks files and prints what would go wrong; the status is 3 if anything would.
///
/// # Errors
/// The directory of zones cannot be read, or standard output is gone.
pub fn run(options: &CheckOptions, directory: &Path, socket: &Path) -> anyhow::Result<ExitCode> {
    let mut problems = Vec::new();
    let mut checked = Vec::new();
    for path in &options.files {
        let origin = path.display().to_string();
        match file::read(path) {
            Err(error) => problems.push(Problem {
                line: None,
                message: without(&origin, &error.to_string()),
                file: origin,
            }),
            Ok((text, base)) => {
                let (mut found, zone) = mistakes::of(&origin, &text, &base);
                problems.append(&mut found);
                if let Some(zone) = zone {
                    let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                    checked.push(Checked {
                        path,
                        origin,
                        text,
                        zone,
                    });
                }
            }
        }
    }
    let others = others(&checked, directory, socket)?;
    for (index, one) in checked.iter().enumerate() {
        let beside = checked.iter().enumerate().filter(|(other, _)| *other != index);
        let mut all: Vec<Other> = beside
            .map(|(_, other)| Other {
                place: Place::File(other.origin.clone()),
                config: other.zone.config.clone(),
                cpus: Vec::new(),
            })
            .collect();
        // A zone that runs is replaced by what its file describes.
        all.extend(
            others
                .iter()
                .filter(|other| other.config.name != one.zone.config.name)
                .cloned(),
        );
        let runs = others
            .iter()
            .any(|other| other.place == Place::Runs && other.config.name == one.zone.config.name);
        for (key, message) in conflicts::of(Path::new("/"), &one.zone.config, &all, runs) {
            problems.push(one.problem(&key, &message));
        }
    }
    for (one, message) in order(&checked, directory)? {
        problems.push(one.problem("boot.after", &message));
    }
    if options.output.json {
        print::json(&problems)?;
    } else {
        for Problem { file, line, message } in &problems {
            match line {
                Some(line) => println!("{file}:{line}: {message}"),
                None => println!("{file}: {message}"),
            }
        }
    }
    Ok(ExitCode::from(if problems.is_empty() { 0 } else { REFUSED }))
}

impl Checked {
    fn problem(&self, key: &str, message: &str) -> Problem {
        Problem {
            file: self.origin.clone(),
            line: mistakes::line_of(&self.text, key),
            message: without(&self.origin, message),
        }
    }
}

/// Returns a message without the file that it begins with.
fn without(origin: &str, message: &str) -> String {
    message
        .strip_prefix(&format!("{origin}: "))
        .unwrap_or(message)
        .to_owned()
}

/// Returns zones that run and zones that start with the machine, but for the files that are checked.
fn others(checked: &[Checked], directory: &Path, socket: &Path) -> anyhow::Result<Vec<Other>> {
    let mut others = Vec::new();
    match defined::list(socket) {
        Ok(zones) => {
            for zone in zones.into_iter().filter(|zone| zone.state != Phase::Stopped) {
                if let Ok(config) = defined::running(socket, &zone.name) {
                    others.push(Other {
                        place: Place::Runs,
                        config,
                        cpus: zone.cpus,
                    });
                }
            }
        }
        Err(ClientError::NotRunning(_)) => {
            eprintln!("ringctl: ringd is not running: zones that run are not compared");
        }
        Err(error) => eprintln!("ringctl: {error}: zones that run are not compared"),
    }
    let definitions = Definitions(directory);
    for (name, file) in definitions.all()? {
        let path = definitions
            .path(&name)
            .ok()
            .and_then(|path| path.canonicalize().ok());
        let is_checked = checked.iter().any(|one| Some(&one.path) == path.as_ref());
        let runs = others.iter().any(|other| other.config.name == name);
        if let Ok(file) = file
            && file.boot.start
            && !is_checked
            && !runs
        {
            let place = Place::File(file.config.origin.clone());
            others.push(Other {
                place,
                config: file.config,
                cpus: Vec::new(),
            });
        }
    }
    Ok(others)
}

/// Returns what is wrong with the order of the files and of zones that are defined.
fn order<'a>(checked: &'a [Checked], directory: &Path) -> anyhow::Result<Vec<(&'a Checked, String)>> {
    let mut boots = BTreeMap::new();
    for (name, file) in Definitions(directory).all()? {
        if let Ok(file) = file {
            boots.insert(name, file.boot);
        }
    }
    for one in checked {
        boots.insert(one.zone.config.name.clone(), one.zone.boot.clone());
    }
    let order = boot::order(&boots);
    let mut found = Vec::new();
    for one in checked {
        for other in one
            .zone
            .boot
            .after
            .iter()
            .filter(|other| !boots.contains_key(*other))
        {
            found.push((one, format!("boot.after: no zone {other} is defined")));
        }
        if order.circle.contains(&one.zone.config.name) {
            let circle = order.circle.join(", ");
            found.push((one, format!("boot.after: zones {circle} wait for each other")));
        }
    }
    Ok(found)
}
