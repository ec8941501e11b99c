//! Zones: what one is in the daemon, from its description to its end.
//!
//! Each zone has a thread, the [`actor`], which alone changes it: it takes what the zone needs ([`resources`]),
//! fills its memory ([`load`]), changes its disks ([`disks`]), follows what EL2 tells, and gives everything back. The [`registry`] names the zones
//! and passes on what users ask for. [`record`] is what a zone leaves on disk for the next daemon.

pub mod actor;
pub mod disks;
pub mod load;
pub mod moves;
pub mod record;
pub mod registry;
mod released;
pub mod resources;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, DiskConfig, ZoneConfig};
use crate::console::Console;
use crate::host::{Host, RamError};
use crate::hv::{Hypervisor, Refusal};
use crate::io::Io;
use moves::{MoveReport, Moving};
use record::Move;

/// What all zones share.
pub struct Context {
    /// EL2.
    pub hv: Arc<dyn Hypervisor>,
    /// Root Linux.
    pub host: Arc<dyn Host>,
    /// The reactor.
    pub io: Arc<Io>,
    /// How images are opened.
    pub images: ringblk::OpenContext,
    /// Directory of the records.
    pub records: PathBuf,
    /// Held while CPUs are chosen and taken offline. Outermost lock.
    pub cpus: Mutex<()>,
}

impl Context {
    /// EL2, with one function per operation.
    #[must_use]
    pub fn el2(&self) -> &dyn Hypervisor {
        &*self.hv
    }
}

/// Where a zone stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being set up.
    Created,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It crashed and is held for inspection.
    Crashed,
    /// It is over and holds nothing.
    Stopped,
    /// It is being taken over from an earlier daemon: its guest runs, its disks wait.
    Recovering,
}

/// How a zone ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how", content = "detail")]
pub enum Ending {
    /// The guest powered off (PSCI SYSTEM_OFF).
    PoweredOff,
    /// The guest asked for a reset, and `on_reboot` says stop.
    Rebooted,
    /// Somebody stopped it.
    Stopped,
    /// The guest took all its CPUs off.
    AllCpusOff,
    /// The guest crashed.
    Crashed(String),
    /// The daemon could not go on with it.
    Failed(String),
}

impl Ending {
    /// Whether the guest powered off, as a command that waits for it reports by its status.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::PoweredOff)
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Rebooted => f.write_str("asked for a reset, and on_reboot is \"stop\""),
            Self::Stopped => f.write_str("was stopped"),
            Self::AllCpusOff => f.write_str("took all its CPUs off"),
            Self::Crashed(detail) => write!(f, "crashed: {detail}"),
            Self::Failed(detail) => write!(f, "failed: {detail}"),
        }
    }
}

/// What `zone list` shows of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// EL2's number while it exists there.
    pub number: Option<u8>,
    /// Where it stands.
    pub state: Phase,
    /// How it ended, if it did.
    pub ending: Option<Ending>,
    /// vCPUs.
    pub vcpus: usize,
    /// Root's numbers of its CPUs.
    pub cpus: Vec<u32>,
    /// Bytes of RAM.
    pub memory: u64,
    /// Disks.
    pub disks: usize,
    /// How often it was started again.
    pub restarts: u32,
}

/// A zone as everybody sees it.
pub struct Shared {
    /// What it was started as.
    pub config: ZoneConfig,
    /// Its console.
    pub console: Arc<Console>,
    status: Mutex<Status>,
    changed: Condvar,
    /// What is in each slot now.
    disks: Mutex<Vec<Option<DiskConfig>>>,
    /// Disks that are being moved.
    moves: Mutex<Vec<Arc<Moving>>>,
    /// Moves that an earlier daemon had begun, until the zone is taken over.
    begun_moves: Mutex<Vec<Move>>,
    /// Why the last move of the disk in a slot came to nothing.
    move_failures: Mutex<BTreeMap<u8, String>>,
}

impl Shared {
    /// A zone that is being set up.
    #[must_use]
    pub fn new(config: ZoneConfig) -> Arc<Self> {
        let status = Status {
            name: config.name.clone(),
            number: None,
            state: Phase::Created,
            ending: None,
            vcpus: config.cpus.count(),
            cpus: Vec::new(),
            memory: config.memory,
            disks: config.disk.len(),
            restarts: 0,
        };
        let (status, changed) = (Mutex::new(status), Condvar::new());
        let disks = Mutex::new(disks::slots(&config));
        Arc::new(Self {
            config,
            console: Arc::default(),
            status,
            changed,
            disks,
            moves: Mutex::default(),
            begun_moves: Mutex::default(),
            move_failures: Mutex::default(),
        })
    }

    /// Disks that are being moved.
    pub(crate) fn moves(&self) -> MutexGuard<'_, Vec<Arc<Moving>>> {
        self.moves.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// It is being taken over, with the moves that are on its record.
    fn recover(&self, number: u8, moves: Vec<Move>) {
        *self
            .begun_moves
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = moves;
        self.update(|status| (status.state, status.number) = (Phase::Recovering, Some(number)));
    }

    /// How far the disk in this slot is, if it is being moved. While the zone is being taken over nobody knows how far.
    #[must_use]
    pub fn move_report(&self, slot: u8) -> Option<MoveReport> {
        // In this order: what is no longer recovering is there.
        let recovering = self.status().state == Phase::Recovering;
        let report = self
            .moves()
            .iter()
            .find(|moving| moving.slot() == slot)
            .map(|moving| moving.report());
        let begun = self
            .begun_moves
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let begun = || {
            let begun = begun.iter().find(|one| recovering && one.slot == slot)?;
            Some(MoveReport::begun(begun.target.path.clone()))
        };
        report.or_else(begun)
    }

    /// Why the last move of the disk in this slot came to nothing, if it did.
    #[must_use]
    pub fn move_failure(&self, slot: u8) -> Option<String> {
        let failures = self.move_failures.lock();
        failures
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get(&slot)
            .cloned()
    }

    fn set_move_failure(&self, slot: u8, reason: Option<String>) {
        let mut failures = self
            .move_failures
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match reason {
            Some(reason) => failures.insert(slot, reason),
            None => failures.remove(&slot),
        };
    }

    /// What is in each slot now.
    #[must_use]
    pub fn disks(&self) -> Vec<Option<DiskConfig>> {
        self.disks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Something else is in the slots.
    pub fn set_disks(&self, disks: Vec<Option<DiskConfig>>) {
        let count = disks.iter().flatten().count();
        *self.disks.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = disks;
        self.update(|status| status.disks = count);
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Changes it and wakes those who wait.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits for its end.
    #[must_use]
    pub fn wait(&self) -> Ending {
        let mut status = self.lock();
        loop {
            if let (Phase::Stopped, Some(ending)) = (status.state, &status.ending) {
                return ending.clone();
            }
            status = self
                .changed
                .wait(status)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Why a zone cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError {
    /// Its description is wrong, or names something that is not there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// EL2 refused.
    #[error("zone {name}: {cause}")]
    Refused {
        /// The zone.
        name: String,
        /// What EL2 said.
        cause: Refusal,
    },
    /// Root Linux refused.
    #[error("zone {name}: {what}: {cause}")]
    Host {
        /// The zone.
        name: String,
        /// What was tried.
        what: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Its memory cannot be written.
    #[error("zone {name}: {cause}")]
    Ram {
        /// The zone.
        name: String,
        /// What went wrong.
        cause: RamError,
    },
    /// There is a zone of that name.
    #[error("zone {0} exists already; `ringctl zone stop {0}` ends it")]
    Exists(String),
    /// EL2 has one of that name that this daemon could not take over.
    #[error(
        "EL2 has a zone {0} that this ringd could not take over; its log says why. The ringd that started it can end \
         it, or a restart of the machine"
    )]
    Foreign(String),
    /// There is none.
    #[error("no zone {0}; `ringctl zone list` shows those there are")]
    Unknown(String),
    /// Its state does not allow it.
    #[error("zone {name} is {}, expected {expected}", phase_name(*.phase))]
    WrongPhase {
        /// The zone.
        name: String,
        /// Its state.
        phase: Phase,
        /// What it should be.
        expected: &'static str,
    },
    /// All drives have a disk, or there are none.
    #[error(
        "zone {0} has no drive free for another disk: `spare_disks` in its zone file says how many it starts with, \
         and `ringctl disk detach` frees one"
    )]
    NoSpareDisk(String),
    /// There is no disk in that slot.
    #[error("zone {name} has no disk in slot {slot}; `ringctl disk list` shows those there are")]
    NoDisk {
        /// The zone.
        name: String,
        /// The slot.
        slot: u8,
    },
    /// A disk cannot be what it should.
    #[error("zone {name}, disk in slot {slot}: {cause}")]
    Disk {
        /// The zone.
        name: String,
        /// Its slot.
        slot: usize,
        /// What is wrong.
        cause: String,
    },
    /// EL2 did not get a vCPU out of the guest in time.
    #[error("zone {name}: EL2 has not {what} it within {seconds} s")]
    Timeout {
        /// The zone.
        name: String,
        /// "stopped" or "paused".
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

/// The state's name, as users see it.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Crashed => "crashed",
        Phase::Stopped => "stopped",
        Phase::Recovering => "recovering",
    }
}
