//! What a zone leaves for the next daemon: `<name>.json`, and `<name>.inflight` with the logs of its queues.
//!
//! The record is written before each step that it would be needed for, so that a daemon that finds it knows what to
//! give back. Its layout has a version; another one is refused, never guessed at.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringvisor::abi::{MAX_QUEUES, MAX_SLOTS};
use serde::{Deserialize, Serialize};
use vm_memory::{FileOffset, MmapRegion};

use crate::config::{DiskConfig, ZoneConfig};
use crate::io::device::LOG_STRIDE;

/// Version of the layout of records, shared page notes and in-flight files together.
pub const VERSION: u32 = 2;

/// A zone's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// What it was started as.
    pub config: ZoneConfig,
    /// EL2's number, once EL2 has created it.
    pub number: Option<u8>,
    /// Root's numbers of the CPUs that were taken offline for it.
    pub cpus: Vec<u32>,
    /// Huge pages that were added to root's pool for it.
    pub added_pages: u64,
    /// Starts so far; 0 while it is being set up.
    pub starts: u32,
    /// What is in each slot now: disks may have been attached, detached and limited since the start.
    pub disks: Vec<Option<DiskConfig>>,
    /// Disks that are being moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
}

/// A disk that is being moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Its slot.
    pub slot: u8,
    /// What it is to be.
    pub target: DiskConfig,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file cannot be read, written or removed.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Another version wrote it.
    #[error("{path}: written by another version of ringd (layout {found}, this one has {VERSION})")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is no record.
    #[error("{path}: not a zone's record: {cause}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        cause: serde_json::Error,
    },
}

fn record_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

fn inflight_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.inflight"))
}

impl Record {
    /// A record of a zone of which nothing has been set up.
    #[must_use]
    pub fn new(config: ZoneConfig) -> Self {
        Self {
            version: VERSION,
            disks: super::disks::slots(&config),
            config,
            number: None,
            cpus: Vec::new(),
            added_pages: 0,
            starts: 0,
            moves: Vec::new(),
        }
    }

    /// Writes it, at once or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), RecordError> {
        let path = record_path(directory, &self.config.name);
        let new = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            // Written at once: a call for each word of it took a third of a second of a take-over under emulation.
            let mut text = serde_json::to_vec(self)?;
            text.push(b'\n');
            fs::write(&new, text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|cause| RecordError::File {
            path: path.clone(),
            cause,
        })
    }

    /// All records in a directory, or why one is none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load_all(directory: &Path) -> Result<Vec<Result<Self, RecordError>>, RecordError> {
        let failed = |cause| RecordError::File {
            path: directory.to_owned(),
            cause,
        };
        let mut records = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.push(load(path));
            }
        }
        Ok(records)
    }

    /// Removes what a zone left.
    pub fn remove(directory: &Path, name: &str) {
        for path in [record_path(directory, name), inflight_path(directory, name)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a zone's record");
                }
                _ => {}
            }
        }
    }
}

fn load(path: PathBuf) -> Result<Record, RecordError> {
    /// The part of a record that all versions have.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) => return Err(RecordError::File { path, cause }),
    };
    match serde_json::from_str::<Any>(&text) {
        Ok(any) if any.version != VERSION => {
            return Err(RecordError::Version {
                path,
                found: any.version,
            });
        }
        Ok(_) => {}
        Err(cause) => return Err(RecordError::Damaged { path, cause }),
    }
    serde_json::from_str(&text).map_err(|cause| RecordError::Damaged { path, cause })
}

/// Where in that file the progress of moves is, a word for each slot: behind the logs.
pub const PROGRESS: usize = MAX_SLOTS * MAX_QUEUES * LOG_STRIDE;
/// Bytes of that.
const PROGRESS_LEN: usize = 4096;

/// Maps the file with a zone's in-flight logs; a new one is all zeroes, and takes memory only where it is written.
///
/// # Errors
/// The system refused.
pub fn inflight(directory: &Path, name: &str) -> Result<Arc<MmapRegion>, RecordError> {
    let path = inflight_path(directory, name);
    let size = PROGRESS + PROGRESS_LEN;
    let open = || -> io::Result<MmapRegion> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.set_len(size as u64)?;
        MmapRegion::from_file(FileOffset::new(file, 0), size).map_err(io::Error::other)
    };
    open()
        .map(Arc::new)
        .map_err(|cause| RecordError::File { path, cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;
    use std::path::Path;

    fn record() -> Record {
        let text = "name = \"a\"\ncpus = 1\nmemory = \"8M\"\nkernel = \"k\"";
        Record::new(file::parse("z.toml", text, Path::new("/z"), toml::Table::new()).unwrap())
    }

    #[test]
    fn what_is_saved_is_loaded_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            number: Some(3),
            cpus: vec![2, 3],
            added_pages: 4,
            starts: 1,
            ..record()
        };
        record.save(directory.path()).unwrap();
        inflight(directory.path(), "a").unwrap();
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
