//! [`ZoneError`]: why a zone cannot do what was asked.

use std::io;

use super::record::RecordError;
use super::status::Phase;
use crate::config::ConfigError;
use crate::device;
use crate::host::RamError;
use crate::hv::Refusal;

/// Why a zone cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError {
    /// Its description is wrong, or names something that does not exist.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A device cannot be opened or changed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// EL2 refused.
    #[error("zone {name}: {cause}")]
    Refused {
        /// The zone.
        name: String,
        /// EL2's status.
        cause: Refusal,
    },
    /// Root Linux refused.
    #[error("zone {name}: {what}: {cause}")]
    Host {
        /// The zone.
        name: String,
        /// What was tried.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
    /// Its record cannot be written.
    #[error("zone {name}: its record: {cause}")]
    Record {
        /// The zone.
        name: String,
        /// What is wrong.
        cause: RecordError,
    },
    /// Its memory cannot be written.
    #[error("zone {name}: {cause}")]
    Ram {
        /// The zone.
        name: String,
        /// What is wrong.
        cause: RamError,
    },
    /// There is a zone of that name.
    #[error("zone {0} exists already; `ringctl zone stop {0}` ends it")]
    Exists(String),
    /// EL2 has a zone of that name that this daemon could not take over.
    #[error(
        "EL2 has a zone {0} that this ringd could not take over; its log says why. The ringd that started it can end \
         it, or a restart of the machine"
    )]
    Foreign(String),
    /// There is no zone of that name.
    #[error("no zone {0}; `ringctl zone list` shows those there are")]
    Unknown(String),
    /// Its phase does not allow it.
    #[error("zone {name} is {}, expected {expected}", phase.name())]
    WrongPhase {
        /// The zone.
        name: String,
        /// Its phase.
        phase: Phase,
        /// What it should be.
        expected: &'static str,
    },
    /// EL2 did not get all vCPUs out of the guest in time.
    #[error("zone {name}: EL2 has not {what} it within {seconds} s")]
    Timeout {
        /// The zone.
        name: String,
        /// "stopped" or "paused".
        what: &'static str,
        /// How long the daemon waited.
        seconds: u64,
    },
}
