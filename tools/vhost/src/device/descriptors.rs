//! [`Descriptors`]: what outlives the daemon, from the process that keeps it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where a device's descriptors come from: another process, which keeps them when the daemon dies.
pub trait Descriptors: Send + Sync {
    /// Returns the connected socket: the same as before, unless that one was closed by either side.
    ///
    /// # Errors
    /// There is no server; why, for people.
    fn socket(&self) -> io::Result<UnixStream>;

    /// Returns the event descriptor by which the server is notified of a queue: always the same one.
    ///
    /// # Errors
    /// There is none.
    fn kick(&self, queue: u16) -> io::Result<OwnedFd>;

    /// Returns the event descriptor by which the server notifies of a queue: always the same one.
    ///
    /// # Errors
    /// There is none.
    fn call(&self, queue: u16) -> io::Result<OwnedFd>;
}

/// How a server is used.
#[derive(Clone, Debug)]
pub struct FrontOptions {
    /// What log lines call the device.
    pub name: String,
    /// How long the server may take for an answer.
    pub timeout: Duration,
    /// Kick it by io_urings.
    pub io_uring: bool,
}
