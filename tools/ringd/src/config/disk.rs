//! What a disk is made of: one `[[disk]]` section of a zone file, or what `ringctl disk attach` is given.

use std::path::{Path, PathBuf};

use ringblk::{Format, HostCache, Synthetic};
use ringvisor::abi::MAX_QUEUES;
use serde::{Deserialize, Serialize};

use super::{ConfigError, quoted, size::format_size};

/// Bytes of a disk's serial number (virtio 1.2, 5.2.6, GET_ID).
pub const SERIAL_LEN: usize = 20;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image or block device, absolute; or `null:SIZE`, `zero:SIZE`.
    pub path: PathBuf,
    /// Refuse writes.
    pub readonly: bool,
    /// What GET_ID answers.
    pub serial: Option<String>,
    /// How the file is read and written.
    pub engine: Engine,
    /// What the file is.
    #[serde(default)]
    pub format: Format,
    /// Whether it goes through root's page cache.
    #[serde(default)]
    pub cache: HostCache,
    /// Queues; one per vCPU if not given.
    #[serde(default)]
    pub queues: Option<u32>,
    /// Whether the guest may give blocks back.
    #[serde(default = "yes")]
    pub discard: bool,
    /// What becomes of requests that the file fails.
    #[serde(default)]
    pub on_error: OnError,
    /// How fast it may be.
    #[serde(default)]
    pub limits: DiskLimits,
}

const fn yes() -> bool {
    true
}

impl DiskConfig {
    /// The image at `path`, everything else as it is if a zone file does not say it.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            readonly: false,
            serial: None,
            engine: Engine::default(),
            format: Format::default(),
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
    /// The first value that cannot be.
    pub fn check(&self, origin: &str, key: &str) -> Result<(), ConfigError> {
        let bad = |name: &str, value: String, expected: String| ConfigError::BadValue {
            origin: origin.to_owned(),
            key: format!("{key}{name}"),
            value,
            expected,
        };
        if !self.path.is_absolute() && !names_no_file(&self.path) {
            return Err(bad("path", self.quoted_path(), "an absolute path".into()));
        }
        if let ("vhost_user", socket) = self.source()
            && !socket.is_absolute()
        {
            let value = quoted(&socket.display().to_string());
            return Err(bad("vhost_user", value, "an absolute path".into()));
        }
        if let Some(serial) = &self.serial
            && (serial.len() > SERIAL_LEN || !serial.bytes().all(|b| b.is_ascii_graphic() || b == b' '))
        {
            let expected = format!("at most {SERIAL_LEN} printable ASCII characters");
            return Err(bad("serial", quoted(serial), expected));
        }
        if let Some(queues) = self.queues
            && (queues == 0 || usize::try_from(queues).is_ok_and(|queues| queues > MAX_QUEUES))
        {
            return Err(bad(
                "queues",
                queues.to_string(),
                format!("1 to {MAX_QUEUES} queues"),
            ));
        }
        let limits = [("iops", self.limits.iops), ("bps", self.limits.bps)];
        for (name, limit) in limits {
            let show = |value: u64| match name {
                "bps" => quoted(&format_size(value)),
                _ => value.to_string(),
            };
            if limit.rate == Some(0) {
                return Err(bad(
                    name,
                    show(0),
                    "more than 0; without the key there is no limit".into(),
                ));
            }
            if let (None, Some(burst)) = (limit.rate, limit.burst) {
                return Err(bad(
                    &format!("{name}_burst"),
                    show(burst),
                    format!("the key {name} beside it"),
                ));
            }
        }
        Ok(())
    }

    /// The path as TOML would write it.
    #[must_use]
    pub fn quoted_path(&self) -> String {
        quoted(&self.path.display().to_string())
    }

    /// Whether the two cannot be used at once. A server has one disk for one user.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let served = ringblk::remote::socket(&self.path).is_some();
        let shared = self.readonly && other.readonly && !served;
        self.path == other.path && !shared && !Synthetic::is_named_by(&self.path)
    }

    /// Whether it is the image at `path`.
    #[must_use]
    pub fn is(&self, path: &Path) -> bool {
        self.path == path
    }
}

impl DiskConfig {
    /// The key of a zone file that says where the disk is, and what it says.
    #[must_use]
    pub fn source(&self) -> (&'static str, &Path) {
        match ringblk::remote::socket(&self.path) {
            Some(socket) => ("vhost_user", socket),
            None => ("path", &self.path),
        }
    }
}

/// Whether such a path is not one of the file system: a disk without storage, or another process's.
#[must_use]
pub fn names_no_file(path: &Path) -> bool {
    Synthetic::is_named_by(path) || ringblk::remote::socket(path).is_some()
}

/// How a disk's file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `io_uring`, direct where the file allows it; threads where the kernel has none.
    #[default]
    IoUring,
    /// A pool of threads with `preadv` and `pwritev`.
    Threads,
}

/// What becomes of a request that the file fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report,
    /// The disk stops until `ringctl disk resume` has it tried again.
    Stop,
}

/// How fast a disk may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Requests a second.
    #[serde(default)]
    pub iops: Limit,
    /// Bytes a second.
    #[serde(default)]
    pub bps: Limit,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// A second; no limit if not given.
    #[serde(default)]
    pub rate: Option<u64>,
    /// At once after a rest; a tenth of the rate if not given.
    #[serde(default)]
    pub burst: Option<u64>,
}

impl Limit {
    /// The burst in force.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
            .unwrap_or_else(|| self.rate.map_or(0, |rate| rate.div_ceil(10)))
    }
}
