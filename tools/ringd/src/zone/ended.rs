//! [`Ended`]: how a zone ended, `NAME.ended`, beside the records of zones that exist.
//!
//! It is written before EL2 forgets the zone, so a daemon that is killed at any moment leaves the zone in
//! EL2, with the reason why it stopped, or this file. The file stays until another zone of that name starts
//! or the registry forgets the zone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use super::record::replace;
use super::shared::{Ending, Phase, Shared};
use crate::config::ZoneConfig;
use crate::console::{Console, Tail};
use crate::device::State;
use crate::regular;

/// Version of the layout.
const VERSION: u32 = 1;
/// Longest file: a console's end has 64 KiB, each byte up to six characters of JSON.
const SIZE_MAX: u64 = 4 << 20;

/// A zone that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    version: u32,
    /// Its description at its start.
    pub config: ZoneConfig,
    /// How it ended.
    pub ending: Ending,
    /// How often it was started again.
    pub restarts: u32,
    /// The end of its console.
    pub console: Tail,
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.ended"))
}

impl Ended {
    /// Returns what is recorded of a zone.
    pub const fn new(config: ZoneConfig, ending: Ending, restarts: u32, console: Tail) -> Self {
        Self {
            version: VERSION,
            config,
            ending,
            restarts,
            console,
        }
    }

    /// Writes it, entirely or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        replace(&path(directory, &self.config.name), self)
    }

    /// Returns all in a directory by name. What cannot be used is logged.
    pub fn load_all(directory: &Path) -> BTreeMap<String, Self> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "ended"));
        files
            .filter_map(|path| match load(&path) {
                Ok(ended) => Some((ended.config.name.clone(), ended)),
                Err(error) => {
                    tracing::warn!(%error, "how a zone ended cannot be read");
                    None
                }
            })
            .collect()
    }

    /// Returns the zone as all threads see it.
    pub fn into_shared(self) -> Arc<Shared> {
        let devices = State::new(&self.config.devices);
        let shared = Shared::with_console(self.config, devices, Console::ended(self.console));
        // Of other consoles nothing is recorded.
        shared.close_consoles();
        let (ending, restarts) = (self.ending, self.restarts);
        shared.update(|status| {
            (status.state, status.ending, status.restarts) = (Phase::Stopped, Some(ending), restarts);
        });
        shared
    }

    /// Removes what is recorded of a zone's end.
    pub fn remove(directory: &Path, name: &str) {
        let path = path(directory, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove the record of a zone's end");
            }
            _ => {}
        }
    }
}

fn load(path: &Path) -> anyhow::Result<Ended> {
    let shown = path.display();
    let text = regular::read_to_string(path, SIZE_MAX).map_err(|cause| anyhow!("{shown}: {cause}"))?;
    let ended: Ended = serde_json::from_str(&text).map_err(|cause| anyhow!("{shown}: {cause}"))?;
    match ended.version {
        VERSION => Ok(ended),
        other => Err(anyhow!("{shown}: layout {other}, expected {VERSION}")),
    }
}
