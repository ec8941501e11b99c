//! [`Migration`]: a disk on its way to another image. [`ringblk::migrate`] does the work, a thread of its own
//! drives it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use ringblk::migrate::{Migration as Copy, MigrationError, Step};
use serde::{Deserialize, Serialize};

use super::config::DiskConfig;
use crate::device::context::Wake;

/// A migration on a zone's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The disk's slot.
    pub slot: u8,
    /// What the disk is to be.
    pub target: DiskConfig,
}

/// The stage of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Chunk by chunk.
    Copying,
    /// All is copied; source and target are compared.
    Comparing,
    /// They are equal: the switch remains.
    Ready,
    /// It has failed.
    Failed(String),
}

/// A migration as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// The target.
    pub target: PathBuf,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes to copy in all; 0 while the zone is being taken over.
    pub size: u64,
    /// Its stage.
    pub stage: Stage,
}

/// A disk that is being migrated.
pub struct Migration {
    /// The disk's slot.
    pub slot: u8,
    /// What the disk is to be.
    pub target: DiskConfig,
    /// What the migrating drive serves and the thread copies.
    pub copy: Arc<Copy>,
    stage: Mutex<Stage>,
    cancelled: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Migration {
    /// Returns a migration without a thread.
    pub fn new(slot: u8, target: DiskConfig, copy: Arc<Copy>) -> Arc<Self> {
        Arc::new(Self {
            slot,
            target,
            copy,
            stage: Mutex::new(Stage::Copying),
            cancelled: AtomicBool::new(false),
            thread: Mutex::default(),
        })
    }

    /// Returns the progress.
    pub fn report(&self) -> MigrationReport {
        MigrationReport {
            target: self.target.path.clone(),
            copied: self.copy.copied(),
            size: self.copy.size(),
            stage: self.stage(),
        }
    }

    /// Returns the stage.
    pub fn stage(&self) -> Stage {
        self.stage.lock().clone()
    }

    fn set_stage(&self, stage: Stage) {
        *self.stage.lock() = stage;
    }

    /// Starts the thread that copies and compares, if there is none. It calls `wake` at its end.
    pub fn start(self: &Arc<Self>, wake: &Wake) {
        let mut thread = self.thread.lock();
        if thread.is_some() {
            return;
        }
        let (migration, done) = (self.clone(), wake.clone());
        let started = std::thread::Builder::new().name("migrate".into()).spawn(move || {
            migration.set_stage(migration.run());
            done();
        });
        match started {
            Ok(handle) => *thread = Some(handle),
            Err(error) => {
                self.set_stage(Stage::Failed(format!("no thread for it: {error}")));
                wake();
            }
        }
    }

    fn run(&self) -> Stage {
        let work = || -> Result<(), MigrationError> {
            while !self.is_cancelled() && self.copy.copy()? == Step::More {}
            self.set_stage(Stage::Comparing);
            self.copy.sync()?;
            let mut at = 0;
            while !self.is_cancelled() && self.copy.verify(&mut at)? == Step::More {}
            Ok(())
        };
        match work() {
            Ok(()) if self.is_cancelled() => Stage::Failed("it was cancelled".into()),
            Ok(()) => Stage::Ready,
            Err(error) => Stage::Failed(error.to_string()),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Ends the thread. Afterwards only the guest's requests use source and target.
    pub fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Compares again, after [`Self::stop`].
    pub fn compare_again(self: &Arc<Self>, wake: Option<&Wake>) {
        self.cancelled.store(false, Ordering::Relaxed);
        self.set_stage(Stage::Comparing);
        if let Some(wake) = wake {
            self.start(wake);
        }
    }
}
