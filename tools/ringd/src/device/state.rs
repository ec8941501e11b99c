//! [`State`]: what is in each slot now, as it stands in a zone's record.

use serde::{Deserialize, Serialize};

use super::config::{Config, Configs};
use super::disk::config::DiskConfig;
use super::disk::migration::Pending;
use super::net::config::{NetLimits, PortConfig};

/// The devices of a zone that runs. Part of the zone's record (version 2), in JSON as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What each drive holds: disks may have been attached, detached and limited since the start.
    pub disks: Vec<Option<DiskConfig>>,
    /// Disks that are being migrated.
    #[serde(rename = "moves", default, skip_serializing_if = "Vec::is_empty")]
    pub migrations: Vec<Pending>,
    /// What was changed of network devices since the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetState>,
}

/// What was changed of a network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Its slot.
    pub slot: u8,
    /// Whether its link is to be down.
    pub link_down: bool,
    /// Its limits.
    pub limits: NetLimits,
    /// What is behind it now, if that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortState>,
}

/// What is behind a network device whose port was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The port; `None`: it was detached.
    pub config: Option<PortConfig>,
    /// What the device has offered its driver, whatever the port: checksums and segmentation of TCP, and of
    /// UDP.
    pub offloads: (bool, bool),
}

impl NetState {
    /// Returns the state of a device that nothing was changed of.
    pub const fn new(slot: u8, limits: NetLimits) -> Self {
        Self {
            slot,
            link_down: false,
            limits,
            port: None,
        }
    }
}

/// How many devices of each kind a zone has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Disks.
    pub disks: usize,
}

impl State {
    /// Returns the devices of a zone at its start.
    pub fn new(configs: &Configs) -> Self {
        let slots = configs.slots();
        let drive = |config: Config| match config {
            Config::Disk(disk) => Some(disk),
            Config::Rng(_) | Config::Net(_) | Config::Console(_) => None,
        };
        Self {
            disks: slots.into_iter().filter_map(drive).collect(),
            migrations: Vec::new(),
            nets: Vec::new(),
        }
    }

    /// Returns what each virtio slot holds in a zone with these devices at its start.
    pub fn slots(&self, start: &Configs) -> Vec<Config> {
        let drives = self.disks.iter().cloned().map(Config::Disk);
        drives
            .chain(start.slots().into_iter().skip(self.disks.len()))
            .collect()
    }

    /// Returns the number of devices of each kind.
    pub fn counts(&self) -> Counts {
        Counts {
            disks: self.disks.iter().flatten().count(),
        }
    }
}
