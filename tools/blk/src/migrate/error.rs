//! [`MigrationError`]: why a disk cannot be migrated.

use std::io;

use crate::image::bounce::BOUNCE_MAX;

/// Bytes that are copied and compared at once.
pub(super) const CHUNK: u64 = BOUNCE_MAX as u64;

/// Why a disk cannot be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The target is too small.
    #[error("the target has {found} bytes, expected at least the disk's {expected}")]
    Small {
        /// Its size.
        found: u64,
        /// The disk's.
        expected: u64,
    },
    /// The target's blocks are larger than the guest's writes may be.
    #[error("the target's blocks have {found} bytes, expected up to the {expected} that the guest knows")]
    Blocks {
        /// The target's.
        found: u32,
        /// The source's.
        expected: u32,
    },
    /// The source cannot be read.
    #[error("cannot read the disk at byte {offset}: {source}")]
    Read {
        /// Byte offset.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The target failed.
    #[error("the target failed: {0}")]
    Target(String),
    /// The target's contents differ from the source's.
    #[error("the target differs from the disk in the {CHUNK} bytes from byte {offset} on")]
    Differs {
        /// Byte offset.
        offset: u64,
    },
}
