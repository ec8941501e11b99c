//! [`Endpoint`]: a served disk and how its server is reached.

use std::path::PathBuf;
use std::time::Duration;

use super::connect::ConnectFn;
use super::known::KnownDisk;

/// A served disk and how its server is reached.
pub struct Endpoint {
    /// The server's socket.
    pub path: PathBuf,
    /// Connects to it.
    pub connect: ConnectFn,
    /// How long a server may take for an answer, and to release abandoned requests.
    pub timeout: Duration,
    /// Servers are kicked by io_urings.
    pub io_uring: bool,
    /// The disk as the guest knows it.
    pub known: KnownDisk,
}
