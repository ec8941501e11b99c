//! The command's side of a connection.
//!
//! A daemon that does not answer is looked at from outside ([`crate::instance`]): users are told whether it is not
//! there, starting, stopped or dying, instead of being left waiting.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net;

use super::protocol::{Reply, Request, Response};
use crate::instance::{self, Absence, Condition};
use crate::trace::{Chunk, TraceStart};

/// How long a daemon that is starting is waited for.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried.
const GLANCE: Duration = Duration::from_millis(20);
/// After so long without an answer it is looked at why.
const ANSWER_GLANCE: Duration = Duration::from_secs(2);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "ringd is not running (nobody listens at {0}): start it with `ringd --daemonize`, or `ringd` in a terminal; \
         zones that it ran go on, and their disks wait for it"
    )]
    NotRunning(PathBuf),
    /// A daemon is there but does not answer yet.
    #[error("ringd (process {pid}) does not answer yet; it is {state}")]
    Starting {
        /// Its process.
        pid: u32,
        /// What it says of itself.
        state: String,
    },
    /// The last daemon was killed and its I/O has not ended.
    #[error(
        "ringd is not running: process {0} was killed, but I/O that it began has not ended, so that nothing can be \
         taken over yet"
    )]
    Dying(u32),
    /// It is stopped.
    #[error(
        "ringd (process {0}) is stopped, by SIGSTOP or a debugger: zones run on, but their disks wait for it; \
         `kill -CONT {0}` lets it go on"
    )]
    Stopped(u32),
    /// The supervisor is about to start one.
    #[error("ringd is not running, and its supervisor (process {pid}) has not started it again yet{}", hint(*.condition))]
    Between {
        /// The supervisor's process.
        pid: u32,
        /// How it is.
        condition: Condition,
    },
    /// The last daemon died, and the next one does not know the zone.
    #[error("zone {0} is over: it ended when ringd died, and nobody knows how; the log of ringd may")]
    Forgotten(String),
    /// It listens, but not to us.
    #[error("cannot connect to ringd at {path}: {cause}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to ringd: {0}")]
    Lost(#[from] io::Error),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// It answers something else.
    #[error("ringd gave an answer that is not understood ({0}): are ringctl and ringd of one version?")]
    Confused(String),
}

impl ClientError {
    /// Returns an error about a reply that is of no use to the request.
    #[must_use]
    pub fn unexpected(reply: &Reply) -> Self {
        Self::Confused(format!("{reply:?}"))
    }
}

fn hint(condition: Condition) -> &'static str {
    match condition {
        Condition::Stopped => ": it is stopped itself",
        _ => ": after quick deaths it waits; the daemon's log says why it died",
    }
}

/// A connection to the daemon.
pub struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// The daemon's process, if the system tells.
    pid: Option<u32>,
}

impl Client {
    /// Connects; waits for a daemon that is starting.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, CONNECT_PATIENCE)
    }

    /// As [`Self::connect`], with another patience.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            let cause = match try_connect(path) {
                Ok(stream) => break stream,
                Err(cause) => cause,
            };
            let absence = match cause.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    instance::look(path.parent().unwrap_or(Path::new("/")))
                }
                // So many wait that there is no room for one more.
                io::ErrorKind::WouldBlock => instance::look(path.parent().unwrap_or(Path::new("/"))),
                _ => {
                    return Err(ClientError::Connect {
                        path: path.to_owned(),
                        cause,
                    });
                }
            };
            let error = match absence {
                Absence::NotRunning => return Err(ClientError::NotRunning(path.to_owned())),
                Absence::Stopped(pid) => return Err(ClientError::Stopped(pid)),
                Absence::Starting(pid, state) => ClientError::Starting { pid, state },
                Absence::Dying(pid) => ClientError::Dying(pid),
                Absence::Between(pid, condition) => ClientError::Between { pid, condition },
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(GLANCE);
        };
        let pid = net::sockopt::socket_peercred(&stream)
            .ok()
            .and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader, pid })
    }

    /// The daemon's process, if the system tells.
    #[must_use]
    pub fn daemon(&self) -> Option<u32> {
        self.pid
    }

    /// Asks and waits for the answer, however long it takes, unless the daemon is stopped.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        // Who waits for a zone's end waits through a stop, too.
        let patient = matches!(request, Request::Wait { .. });
        let answer = self.answer(patient);
        self.stream.set_read_timeout(None)?;
        match serde_json::from_slice::<Response>(&answer?) {
            Ok(Response::Ok(reply)) => Ok(reply),
            Ok(Response::Error(message)) => Err(ClientError::Refused(message)),
            Err(error) => Err(ClientError::Confused(error.to_string())),
        }
    }

    /// Records for so long; calls `each` with what comes, in order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn trace(
        mut self,
        milliseconds: u64,
        mut each: impl FnMut(Chunk),
    ) -> Result<TraceStart, ClientError> {
        let start = match self.ask(&Request::Trace { milliseconds })? {
            Reply::Trace(start) => start,
            other => return Err(ClientError::unexpected(&other)),
        };
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let chunk: Chunk =
                serde_json::from_str(&line).map_err(|error| ClientError::Confused(error.to_string()))?;
            let end = chunk.end;
            each(chunk);
            if end {
                return Ok(start);
            }
        }
    }

    fn answer(&mut self, patient: bool) -> Result<Vec<u8>, ClientError> {
        self.stream.set_read_timeout(Some(ANSWER_GLANCE))?;
        let mut answer = Vec::new();
        let mut said = false;
        loop {
            match self.reader.read_until(b'\n', &mut answer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => return Ok(answer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read before the time was over stays in `answer`.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let Some(pid) = self.pid else { continue };
                    let error = match instance::condition(pid) {
                        Condition::Stopped => ClientError::Stopped(pid),
                        // Its socket is open until its last system call has returned.
                        Condition::Dying => ClientError::Dying(pid),
                        Condition::Alive | Condition::Gone => continue,
                    };
                    if !patient {
                        return Err(error);
                    }
                    if !said {
                        eprintln!("ringctl: {error}");
                        said = true;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The connection as bytes, after [`Request::Console`]: what is read first may have been read already.
    #[must_use]
    pub fn into_bytes(self) -> (BufReader<UnixStream>, UnixStream) {
        (self.reader, self.stream)
    }
}

/// Connects without waiting for room among those that the daemon has not accepted yet.
fn try_connect(path: &Path) -> io::Result<UnixStream> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    let socket: OwnedFd = net::socket_with(net::AddressFamily::UNIX, net::SocketType::STREAM, flags, None)?;
    net::connect(&socket, &net::SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
