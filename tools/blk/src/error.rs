//! [`DiskError`]: why a disk cannot be opened or resized. Each message names the image.

use std::io;
use std::path::{Path, PathBuf};

/// Why a disk cannot be opened or resized.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call failed.
    #[error("disk image {path}: cannot {action}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("disk image {path}: is a {found}, expected a raw image file or a block device")]
    Kind {
        /// The image.
        path: PathBuf,
        /// The type of file found.
        found: &'static str,
    },
    /// A size that is not a number of sectors.
    #[error("disk image {path}: size {size} bytes, expected a multiple of 512, at least 512")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A disk for which no format is configured, so that raw is assumed, and whose image looks like another
    /// one.
    #[error(
        "disk image {path}: begins like a {found} image, and no format is configured, expected format = \"raw\" for \
         the bytes of the file, or format = \"qcow2\" for what such an image stores"
    )]
    Unstated {
        /// The image.
        path: PathBuf,
        /// The format that it looks like.
        found: &'static str,
    },
    /// A qcow2 image that is damaged or uses an unsupported feature.
    #[error("disk image {path}: cannot be used as qcow2: {reason}")]
    Qcow2 {
        /// The image, or one of its backing files.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A disk without storage whose size cannot be parsed.
    #[error("disk {path}: size \"{size}\", expected a number of bytes, which may end in K, M, G or T")]
    SyntheticSize {
        /// The path as configured.
        path: PathBuf,
        /// The size as configured.
        size: String,
    },
    /// A remote disk whose server is down or cannot be used.
    #[error("disk served at {path}: {reason}")]
    Remote {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The image is locked.
    #[error("disk image {path}: in use by another zone or program, expected {expected}")]
    Locked {
        /// The image.
        path: PathBuf,
        /// What the lock allows.
        expected: &'static str,
    },
    /// A serial that is too long.
    #[error("disk image {path}: serial \"{serial}\" has {} bytes, expected up to 20", serial.len())]
    Serial {
        /// The image.
        path: PathBuf,
        /// The serial as configured.
        serial: String,
    },
}

/// Returns a conversion of a system call's error, for `map_err`.
pub(crate) fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}
