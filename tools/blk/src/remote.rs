//! Disks that another process serves: the interface to whoever talks to it.
//!
//! A [`Remote`] is an image of which only the shape is known here. When a queue of it comes to a reactor it makes a
//! [`RemoteEngine`], which gets the operations as any engine does, and completes them whenever the other process does:
//! one that dies keeps them waiting until it is back. Its disk may grow or shrink meanwhile, and the guest is to hear of
//! it ([`Remote::on_resize`]). Who knows how to reach such processes is [`install`]ed.

use std::fmt::Debug;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::engine::{Engine, IoKind};
use crate::image::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use crate::memory::{GuestRam, IoVec};

/// What the path of such a disk begins with; the rest is for the [`Connector`].
const PREFIX: &str = "vhost-user:";

/// What a guest was shown of a disk, for when nobody is there who could be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Whether nobody wants to write.
    pub readonly: bool,
}

/// What is done on the calling thread, to its end.
#[derive(Debug)]
pub enum Blocking<'a> {
    /// Fills the buffer.
    Read(&'a mut [u8]),
    /// Writes the bytes; `true`: they are durable then.
    Write(&'a [u8], bool),
    /// What was written is durable.
    Sync,
    /// So many bytes read zero; the blocks may be given back.
    Zero {
        /// Bytes.
        len: u64,
        /// Whether they may.
        unmap: bool,
    },
    /// The blocks of so many bytes may be given back, and nobody says what these read.
    Discard {
        /// Bytes.
        len: u64,
    },
}

/// A disk in another process.
pub trait Remote: Debug + Send + Sync {
    /// Bytes, as the other process said last.
    fn size(&self) -> u64;
    /// Bytes of a logical block.
    fn block_size(&self) -> u32;
    /// Whether it refuses writes.
    fn is_readonly(&self) -> bool;
    /// Whether it can make ranges read zero.
    fn has_zeroes(&self) -> bool;
    /// Whom to tell that the size has changed; on a thread of the remote's, and in the place of who was told before.
    fn on_resize(&self, tell: Box<dyn Fn() + Send + Sync>);
    /// Does something on the calling thread, without an engine. Nobody else uses the disk meanwhile.
    ///
    /// # Errors
    /// What the system, or the other process, said.
    fn perform(&self, what: Blocking<'_>, offset: u64) -> std::io::Result<()>;
    /// How often something that [`Self::perform`] wrote may have been lost, with a process that went before it made that
    /// durable.
    fn losses(&self) -> u64 {
        0
    }
    /// Begins to work, with buffers in this memory.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    fn start(&self, ram: &Arc<GuestRam>) -> std::io::Result<Box<dyn RemoteEngine>>;
}

/// An engine whose operations another process carries out.
pub trait RemoteEngine: Engine {
    /// Becomes readable when there may be something to [`Engine::reap`]. It is polled, and never read.
    fn event(&self) -> Arc<File>;

    /// Whether there is something to reap; asks nobody for anything.
    fn has_done(&self) -> bool;

    /// The thread is about to sleep: asks to be woken. `true`: there is something to reap already.
    fn arm(&mut self) -> bool;

    /// Forgets the operations whose tags have these high 48 bits, if nobody is there who could still work at them. `false`:
    /// there is; he is given a limited time, [`Self::event`] tells when it is over.
    fn abandon(&mut self, tag_base: u64) -> bool;
}

/// Finds disks in other processes.
pub trait Connector: Send + Sync {
    /// The disk that somebody serves at `path`.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn connect(&self, path: &Path) -> Result<Arc<dyn Remote>, String>;

    /// The disk that somebody served at `path` and will serve again; until then its requests wait.
    fn expect(&self, path: &Path, known: Remembered) -> Arc<dyn Remote>;
}

static CONNECTOR: OnceLock<Arc<dyn Connector>> = OnceLock::new();

/// From now on `connector` finds disks. Only the first call counts.
pub fn install(connector: Arc<dyn Connector>) {
    let _ = CONNECTOR.set(connector);
}

/// Where the disk of this path is served, if it is such a one.
#[must_use]
pub fn socket(path: &Path) -> Option<&Path> {
    path.to_str()?.strip_prefix(PREFIX).map(Path::new)
}

/// The path of the disk that is served at this socket.
#[must_use]
pub fn path(socket: &Path) -> PathBuf {
    PathBuf::from(format!("{PREFIX}{}", socket.display()))
}

/// An engine's operation on the calling thread; transfers may be short.
///
/// # Safety
/// The buffers are valid.
pub(crate) unsafe fn run(
    remote: &dyn Remote,
    kind: IoKind,
    parts: &[IoVec],
    offset: u64,
    len: u64,
) -> std::io::Result<usize> {
    let range = |what| remote.perform(what, offset).map(|()| 0);
    match kind {
        IoKind::Sync => remote.perform(Blocking::Sync, 0).map(|()| 0),
        IoKind::Discard => range(Blocking::Discard { len }),
        IoKind::WriteZeroes { unmap } => range(Blocking::Zero { len, unmap }),
        IoKind::Read | IoKind::Write | IoKind::WriteDurable => {
            let len = usize::try_from(len).unwrap_or(BOUNCE_MAX).min(BOUNCE_MAX);
            let mut bounce = Bounce::new(len as u64);
            let bytes = bounce.bytes().get_mut(..len).unwrap_or_default();
            if kind == IoKind::Read {
                remote.perform(Blocking::Read(bytes), offset)?;
                // SAFETY: says the caller.
                return Ok(unsafe { scatter(bytes, parts, 0) });
            }
            // SAFETY: says the caller.
            let len = unsafe { gather(parts, 0, bytes) };
            let durable = kind == IoKind::WriteDurable;
            let bytes = bytes.get(..len).unwrap_or_default();
            remote.perform(Blocking::Write(bytes, durable), offset)?;
            Ok(len)
        }
    }
}

/// The disk that is served at this socket, or is expected there if it is known.
pub(crate) fn connect(socket: &Path, known: Option<Remembered>) -> Result<Arc<dyn Remote>, String> {
    let Some(connector) = CONNECTOR.get() else {
        return Err("this program has no vhost-user".into());
    };
    match (connector.connect(socket), known) {
        (Err(error), Some(known)) => {
            let path = socket.display();
            tracing::warn!(%path, %error, "the disk's server cannot be used: its requests wait");
            Ok(connector.expect(socket, known))
        }
        (found, _) => found,
    }
}
