//! [`Journal`]: a zone's record, written before each step that the next daemon would need it for.

use std::path::PathBuf;

use super::record::Record;
use crate::device::State;
use crate::device::zone::Store;

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
