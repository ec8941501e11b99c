//! What the supervisor reports to the service manager (sd_notify(3)): that the daemon serves, and, for its
//! watchdog, that it answers. Without a manager that wants to know, nothing happens here.
//!
//! A daemon that has not begun to serve counts as alive: how long the last one's I/O takes is not its fault.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net;
use sd_notify::NotifyState;

/// What the daemon is asked: it takes the socket, a thread and the registry to answer.
const QUESTION: &[u8] = b"{\"op\":\"list\"}\n";
/// The manager's variables, which are the supervisor's alone.
const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The service manager.
pub struct Manager {
    socket: PathBuf,
    /// Time between questions, if there is a watchdog.
    interval: Option<Duration>,
    /// What was reported last.
    serving: Option<bool>,
    question: Option<UnixStream>,
    next: Instant,
}

impl Manager {
    /// Returns the manager of this process, for the daemon of a run directory.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            socket: run_dir.join("sock"),
            // A missed answer or two are no reason to end the daemon.
            interval: sd_notify::watchdog_enabled().map(|limit| limit / 4),
            serving: None,
            question: None,
            next: Instant::now(),
        }
    }

    /// Reports the daemon's state; returns when to call it again at the latest. Never waits.
    pub fn report(&mut self, serving: bool) -> Duration {
        if self.serving != Some(serving) {
            // The first report of a daemon that serves is the end of the unit's start.
            let (ready, status) = match serving {
                true => (Some(NotifyState::Ready), "serving"),
                false => (None, "waiting for the daemon to serve"),
            };
            let states: Vec<_> = ready.into_iter().chain([NotifyState::Status(status)]).collect();
            send(&states);
            self.serving = Some(serving);
        }
        let Some(interval) = self.interval else {
            return Duration::MAX;
        };
        if self.is_alive(serving) {
            send(&[NotifyState::Watchdog]);
            self.question = None;
            self.next = Instant::now() + interval;
        }
        if self.question.is_some() {
            return interval.min(Duration::from_millis(100));
        }
        self.next.saturating_duration_since(Instant::now())
    }

    /// Whether a ping is due and the daemon has answered for it.
    fn is_alive(&mut self, serving: bool) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        if !serving {
            return true;
        }
        let asked = match self.question.take() {
            Some(stream) => Ok(stream),
            None => ask(&self.socket),
        };
        let mut byte = [0];
        match asked.map(|mut stream| (stream.read(&mut byte), stream)) {
            Ok((Ok(1), _)) => true,
            Ok((Err(error), stream)) if error.kind() == ErrorKind::WouldBlock => {
                self.question = Some(stream);
                false
            }
            // It has just ended, or has no room for connections: asked again.
            Ok((Ok(_) | Err(_), _)) | Err(_) => {
                self.next = Instant::now() + Duration::from_millis(200);
                false
            }
        }
    }
}

/// Connects without waiting, and asks.
fn ask(path: &Path) -> io::Result<UnixStream> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    let socket = net::socket_with(net::AddressFamily::UNIX, net::SocketType::STREAM, flags, None)?;
    net::connect(&socket, &net::SocketAddrUnix::new(path)?)?;
    let mut stream = UnixStream::from(socket);
    stream.write_all(QUESTION)?;
    Ok(stream)
}

/// A manager that does not listen is not this process's business.
fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot report to the service manager");
    }
}

/// Reports that the supervisor ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Returns a command whose program does not report to the manager.
pub fn unmanaged(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::QUESTION;
    use crate::control::protocol::Request;

    #[test]
    fn the_question_is_a_request() {
        assert_eq!(
            serde_json::from_slice::<Request>(QUESTION).unwrap(),
            Request::List {}
        );
    }
}
