//! Requests of `ringctl` that are about devices, and the replies. Part of [`crate::control::protocol`].

use serde::{Deserialize, Serialize};

use super::view::Observed;
use super::{Change, disk};

/// A request about devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Request {
    /// About disks.
    Disk(disk::api::Request),
}

/// A reply to [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// About disks.
    Disk(disk::api::Reply),
}

/// What the daemon is to do for a request.
pub enum Action {
    /// Report the devices that the function takes.
    List(fn(&[Observed]) -> Reply),
    /// Change a device of a zone.
    Change {
        /// The zone.
        zone: String,
        /// The change.
        change: Change,
        /// Makes the reply of the changed device, if the reply is a report.
        report: Option<fn(&Observed) -> Reply>,
    },
}

impl Request {
    /// Returns what the daemon is to do.
    #[must_use]
    pub fn action(self) -> Action {
        match self {
            Self::Disk(request) => request.action(),
        }
    }
}
