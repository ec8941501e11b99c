//! [`ConsoleOpener`]: what makes and keeps ptys and sockets of consoles.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::End;

/// The other end of a console that a device asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRequest {
    /// The zone.
    pub zone: String,
    /// Number of the console.
    pub index: usize,
    /// What it is.
    pub end: End,
}

/// One of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A pty's master, non-blocking.
    Master,
    /// Can be read when a pty's other side was opened (inotify).
    Opened,
    /// A socket that listens, to be polled.
    Listener,
    /// The connection of a socket, non-blocking: the one there is, or the next one if it has ended.
    Connection,
}

/// Makes ptys and sockets and keeps them. The same request gives the same one until the zone's are closed.
pub trait ConsoleOpener: Send + Sync {
    /// Returns one of the descriptors.
    ///
    /// # Errors
    /// It cannot be made, or there is no connection; why, for people.
    fn open(&self, request: &ConsoleRequest, part: Part) -> io::Result<OwnedFd>;
}

/// Opens nothing: where there is no broker.
pub struct NoConsoles;

impl ConsoleOpener for NoConsoles {
    fn open(&self, _request: &ConsoleRequest, _part: Part) -> io::Result<OwnedFd> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this daemon has no process that keeps ptys and sockets",
        ))
    }
}

/// Returns the directory in which ptys have names.
pub fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("consoles")
}

/// Returns the name of a console's pty.
pub fn link(run_dir: &Path, zone: &str, index: usize) -> PathBuf {
    directory(run_dir).join(format!("{zone}.{index}"))
}
