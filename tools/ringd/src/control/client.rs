//! [`Client`]: the command's side of a connection.
//!
//! If the daemon does not answer, its process is examined ([`crate::instance`]): the error says whether it is
//! not running, starting, stopped or dying.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net;

use super::protocol::{Reply, Request, Response};
use crate::broker::grants::{self, Asked};
use crate::instance::{self, Absence, Condition};
use crate::trace::{Chunk, TraceStart};

/// How long to wait for a daemon that is starting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often connecting is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How long the broker may take to take a request.
const BROKER_TIMEOUT: Duration = Duration::from_secs(20);
/// After this time without an answer the daemon's process is examined.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error(
        "ringd is not running (no process listens at {0}): start it with `ringd --daemonize`, or `ringd` in a terminal; \
         zones that it ran continue, and their devices wait for it"
    )]
    NotRunning(PathBuf),
    /// A daemon runs but does not answer yet.
    #[error("ringd (process {pid}) does not answer yet; it is {state}")]
    Starting {
        /// Its process.
        pid: u32,
        /// Its own report.
        state: String,
    },
    /// The last daemon was killed and its I/O has not completed.
    #[error(
        "ringd is not running: process {0} was killed, but I/O that it began has not completed, so that nothing can be \
         taken over yet"
    )]
    Dying(u32),
    /// It is stopped.
    #[error(
        "ringd (process {0}) is stopped, by SIGSTOP or a debugger: zones run on, but their disks wait for it; \
         `kill -CONT {0}` continues it"
    )]
    Stopped(u32),
    /// The supervisor is about to start one.
    #[error("ringd is not running, and its supervisor (process {pid}) has not started it again yet{}", hint(*.condition))]
    Between {
        /// The supervisor's process.
        pid: u32,
        /// Its condition.
        condition: Condition,
    },
    /// The last daemon died, and the next one does not know the zone.
    #[error("zone {0} has ended: it ended when ringd died, and how is unknown; the log of ringd may say")]
    Forgotten(String),
    /// It listens, but the connection is refused.
    #[error("cannot connect to ringd at {path}: {cause}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to ringd: {0}")]
    Lost(#[from] io::Error),
    /// The daemon refused the request.
    #[error("{0}")]
    Refused(String),
    /// The answer is not understood.
    #[error("ringd gave an answer that is not understood ({0}): are ringctl and ringd of one version?")]
    Confused(String),
}

impl ClientError {
    /// Returns an error about a reply that is of no use to the request.
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
    /// The daemon's process, if the system reports it.
    pub pid: Option<u32>,
    /// Where the daemon's broker takes what users ask for.
    grants: PathBuf,
}

impl Client {
    /// Connects; waits for a daemon that is starting.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, CONNECT_TIMEOUT)
    }

    /// As [`Self::connect`], with another timeout.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            let cause = match try_connect(path) {
                Ok(stream) => break stream,
                Err(cause) => cause,
            };
            // `WouldBlock`: the backlog is full.
            use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
            let path = path.to_owned();
            if !matches!(cause.kind(), NotFound | ConnectionRefused | WouldBlock) {
                return Err(ClientError::Connect { path, cause });
            }
            let error = match instance::look(path.parent().unwrap_or(Path::new("/"))) {
                Absence::NotRunning => return Err(ClientError::NotRunning(path)),
                Absence::Stopped(pid) => return Err(ClientError::Stopped(pid)),
                Absence::Starting(pid, state) => ClientError::Starting { pid, state },
                Absence::Dying(pid) => ClientError::Dying(pid),
                Absence::Between(pid, condition) => ClientError::Between { pid, condition },
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(RETRY_INTERVAL);
        };
        let pid = net::sockopt::socket_peercred(&stream)
            .ok()
            .and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        let reader = BufReader::new(stream.try_clone()?);
        let grants = grants::socket(path.parent().unwrap_or(Path::new("/")));
        Ok(Self {
            stream,
            reader,
            pid,
            grants,
        })
    }

    /// Sends a request and waits for the reply, however long it takes, unless the daemon is stopped.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        if let Some(asked) = Asked::of(request) {
            ask_broker(&self.grants, &asked)?;
        }
        let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        // A command that waits for a zone's end waits while the daemon is stopped, too.
        let patient = matches!(request, Request::Wait { .. });
        let answer = self.answer(patient);
        self.stream.set_read_timeout(None)?;
        parse(&answer?)
    }

    /// Records for this time; calls `each` with the chunks, in order.
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
        self.stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut answer = Vec::new();
        let mut said = false;
        loop {
            match self.reader.read_until(b'\n', &mut answer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => return Ok(answer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read before the timeout stays in `answer`.
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

    /// Returns the connection as bytes, after [`Request::Console`]: the reader may have buffered the first
    /// ones.
    pub fn into_bytes(self) -> (BufReader<UnixStream>, UnixStream) {
        (self.reader, self.stream)
    }
}

fn parse(answer: &[u8]) -> Result<Reply, ClientError> {
    match serde_json::from_slice::<Response>(answer) {
        Ok(Response::Ok(reply)) => Ok(reply),
        Ok(Response::Error(message)) => Err(ClientError::Refused(message)),
        Err(error) => Err(ClientError::Confused(error.to_string())),
    }
}

/// Has the broker let the worker have what a request names. A daemon without a broker has no such socket.
fn ask_broker(socket: &Path, asked: &Asked) -> Result<(), ClientError> {
    let stream = match try_connect(socket) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(BROKER_TIMEOUT))?;
    let mut line = serde_json::to_vec(asked).map_err(io::Error::other)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = Vec::new();
    match BufReader::new(&stream).read_until(b'\n', &mut answer)? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => parse(&answer).map(drop),
    }
}

/// Connects without waiting for room in the daemon's backlog.
fn try_connect(path: &Path) -> io::Result<UnixStream> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    let socket: OwnedFd = net::socket_with(net::AddressFamily::UNIX, net::SocketType::STREAM, flags, None)?;
    net::connect(&socket, &net::SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
