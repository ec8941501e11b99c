//! Requests of `ringctl` that are about devices, and the replies. Part of [`crate::control::protocol`].

use serde::{Deserialize, Serialize};

use super::disk::report::DiskReport;
use super::net::report::NetReport;
use super::{Change, Config, Observed};

/// A request about devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Lists the drives of all zones. Reply: [`Reply::Disks`].
    Disks {},
    /// Lists the network devices of all zones. Reply: [`Reply::Nets`].
    Nets {},
    /// Changes a device. Reply: the device as it is then, or [`crate::control::protocol::Reply::Done`].
    #[serde(untagged)]
    Change(ChangeRequest),
}

/// A change of a device of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRequest {
    /// The zone.
    pub name: String,
    /// The change.
    #[serde(flatten)]
    pub change: Change,
}

/// A reply to [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The drives of all zones.
    Disks(Vec<DiskReport>),
    /// A drive.
    Disk(Box<DiskReport>),
    /// The network devices of all zones.
    Nets(Vec<NetReport>),
}

impl Reply {
    /// Returns the drives among `devices`.
    pub fn disks(devices: &[Observed]) -> Self {
        let drives = devices
            .iter()
            .filter(|device| matches!(device.config, Config::Disk(_)));
        Self::Disks(drives.map(DiskReport::new).collect())
    }

    /// Returns a device that has been changed, of a kind that has changes.
    pub fn changed(device: &Observed) -> Option<Self> {
        match device.config {
            Config::Disk(_) => Some(Self::Disk(Box::new(DiskReport::new(device)))),
            Config::Rng(_) | Config::Net(_) | Config::Console(_) => None,
        }
    }
}
