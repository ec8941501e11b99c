//! [`DiskConfig`]: one `[[disk]]` section of a zone file, or the argument of `ringctl disk attach`.

use std::path::{Path, PathBuf};

use ringblk::{EngineKind, Format, HostCache, OnError, Synthetic};
use ringvisor::abi::MAX_QUEUES;
use serde::{Deserialize, Serialize};

use crate::config::error::{bad, quoted};
use crate::config::size::format_size;

/// Most bytes of a disk's serial number (virtio 1.2, 5.2.6, GET_ID).
pub const SERIAL_LEN: usize = 20;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image or block device, absolute; or `null:SIZE`, `zero:SIZE`.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub readonly: bool,
    /// The answer to GET_ID.
    pub serial: Option<String>,
    /// How the image is read and written.
    pub engine: EngineKind,
    /// The image's format; raw if not given, unless the image looks like another one.
    #[serde(default)]
    pub format: Option<Format>,
    /// Whether I/O goes through root's page cache.
    #[serde(default)]
    pub cache: HostCache,
    /// Number of queues; one for each vCPU if not given.
    #[serde(default)]
    pub queues: Option<u32>,
    /// Whether the guest may discard blocks.
    #[serde(default = "yes")]
    pub discard: bool,
    /// What happens when the image fails a request.
    #[serde(default)]
    pub on_error: OnError,
    /// Its rate limits.
    #[serde(default)]
    pub limits: DiskLimits,
}

const fn yes() -> bool {
    true
}

impl DiskConfig {
    /// Returns the disk at `path` with the defaults of a zone file.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            readonly: false,
            serial: None,
            engine: EngineKind::default(),
            format: None,
            cache: HostCache::default(),
            queues: None,
            discard: true,
            on_error: OnError::default(),
            limits: DiskLimits::default(),
        }
    }

    /// Checks everything that can be checked without the machine. `key` is the section, such as `disk[0].`.
    ///
    /// # Errors
    /// The first value that is out of range or contradicts another.
    pub fn check(&self, origin: &str, key: &str) -> anyhow::Result<()> {
        let bad = |name: &str, value: String, expected: &str| {
            Err(bad(origin, format!("{key}{name}"), value, expected))
        };
        if !self.path.is_absolute() && !names_no_file(&self.path) {
            return bad("path", self.quoted_path(), "an absolute path");
        }
        if let ("vhost_user", socket) = self.source()
            && !socket.is_absolute()
        {
            let value = quoted(&socket.display().to_string());
            return bad("vhost_user", value, "an absolute path");
        }
        if let Some(serial) = &self.serial
            && (serial.len() > SERIAL_LEN || !serial.bytes().all(|b| b.is_ascii_graphic() || b == b' '))
        {
            let expected = format!("at most {SERIAL_LEN} printable ASCII characters");
            return bad("serial", quoted(serial), &expected);
        }
        if let Some(queues) = self.queues
            && (queues == 0 || usize::try_from(queues).is_ok_and(|queues| queues > MAX_QUEUES))
        {
            return bad("queues", queues.to_string(), &format!("1 to {MAX_QUEUES} queues"));
        }
        let limits = [("iops", self.limits.iops), ("bps", self.limits.bps)];
        for (name, limit) in limits {
            let show = |value: u64| match name {
                "bps" => quoted(&format_size(value)),
                _ => value.to_string(),
            };
            if limit.rate == Some(0) {
                return bad(name, show(0), "more than 0; without the key there is no limit");
            }
            if let (None, Some(burst)) = (limit.rate, limit.burst) {
                return bad(
                    &format!("{name}_burst"),
                    show(burst),
                    &format!("the key {name} beside it"),
                );
            }
        }
        Ok(())
    }

    /// Returns the path as TOML writes it.
    pub fn quoted_path(&self) -> String {
        quoted(&self.path.display().to_string())
    }

    /// Whether the two cannot be in use at the same time. A vhost-user server serves one client.
    pub fn conflicts(&self, other: &Self) -> bool {
        let served = ringblk::remote::socket(&self.path).is_some();
        let shared = self.readonly && other.readonly && !served;
        self.path == other.path && !shared && !Synthetic::is_named_by(&self.path)
    }

    /// Whether this is the image at `path`.
    pub fn is(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Returns the zone file's key for the place of the image, and its value.
    pub fn source(&self) -> (&'static str, &Path) {
        match ringblk::remote::socket(&self.path) {
            Some(socket) => ("vhost_user", socket),
            None => ("path", &self.path),
        }
    }
}

/// Whether `path` is none of the file system's: a disk without storage, or another process's.
pub fn names_no_file(path: &Path) -> bool {
    Synthetic::is_named_by(path) || ringblk::remote::socket(path).is_some()
}

/// Rate limits of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Requests per second.
    #[serde(default)]
    pub iops: Limit,
    /// Bytes per second.
    #[serde(default)]
    pub bps: Limit,
}

/// A rate and its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Per second; no limit if not given.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Available at once after an idle time; a tenth of the rate if not given.
    #[serde(default)]
    pub burst: Option<u64>,
}

impl Limit {
    /// Returns the burst in force.
    pub fn burst(&self) -> u64 {
        self.burst
            .unwrap_or_else(|| self.rate.map_or(0, |rate| rate.div_ceil(10)))
    }
}

/// Checks the disks of a zone that has `slots` virtio slots for disks and drives without a medium.
///
/// # Errors
/// The first value that is out of range or contradicts another.
pub fn check_all(disks: &[DiskConfig], spare: u32, slots: usize, origin: &str) -> anyhow::Result<()> {
    let count = disks.len();
    if count > slots {
        let expected = format!("at most {slots} disks");
        return Err(bad(origin, "disk", format!("{count} disks"), expected));
    }
    let room = slots - count;
    if usize::try_from(spare).map_or(true, |spare| spare > room) {
        let expected = format!("at most {room} beside {count} disks");
        return Err(bad(origin, "spare_disks", spare, expected));
    }
    for (index, disk) in disks.iter().enumerate() {
        let key = format!("disk[{index}].");
        disk.check(origin, &key)?;
        if let Some(first) = disks.iter().take(index).position(|other| other.conflicts(disk)) {
            let expected =
                format!("a file that is no other writable disk of the zone, but disk[{first}] is it");
            return Err(bad(origin, format!("{key}path"), disk.quoted_path(), expected));
        }
    }
    Ok(())
}

/// Returns the number of queues of a drive: as the zone file says, or one for each of `vcpus` vCPUs.
pub fn queues(disk: Option<&DiskConfig>, vcpus: usize) -> usize {
    let wanted = disk.and_then(|disk| disk.queues);
    let wanted = wanted.map_or(vcpus, |queues| usize::try_from(queues).unwrap_or(MAX_QUEUES));
    wanted.clamp(1, MAX_QUEUES)
}
