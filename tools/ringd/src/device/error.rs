//! [`Error`]: why a device cannot be opened or changed.

use super::Kind;
use crate::config::ConfigError;
use crate::hv::Refusal;

/// Why a device cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its description is wrong, or names something that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// EL2 refused.
    #[error("zone {name}: {cause}")]
    Refused {
        /// The zone.
        name: String,
        /// EL2's status.
        cause: Refusal,
    },
    /// The zone's record cannot be written.
    #[error("zone {name}: its record: {cause}")]
    Record {
        /// The zone.
        name: String,
        /// The system's error.
        cause: String,
    },
    /// All slots for such a device are in use.
    #[error("zone {name} has no {free}")]
    NoneFree {
        /// The zone.
        name: String,
        /// What it lacks, and what to do.
        free: &'static str,
    },
    /// There is no such device in that slot.
    #[error("zone {name} has no {kind} in slot {slot}{}", .kind.hint())]
    Missing {
        /// The zone.
        name: String,
        /// The kind of device.
        kind: Kind,
        /// The slot.
        slot: u8,
    },
    /// A device cannot be opened or changed.
    #[error("zone {name}, {kind} in slot {slot}: {cause}")]
    Unusable {
        /// The zone.
        name: String,
        /// The kind of device.
        kind: Kind,
        /// Its slot.
        slot: u8,
        /// What is wrong.
        cause: String,
    },
}
