//! How image files are opened: with this process's own rights ([`LocalOpener`]), or by a more privileged
//! process that sends the descriptor.
//!
//! A daemon that has dropped its privileges opens nothing itself. Either way each open file description is
//! opened once and for one disk, so the locks on it mean the same.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens files.
pub trait Opener: Send + Sync {
    /// Opens a file for reading, and for writing if `write`, with additional `O_` flags; with `O_CREAT`, one
    /// that is made is for root alone.
    ///
    /// # Errors
    /// The system's error.
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File>;

    /// Returns the metadata of `path` without opening it for I/O: a pipe would block, a device might start.
    ///
    /// # Errors
    /// The system's error.
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.open(path, false, libc::O_PATH)?.metadata()
    }
}

/// Opens files with this process's own rights.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalOpener;

impl Opener for LocalOpener {
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(write)
            // Of one that O_CREAT makes.
            .mode(0o600)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(path)
    }
}
