//! Opening a file or block device and locking it.
//!
//! The lock is on the open file description and keeps two writers apart. Requests that the kernel still runs
//! for a dead daemon hold that description, so a granted lock also proves that they have ended.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{DiskError, failed};
use crate::image::lock::lock;
use crate::opener::Opener;

/// Time between two attempts to get a lock.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Opens a file or block device and locks it for this owner. Retries while it is locked, until the deadline;
/// `None` is no deadline.
///
/// # Errors
/// It is locked, cannot be opened, or is neither a file nor a block device.
pub(super) fn open_locked(
    opener: &dyn Opener,
    path: &Path,
    readonly: bool,
    owner: Option<u64>,
    deadline: Option<Instant>,
) -> Result<File, DiskError> {
    // Before the open, which would block on a pipe.
    let is_device = check_kind(path, &opener.metadata(path).map_err(failed(path, "open it"))?)?;
    // O_EXCL without O_CREAT refuses a block device that is mounted or held by another exclusive user.
    let exclusive = if is_device && !readonly { libc::O_EXCL } else { 0 };
    let file = loop {
        let attempt = opener.open(path, !readonly, exclusive).and_then(|file| {
            lock(&file, readonly, owner)?;
            Ok(file)
        });
        match attempt {
            Ok(file) => break file,
            Err(error) if !is_busy(&error) => return Err(failed(path, "open it")(error)),
            Err(_) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {
                thread::sleep(RETRY_INTERVAL)
            }
            Err(_) => {
                let expected = if readonly {
                    "no writer beside a reader"
                } else {
                    "no other user beside a writer"
                };
                return Err(DiskError::Locked {
                    path: path.to_owned(),
                    expected,
                });
            }
        }
    };
    // The path may have been replaced since.
    check_kind(path, &file.metadata().map_err(failed(path, "examine it"))?)?;
    Ok(file)
}

/// Returns whether it is a block device.
///
/// # Errors
/// It is neither a file nor a block device.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<bool, DiskError> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "directory",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "file of another kind",
    };
    Err(DiskError::Kind {
        path: path.to_owned(),
        found,
    })
}

/// Returns whether another attempt may succeed. EACCES is not among these: it is a conflict only where a file
/// system reports a lock so, and otherwise a missing permission.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}
