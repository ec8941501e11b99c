//! Disks that another process serves, and the engine that reaches it.
//!
//! A [`RemoteDisk`] starts a [`RemoteEngine`] for each reactor that has queues of it. The engine takes
//! operations as any other and completes them when the server does; if the server dies, they wait for the
//! next one. The disk may be resized meanwhile ([`RemoteDisk::on_resize`]). A [`Connector`] finds such disks;
//! it is part of the [`OpenContext`](crate::OpenContext).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringvirtio::memory::GuestRam;

use crate::engine::Engine;
pub use crate::image::BlockingIo;
pub use crate::image::remote::{KnownGeometry, RemoteImage};

/// Prefix of the path of a remote disk; the rest is for the [`Connector`].
const PREFIX: &str = "vhost-user:";

/// A disk that another process serves.
pub trait RemoteDisk: RemoteImage {
    /// Registers the callback for a change of size, in place of the previous one. It runs on a thread of the
    /// disk.
    fn on_resize(&self, resized: Box<dyn Fn() + Send + Sync>);
    /// Starts an engine for buffers in this memory.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    fn start(&self, ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>>;
}

/// An engine whose operations another process carries out.
pub trait RemoteEngine: Engine {
    /// Returns a descriptor that becomes readable when there may be completions to [`Engine::reap`]. It is
    /// polled and never read.
    fn event(&self) -> Arc<File>;

    /// Returns whether there are completions to reap, without a system call.
    fn has_completions(&self) -> bool;

    /// Enables the event before the thread sleeps. Returns `true` if there are completions already.
    fn arm(&mut self) -> bool;

    /// Drops the operations whose tags have these high 48 bits, if no server can still access their buffers.
    /// Returns `false` if one can: it gets a limited time to finish, and [`Self::event`] signals the end of
    /// it.
    fn abandon(&mut self, tag_base: u64) -> bool;
}

/// Finds disks in other processes.
pub trait Connector: Send + Sync {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// Why the disk cannot be used, for a message.
    fn connect(&self, path: &Path) -> Result<Arc<dyn RemoteDisk>, String>;

    /// Returns the disk that was served at `path` and whose server is down; requests wait until it is back.
    fn connect_later(&self, path: &Path, known: KnownGeometry) -> Arc<dyn RemoteDisk>;
}

/// Returns the socket of a remote disk's path; `None` if the path is another kind of disk.
pub fn socket(path: &Path) -> Option<&Path> {
    path.to_str()?.strip_prefix(PREFIX).map(Path::new)
}

/// Returns the path of the remote disk that is served at this socket.
pub fn path(socket: &Path) -> PathBuf {
    PathBuf::from(format!("{PREFIX}{}", socket.display()))
}
