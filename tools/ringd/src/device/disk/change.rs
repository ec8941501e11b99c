//! [`Change`]: what users may do to a zone's drives and disks.

use serde::{Deserialize, Serialize};

use super::config::{DiskConfig, Limit};

/// What users may do to a zone's drives and disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Attach a disk to a drive without a medium.
    Attach(Box<DiskConfig>),
    /// Detach the disk in a slot.
    Detach(u8),
    /// Change a disk's size, or read its image's size again.
    Resize {
        /// The slot.
        slot: u8,
        /// Bytes; the image's size if not given.
        size: Option<u64>,
        /// Whether it may become smaller.
        shrink: bool,
    },
    /// Change a disk's rate limits.
    Limit(u8, LimitChange),
    /// Retry the requests at which a disk has stopped.
    Resume(u8),
    /// Migrate a disk to another image.
    Migrate {
        /// The slot.
        slot: u8,
        /// The image: anything but path, format, engine or cache must have its default.
        target: Box<DiskConfig>,
    },
    /// Cancel a migration; the disk stays where it is.
    CancelMigration(u8),
}

/// Changes of a disk's rate limits: what is not given stays, 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitChange {
    /// Requests per second.
    pub iops: Option<u64>,
    /// Requests available at once after an idle time.
    pub iops_burst: Option<u64>,
    /// Bytes per second.
    pub bps: Option<u64>,
    /// Bytes available at once after an idle time.
    pub bps_burst: Option<u64>,
}

impl LimitChange {
    /// Applies the changes to the limits of `disk`.
    pub fn apply(&self, disk: &mut DiskConfig) {
        change(&mut disk.limits.iops, self.iops, self.iops_burst);
        change(&mut disk.limits.bps, self.bps, self.bps_burst);
    }
}

/// A new rate has the burst that is given with it, or the default.
fn change(limit: &mut Limit, rate: Option<u64>, burst: Option<u64>) {
    if let Some(rate) = rate {
        *limit = Limit {
            rate: Some(rate).filter(|rate| *rate != 0),
            burst: None,
        };
    }
    if let Some(burst) = burst {
        limit.burst = Some(burst);
    }
}
