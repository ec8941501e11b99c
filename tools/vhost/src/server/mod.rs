//! The server: ringblk's block device for the guests of another process.
//!
//! [`Server::run`] accepts one front end after the other. A connection has a [`session`], which obeys its messages;
//! each of its queues at work has a thread with a reactor of its own ([`ring`]); the front end's memory is mapped in
//! [`memory`], and [`inflight`] is the region that outlives this process. What a front end says wrong ends its
//! connection, never the server.

mod inflight;
mod memory;
mod ring;
mod session;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringblk::{Disk, ReactorOptions};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use session::Session;

/// Most queues of a served disk.
pub const MAX_QUEUES: u16 = 64;

/// What keeps a disk from being served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen at {path}: {source}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("cannot listen at {0}: another server answers there")]
    Taken(PathBuf),
    /// Connections cannot be accepted any more.
    #[error("cannot accept connections: {0}")]
    Accept(io::Error),
}

/// A disk that is served.
pub struct Server {
    listener: UnixListener,
    disk: Arc<Disk>,
    options: ServerOptions,
}

/// How a disk is served.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Queues offered, up to [`MAX_QUEUES`].
    pub queues: u16,
    /// For the reactors of the queues.
    pub reactor: ReactorOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            queues: 8,
            // A kick is a system call of the front end's whether somebody looks on or not.
            reactor: ReactorOptions {
                poll: Duration::ZERO,
                ..ReactorOptions::default()
            },
        }
    }
}

impl Server {
    /// Listens at `socket`; takes the place of a server that has died.
    ///
    /// # Errors
    /// It cannot listen there, or another one does.
    pub fn bind(socket: &Path, disk: Arc<Disk>, options: ServerOptions) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen {
            path: socket.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(socket) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                // A connection to what is no socket is refused, too.
                if !std::fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
                    return Err(failed(io::ErrorKind::AlreadyExists.into()));
                }
                match UnixStream::connect(socket) {
                    Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(other) => return Err(failed(other)),
                    Ok(_) => return Err(ServeError::Taken(socket.to_owned())),
                }
                std::fs::remove_file(socket).map_err(failed)?;
                UnixListener::bind(socket)
            }
            other => other,
        };
        Ok(Self {
            listener: listener.map_err(failed)?,
            disk,
            options: ServerOptions {
                queues: options.queues.clamp(1, MAX_QUEUES),
                ..options
            },
        })
    }

    /// Serves one front end after the other, each until it disconnects. A front end that comes while another is there
    /// waits: two would write to one image without knowing of each other.
    ///
    /// # Errors
    /// Connections cannot be accepted any more.
    pub fn run(&self) -> Result<std::convert::Infallible, ServeError> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // That front end has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(ServeError::Accept(error)),
            };
            tracing::info!("a front end has connected");
            self.serve(stream);
        }
    }

    /// Serves one connection to its end.
    pub fn serve(&self, stream: UnixStream) {
        let session = Arc::new(Mutex::new(Session::new(self.disk.clone(), self.options)));
        let mut handler = BackendReqHandler::from_stream(stream, session.clone());
        let end = loop {
            match handler.handle_request() {
                Ok(()) => {}
                Err(ProtocolError::SocketRetry(_)) => {}
                Err(end) => break end,
            }
        };
        match end {
            ProtocolError::Disconnected => tracing::info!("the front end has disconnected"),
            error => tracing::warn!(%error, "the connection to the front end has ended"),
        }
        // Before the next front end comes: nothing of this one's is touched any more.
        session
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .stop();
    }
}
