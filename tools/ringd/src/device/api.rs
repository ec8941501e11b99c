//! Requests of `ringctl` that are about devices, and the replies. Part of [`crate::control::protocol`].

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::disk;

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

impl Request {
    /// Returns what the daemon is to do.
    #[must_use]
    pub fn action(self) -> Action<Reply> {
        match self {
            Self::Disk(request) => request.action().map(Reply::Disk),
        }
    }
}
