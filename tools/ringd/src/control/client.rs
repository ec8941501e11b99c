//! The command's side of a connection.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::protocol::{Reply, Request, Response};
use crate::trace::{Chunk, TraceStart};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "ringd is not running (nobody listens at {0}): start it with `ringd --daemonize`, or `ringd` in a terminal"
    )]
    NotRunning(PathBuf),
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

/// A connection to the daemon.
pub struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.to_owned())
            }
            _ => ClientError::Connect {
                path: path.to_owned(),
                cause,
            },
        })?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        let mut answer = String::new();
        if self.reader.read_line(&mut answer)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str::<Response>(&answer) {
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
            other => return Err(ClientError::Confused(format!("{other:?}"))),
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

    /// The connection as bytes, after [`Request::Console`]: what is read first may have been read already.
    #[must_use]
    pub fn into_bytes(self) -> (BufReader<UnixStream>, UnixStream) {
        (self.reader, self.stream)
    }
}
