//! [`Change`]: what users may do to a zone's drives and disks.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::config::{DiskConfig, Limit};
use crate::config::size::parse_size;

/// What users may do to a zone's drives and disks. As JSON it is a request of `ringctl disk`, with the zone's
/// name beside it: [`crate::device::api`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Change {
    /// Attach a disk to a drive without a medium.
    #[serde(rename = "disk_attach")]
    Attach {
        /// The disk.
        disk: Box<DiskConfig>,
    },
    /// Detach the disk in a slot.
    #[serde(rename = "disk_detach")]
    Detach {
        /// The slot.
        slot: u8,
    },
    /// Change a disk's size, or read its image's size again.
    #[serde(rename = "disk_resize")]
    Resize {
        /// The slot.
        slot: u8,
        /// Bytes; the image's size if not given.
        size: Option<u64>,
        /// Whether it may become smaller.
        shrink: bool,
    },
    /// Change a disk's rate limits.
    #[serde(rename = "disk_limit")]
    Limit {
        /// The slot.
        slot: u8,
        /// The changes.
        change: LimitChange,
    },
    /// Retry the requests at which a disk has stopped.
    #[serde(rename = "disk_resume")]
    Resume {
        /// The slot.
        slot: u8,
    },
    /// Migrate a disk to another image. The reply comes when the migration has begun.
    #[serde(rename = "disk_migrate")]
    Migrate {
        /// The slot.
        slot: u8,
        /// The image: anything but path, format, engine or cache must have its default.
        target: Box<DiskConfig>,
    },
    /// Cancel a migration; the disk stays where it is.
    #[serde(rename = "disk_migrate_end")]
    CancelMigration {
        /// The slot.
        slot: u8,
    },
}

/// Changes of a disk's rate limits: what is not given stays, 0 is no limit. Also the options of
/// `ringctl disk set-limit`.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[group(required = true, multiple = true)]
pub struct LimitChange {
    /// Requests per second, or "none".
    #[arg(long, value_parser = count)]
    pub iops: Option<u64>,
    /// Requests available at once after an idle time; if not given, a tenth of a new rate.
    #[arg(long, value_name = "COUNT")]
    pub iops_burst: Option<u64>,
    /// Bytes per second such as 50M, or "none".
    #[arg(long, value_parser = limit_size)]
    pub bps: Option<u64>,
    /// Bytes available at once after an idle time; if not given, a tenth of a new rate.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bps_burst: Option<u64>,
}

/// Parses a size on the command line.
pub(super) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 512M or 20G".into())
}

fn limit_size(text: &str) -> Result<u64, String> {
    limit(text, parse_size(text), "a size such as 50M")
}

fn count(text: &str) -> Result<u64, String> {
    limit(text, text.parse().ok(), "a number")
}

/// Returns the limit that `text` has been parsed to; 0 for none.
fn limit(text: &str, parsed: Option<u64>, expected: &str) -> Result<u64, String> {
    match parsed {
        Some(limit) if limit != 0 => Ok(limit),
        _ if text == "none" => Ok(0),
        _ => Err(format!("expected {expected}, or \"none\"")),
    }
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
    limit.burst = burst.or(limit.burst);
}

#[cfg(test)]
mod tests {
    use super::{count, limit_size};

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!((count("none"), count("500")), (Ok(0), Ok(500)));
        assert!(count("0").is_err() && count("many").is_err());
        assert_eq!((limit_size("none"), limit_size("2M")), (Ok(0), Ok(2 << 20)));
        assert!(limit_size("0").is_err() && limit_size("2X").is_err());
    }
}
