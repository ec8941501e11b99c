//! Requests of `ringctl` that are about devices, and the replies. Part of [`crate::control::protocol`].

use serde::{Deserialize, Serialize};

use super::view::Observed;
use super::{Change, Kind, disk};

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
    /// Report all devices of a kind.
    List(Kind),
    /// Change a device of a zone.
    Change {
        /// The zone.
        zone: String,
        /// The change.
        change: Change,
        /// The kind of device to report afterwards, if the reply is a report.
        report: Option<Kind>,
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

impl Kind {
    /// Returns the reply with all devices of this kind among `observed`.
    #[must_use]
    pub fn list(self, observed: &[Observed]) -> Reply {
        let observed = observed.iter().filter(|device| device.kind() == self);
        match self {
            Self::Disk => Reply::Disk(disk::api::Reply::Disks(
                observed.map(disk::report::DiskReport::new).collect(),
            )),
        }
    }

    /// Returns the reply with one device of this kind.
    #[must_use]
    pub fn one(self, observed: &Observed) -> Reply {
        match self {
            Self::Disk => Reply::Disk(disk::api::Reply::Disk(Box::new(disk::report::DiskReport::new(
                observed,
            )))),
        }
    }
}
