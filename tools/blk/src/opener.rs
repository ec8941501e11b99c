//! How images are opened: here, or by somebody with more rights who sends the descriptor ([`install`]).
//!
//! A daemon that has dropped its privileges opens nothing itself. Descriptions are opened once and for one disk in
//! either case, so the locks on them mean the same.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Opens files for this process.
pub trait Opener: Send + Sync {
    /// Opens an existing file for reading, and for writing if `write`, with more `O_` flags.
    ///
    /// # Errors
    /// The system's reason.
    fn open(&self, path: &Path, write: bool, flags: i32) -> io::Result<File>;
}

static OPENER: OnceLock<Arc<dyn Opener>> = OnceLock::new();

/// From now on `opener` opens. Only the first call counts.
pub fn install(opener: Arc<dyn Opener>) {
    let _ = OPENER.set(opener);
}

/// Opens an existing file.
///
/// # Errors
/// The system's reason.
pub fn open(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    match OPENER.get() {
        Some(opener) => opener.open(path, write, flags),
        None => open_here(path, write, flags),
    }
}

/// Opens an existing file with this process's own rights.
///
/// # Errors
/// The system's reason.
pub fn open_here(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags | libc::O_CLOEXEC)
        .open(path)
}

/// What `path` is, without opening it for I/O: a pipe would block, a device might start.
///
/// # Errors
/// The system's reason.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    open(path, false, libc::O_PATH)?.metadata()
}
