//! [`Configs`], the devices of a zone as its user describes them, and [`Config`], what one virtio slot holds.

use std::path::{Path, PathBuf};

use ringvisor::abi::MAX_SLOTS;
use serde::{Deserialize, Serialize};

use super::console::config::ConsoleConfig;
use super::disk::config::DiskConfig;
use super::net::config::NetConfig;
use super::rng::config::RngConfig;
use super::{console, disk, net};
use crate::config::keys::Keys;

/// The devices of a zone at its start. Part of [`crate::config::ZoneConfig`], in JSON as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configs {
    /// Disks in the order of the guest's `/dev/vd*`.
    pub disk: Vec<DiskConfig>,
    /// Drives without a medium, after the disks, for `ringctl disk attach`.
    #[serde(default)]
    pub spare_disks: u32,
    /// The entropy device, if the zone has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<RngConfig>,
    /// Network devices in the order of the guest's `eth*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// Consoles in the order of the guest's `hvc*`, ports of one device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<ConsoleConfig>,
    /// The file that has the output of the PL011.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_log: Option<PathBuf>,
}

/// What a virtio slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// A drive, with its disk unless it has no medium.
    Disk(Option<DiskConfig>),
    /// An entropy device.
    Rng(RngConfig),
    /// A network device.
    Net(NetConfig),
    /// A console device, with its ports.
    Console(Vec<ConsoleConfig>),
}

impl Configs {
    /// The keys of a zone file that describe devices.
    pub const KEYS: &'static [&'static str] =
        &["disk", "spare_disks", "rng", "net", "console", "console_log"];

    /// Takes the devices from a zone file's keys.
    ///
    /// # Errors
    /// A key of a device is wrong.
    pub fn from_keys(keys: &mut Keys<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            disk: disk::keys::disks(keys)?,
            spare_disks: disk::keys::spare_disks(keys)?,
            rng: RngConfig::from_keys(keys)?,
            net: net::keys::nets(keys)?,
            console: console::config::consoles(keys)?,
            console_log: console::config::log(keys, "console_log")?,
        })
    }

    /// Checks everything that can be checked without the machine.
    ///
    /// # Errors
    /// The first value that is out of range or contradicts another.
    pub fn check(&self, origin: &str) -> anyhow::Result<()> {
        let others = usize::from(self.rng.is_some()) + self.net.len() + usize::from(!self.console.is_empty());
        let slots = MAX_SLOTS.saturating_sub(others);
        disk::config::check_all(&self.disk, self.spare_disks, slots, origin)?;
        net::config::check_all(&self.net, origin)?;
        console::config::check_all(&self.console, self.console_log.as_deref(), origin)?;
        self.rng.as_ref().map_or(Ok(()), |rng| rng.check(origin))
    }

    /// Returns what each virtio slot holds at the zone's start: disks, drives without a medium, the entropy
    /// device, network devices, the console device.
    pub fn slots(&self) -> Vec<Config> {
        let spare = usize::try_from(self.spare_disks).unwrap_or(MAX_SLOTS);
        let spare = spare.min(MAX_SLOTS.saturating_sub(self.disk.len()));
        let disks = self.disk.iter().cloned().map(Some);
        let drives = disks.chain(std::iter::repeat_n(None, spare));
        let rng = self.rng.iter().cloned().map(Config::Rng);
        let nets = self.net.iter().cloned().map(Config::Net);
        let consoles = (!self.console.is_empty()).then(|| Config::Console(self.console.clone()));
        drives
            .map(Config::Disk)
            .chain(rng)
            .chain(nets)
            .chain(consoles)
            .take(MAX_SLOTS)
            .collect()
    }
}

impl Configs {
    /// Returns the log files of all consoles.
    pub fn logs(&self) -> impl Iterator<Item = &Path> {
        let ports = self.console.iter().filter_map(|console| console.log.as_deref());
        ports.chain(self.console_log.as_deref())
    }
}

impl Config {
    /// Returns the number of queues of a device in a zone with `vcpus` vCPUs.
    pub fn queues(&self, vcpus: usize) -> usize {
        match self {
            Self::Disk(disk) => disk::config::queues(disk.as_ref(), vcpus),
            Self::Rng(_) => 1,
            Self::Net(net) => usize::from(2 * net.pairs(vcpus) + 1),
            Self::Console(consoles) => ringconsole::config::queues(consoles.len()),
        }
    }

    /// Returns the disk in a drive.
    pub fn disk(&self) -> Option<&DiskConfig> {
        match self {
            Self::Disk(disk) => disk.as_ref(),
            Self::Rng(_) | Self::Net(_) | Self::Console(_) => None,
        }
    }
}
