//! The server: a device, ringblk's or ringnet's, for the guests of another process.
//!
//! [`Server::run`] accepts one front end after the other. A connection has a [`session`], which handles its
//! messages; each running queue has a thread with a reactor of its own ([`ring`]); the front end's memory is
//! mapped in [`memory`], and [`inflight`] is the region that outlives this process. An invalid message ends
//! the connection, never the server.

mod device;
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

pub use device::Served;
use ringvirtio::ReactorOptions;
use session::Session;
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

/// Most queues of a served device.
pub const MAX_QUEUES: u16 = 64;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be created.
    #[error("cannot listen at {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another server listens there.
    #[error("cannot listen at {0}: another server answers there")]
    Taken(PathBuf),
    /// No connection can be accepted any more.
    #[error("cannot accept connections: {0}")]
    Accept(io::Error),
}

/// A device that is served.
pub struct Server<D> {
    listener: UnixListener,
    device: Arc<D>,
    options: ServerOptions,
}

/// How a device is served.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Queues offered, up to [`MAX_QUEUES`].
    pub queues: u16,
    /// Options of the queues' reactors.
    pub reactor: ReactorOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            queues: 8,
            // A kick costs the front end a system call whether the reactor polls or not.
            reactor: ReactorOptions {
                poll: Duration::ZERO,
                ..ReactorOptions::default()
            },
        }
    }
}

impl<D: Served> Server<D> {
    /// Listens at `socket`; replaces the socket of a server that has died.
    ///
    /// # Errors
    /// It cannot listen there, or another one does.
    pub fn bind(socket: &Path, device: Arc<D>, options: ServerOptions) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen {
            path: socket.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(socket) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                // A connection to another kind of file is refused, too.
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
            device,
            options: ServerOptions {
                queues: options.queues.clamp(1, MAX_QUEUES),
                ..options
            },
        })
    }

    /// Serves one front end after the other, each until it disconnects. The next one waits meanwhile: two
    /// front ends would use one device without coordination.
    ///
    /// # Errors
    /// Connections cannot be accepted any more.
    pub fn run(&self) -> Result<std::convert::Infallible, ServeError> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // The front end has disconnected already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(ServeError::Accept(error)),
            };
            tracing::info!("a front end has connected");
            self.serve(stream);
        }
    }

    /// Serves one connection to its end.
    pub fn serve(&self, stream: UnixStream) {
        let session = Arc::new(Mutex::new(Session::new(self.device.clone(), self.options)));
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
        // Before the next front end connects: nothing accesses this one's memory any more.
        session
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .stop();
    }
}
