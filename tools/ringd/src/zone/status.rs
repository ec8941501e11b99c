//! What users see of a zone: [`Status`], [`Phase`], [`Ending`].

use std::fmt;

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use crate::device::state::Counts;

/// The phase of a zone's life.
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
    /// It has ended and holds nothing.
    Stopped,
    /// It is being taken over from an earlier daemon: its guest runs, its devices wait.
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
    /// A user stopped it.
    Stopped,
    /// The guest turned all its CPUs off.
    AllCpusOff,
    /// The guest crashed.
    Crashed(String),
    /// The daemon could not continue it.
    Failed(String),
}

impl Phase {
    /// Returns the phase's name, as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
            Self::Recovering => "recovering",
        }
    }
}

impl Ending {
    /// Whether the guest powered off, as a command that waits for it reports by its status.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::PoweredOff)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// A zone as `zone list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// EL2's number while it exists there.
    pub number: Option<u8>,
    /// The phase of its life.
    pub state: Phase,
    /// How it ended, if it did.
    pub ending: Option<Ending>,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Root's numbers of its CPUs.
    pub cpus: Vec<u32>,
    /// Bytes of RAM.
    pub memory: u64,
    /// Its devices by kind.
    #[serde(flatten)]
    pub devices: Counts,
    /// How often it was started again.
    pub restarts: u32,
}

impl Status {
    /// Returns the error that a command needs another phase.
    pub fn wrong_phase(&self, expected: &str) -> anyhow::Error {
        anyhow!("zone {} is {}, expected {expected}", self.name, self.state.name())
    }
}
