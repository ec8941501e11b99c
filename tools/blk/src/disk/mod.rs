//! Disks: their configuration ([`DiskConfig`]), opening and locking their images ([`open`]), an open disk and
//! I/O on the calling thread ([`handle`]).

pub mod handle;
pub mod open;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::DiskError;
use crate::virtio::VIRTIO_BLK_ID_BYTES;
pub use handle::Disk;
pub use open::{OpenContext, OpenOptions, open_locked};

/// The engine that runs a disk's I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum EngineKind {
    /// The kernel's io_uring.
    #[default]
    #[serde(rename = "io_uring")]
    IoUring,
    /// A pool of threads.
    #[serde(rename = "threads")]
    Threads,
}

/// Format of the image. It is configured and never probed: a guest can write any header onto its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file's bytes are the disk's.
    #[default]
    Raw,
    /// QEMU's format, with backing files.
    Qcow2,
}

/// Use of the host's page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostCache {
    /// Bypassed (O_DIRECT), where the file takes requests at any sector; elsewhere as [`Self::Writeback`].
    #[default]
    None,
    /// Reads and writes go through it; only flushes wait for the device.
    Writeback,
}

/// A disk as a zone file describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image file or block device; `null:SIZE` and `zero:SIZE` are disks without storage
    /// ([`Synthetic`](crate::Synthetic)), `vhost-user:SOCKET` is a remote disk ([`crate::remote`]).
    pub path: PathBuf,
    /// Format of the image.
    #[serde(default)]
    pub format: Format,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// The answer to GET_ID, up to 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// The engine that runs its I/O.
    #[serde(default)]
    pub engine: EngineKind,
    /// Use of the host's page cache; qcow2 images always use it.
    #[serde(default)]
    pub cache: HostCache,
}

impl DiskConfig {
    /// Returns the serial, NUL-padded (5.2.6).
    ///
    /// # Errors
    /// It is too long.
    fn serial_bytes(&self) -> Result<[u8; VIRTIO_BLK_ID_BYTES], DiskError> {
        let bytes = self.serial.as_bytes();
        let mut serial = [0; VIRTIO_BLK_ID_BYTES];
        let head = serial.get_mut(..bytes.len()).ok_or_else(|| DiskError::Serial {
            path: self.path.clone(),
            serial: self.serial.clone(),
        })?;
        head.copy_from_slice(bytes);
        Ok(serial)
    }
}
