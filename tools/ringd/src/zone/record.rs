//! What a zone leaves for the next daemon: [`Record`], `NAME.json`, beside its devices' `NAME.inflight`
//! ([`crate::device::inflight`]).
//!
//! The record is written before each step that it would be needed for, so that a daemon that finds it
//! knows what to give back. Its layout has a version; another one is refused, never guessed at.
//! [`Journal`] writes it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::config::ZoneConfig;
use crate::device::zone::Store;
use crate::device::{State, inflight};
use crate::regular;

/// Version of the layout of records, shared page entries and in-flight files together.
pub const VERSION: u32 = 2;

/// A zone's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Its description at its start.
    pub config: ZoneConfig,
    /// EL2's number, once EL2 has created it.
    pub number: Option<u8>,
    /// Root's numbers of the CPUs that were taken offline for it.
    pub cpus: Vec<u32>,
    /// Huge pages that were added to root's pool for it.
    pub added_pages: u64,
    /// Starts so far; 0 while it is being set up.
    pub starts: u32,
    /// Its devices now.
    #[serde(flatten)]
    pub devices: State,
}

fn record_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

impl Record {
    /// Returns the record of a zone of which nothing has been set up.
    pub fn new(config: ZoneConfig) -> Self {
        Self {
            version: VERSION,
            devices: State::new(&config.devices),
            config,
            number: None,
            cpus: Vec::new(),
            added_pages: 0,
            starts: 0,
        }
    }

    /// Writes it, entirely or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, directory: &Path) -> anyhow::Result<()> {
        let path = record_path(directory, &self.config.name);
        replace(&path, self).map_err(|cause| {
            let path = path.display();
            self.config.failed(format!("its record: {path}: {cause}"))
        })
    }

    /// Returns all records in a directory, or why one cannot be used.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load_all(directory: &Path) -> anyhow::Result<Vec<anyhow::Result<Self>>> {
        let failed = |cause| anyhow!("{}: {cause}", directory.display());
        let mut records = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.push(load(&path));
            }
        }
        Ok(records)
    }

    /// Removes the files of a zone.
    pub fn remove(directory: &Path, name: &str) {
        for path in [record_path(directory, name), inflight::path(directory, name)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a zone's record");
                }
                _ => {}
            }
        }
    }
}

/// Writes a file of JSON, entirely or not at all.
///
/// # Errors
/// The system's error.
pub fn replace(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Written with one call: one for each word of it took a third of a second of a take-over under emulation.
    let mut text = serde_json::to_vec(content)?;
    text.push(b'\n');
    // Not what else there may be of this name: a link, or a file that others may read.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

fn load(path: &Path) -> anyhow::Result<Record> {
    /// What the records of all versions have.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let shown = path.display();
    let damaged = |cause| anyhow!("{shown}: not a zone's record: {cause}");
    let text = regular::open(path).and_then(io::read_to_string);
    let text = text.map_err(|cause| anyhow!("{shown}: {cause}"))?;
    let found = serde_json::from_str::<Any>(&text).map_err(damaged)?.version;
    if found != VERSION {
        bail!("{shown}: written by another version of ringd (layout {found}, this one has {VERSION})");
    }
    serde_json::from_str(&text).map_err(damaged)
}

/// A zone's record and where it is kept.
pub struct Journal {
    directory: PathBuf,
    record: Record,
}

impl Journal {
    /// Returns a journal with `record`, which is not written yet.
    pub const fn new(directory: PathBuf, record: Record) -> Self {
        Self { directory, record }
    }

    /// Returns the record.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the record and writes it.
    ///
    /// # Errors
    /// It cannot be written; it has changed all the same.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        change(&mut self.record);
        self.record.save(&self.directory)
    }

    /// Removes the record and the file with in-flight logs.
    pub fn remove(&self) {
        Record::remove(&self.directory, &self.record.config.name);
    }
}

impl Store for Journal {
    fn save(&mut self, state: &State) -> anyhow::Result<()> {
        let record = Record {
            devices: state.clone(),
            ..self.record.clone()
        };
        record.save(&self.directory)?;
        self.record = record;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::Record;
    use crate::config::file;
    use crate::device::inflight;

    fn record() -> Record {
        let text = "name = \"a\"\ncpus = 1\nmemory = \"8M\"\nkernel = \"k\"";
        Record::new(file::parse("z.toml", text, Path::new("/z"), toml::Table::new()).unwrap())
    }

    #[test]
    fn a_record_is_saved_loaded_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            number: Some(3),
            cpus: vec![2, 3],
            added_pages: 4,
            starts: 1,
            ..record()
        };
        record.save(directory.path()).unwrap();
        inflight::map(directory.path(), "a").unwrap();
        let found = Record::load_all(directory.path()).unwrap();
        assert_eq!(
            found.into_iter().collect::<Result<Vec<_>, _>>().unwrap(),
            [record]
        );
        Record::remove(directory.path(), "a");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        Record::remove(directory.path(), "a");
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("b.json"), "{\"version\": 7, \"zone\": 1}").unwrap();
        let error = Record::load_all(directory.path())
            .unwrap()
            .remove(0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("b.json: written by another version of ringd (layout 7"),
            "{error}"
        );
        fs::write(directory.path().join("b.json"), "{\"version\": 2, \"zone\": 1}").unwrap();
        let error = Record::load_all(directory.path())
            .unwrap()
            .remove(0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("b.json: not a zone's record"), "{error}");
    }
}
