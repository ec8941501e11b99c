//! Requests of `ringctl disk` and the replies, as JSON: part of [`crate::control::protocol`].

use serde::{Deserialize, Serialize};

use super::change::{Change, LimitChange};
use super::config::DiskConfig;
use super::report::DiskReport;
use crate::device;
use crate::device::action::{Action, Report};
use crate::device::config::Config;
use crate::device::view::Observed;

/// A request about disks. But for [`Self::Disks`] and [`Self::DiskDetach`] the reply is [`Reply::Disk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Lists the drives of all zones. Reply: [`Reply::Disks`].
    Disks,
    /// Attaches a disk to a drive without a medium.
    DiskAttach {
        /// The zone.
        name: String,
        /// The disk.
        disk: Box<DiskConfig>,
    },
    /// Detaches a disk from its drive. Reply: [`crate::control::protocol::Reply::Done`].
    DiskDetach {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
    },
    /// Changes a disk's size.
    DiskResize {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
        /// Bytes; if not given, the size that its image has now.
        size: Option<u64>,
        /// Whether it may become smaller.
        shrink: bool,
    },
    /// Changes a disk's rate limits.
    DiskLimit {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
        /// The changes.
        change: LimitChange,
    },
    /// Retries the requests at which a disk has stopped.
    DiskResume {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
    },
    /// Migrates a disk to another image. The reply comes when the migration has begun.
    DiskMigrate {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
        /// The image.
        target: Box<DiskConfig>,
    },
    /// Cancels a migration; the disk stays where it is.
    DiskMigrateEnd {
        /// The zone.
        name: String,
        /// Its slot.
        slot: u8,
    },
}

/// A reply to [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The drives of all zones.
    Disks(Vec<DiskReport>),
    /// A drive.
    Disk(Box<DiskReport>),
}

impl Request {
    /// Returns what the daemon is to do.
    #[must_use]
    pub fn action(self) -> Action<Reply> {
        let report =
            (!matches!(self, Self::DiskDetach { .. })).then(|| Box::new(one) as Report<Observed, Reply>);
        let (zone, change) = match self {
            Self::Disks => return Action::List(Box::new(list)),
            Self::DiskAttach { name, disk } => (name, Change::Attach(disk)),
            Self::DiskDetach { name, slot } => (name, Change::Detach(slot)),
            Self::DiskResize {
                name,
                slot,
                size,
                shrink,
            } => (name, Change::Resize { slot, size, shrink }),
            Self::DiskLimit { name, slot, change } => (name, Change::Limit(slot, change)),
            Self::DiskResume { name, slot } => (name, Change::Resume(slot)),
            Self::DiskMigrate { name, slot, target } => (name, Change::Migrate { slot, target }),
            Self::DiskMigrateEnd { name, slot } => (name, Change::CancelMigration(slot)),
        };
        Action::Change {
            zone,
            change: device::Change::Disk(change),
            report,
        }
    }
}

/// Returns the reply with all drives.
fn list(devices: &[Observed]) -> Reply {
    let drives = devices
        .iter()
        .filter(|device| matches!(device.config, Config::Disk(_)));
    Reply::Disks(drives.map(DiskReport::new).collect())
}

/// Returns the reply with one drive.
fn one(drive: &Observed) -> Reply {
    Reply::Disk(Box::new(DiskReport::new(drive)))
}
