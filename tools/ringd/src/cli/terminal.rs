//! A console on the user's terminal, or on whatever standard input and output are.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::control::client::{Client, ClientError};
use crate::control::protocol::Request;

/// Ctrl-]: leaves the console.
const DETACH: u8 = 0x1d;

/// Whether standard input goes to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Also if it is a file or a pipe.
    Always,
    /// Only what is typed.
    IfTerminal,
}

/// The terminal in raw mode; as it was when dropped.
struct Raw {
    terminal: io::Stdin,
    before: Termios,
}

impl Raw {
    fn enter() -> io::Result<Self> {
        let terminal = io::stdin();
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Shows a zone's console until the zone ends or the user leaves; `true` if the user left.
///
/// # Errors
/// There is no such zone, or a stream failed.
pub fn follow(socket: &Path, zone: &str, input: Input) -> Result<bool, ClientError> {
    let (reader, stream) = open(socket, zone, true)?;
    let typed = io::stdin().is_terminal();
    let raw = if typed {
        eprintln!("[console of {zone}; Ctrl-] leaves]");
        Some(Raw::enter()?)
    } else {
        None
    };
    let left = Arc::new(AtomicBool::new(false));
    if typed || input == Input::Always {
        let left = left.clone();
        let writer = stream.try_clone()?;
        // Not joined: it may sit in a read of standard input for ever.
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || send_input(&writer, typed, &left))?;
    }
    let outcome = copy_output(reader);
    drop(raw);
    let left = left.load(Ordering::Relaxed);
    if left {
        eprintln!("\n[left the console of {zone}]");
        return Ok(true);
    }
    outcome?;
    Ok(false)
}

/// Prints what is kept of a zone's output.
///
/// # Errors
/// There is no such zone, or a stream failed.
pub fn dump(socket: &Path, zone: &str) -> Result<(), ClientError> {
    let (reader, _stream) = open(socket, zone, false)?;
    Ok(copy_output(reader)?)
}

fn open(socket: &Path, zone: &str, follow: bool) -> Result<(impl Read + use<>, UnixStream), ClientError> {
    let mut client = Client::connect(socket)?;
    client.ask(&Request::Console {
        name: zone.to_owned(),
        follow,
    })?;
    Ok(client.into_bytes())
}

fn copy_output(mut reader: impl Read) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let mut buffer = [0; 4096];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        output.write_all(buffer.get(..count).unwrap_or_default())?;
        output.flush()?;
    }
}

/// Sends standard input until its end or, on a terminal, the detach key.
fn send_input(stream: &UnixStream, typed: bool, left: &AtomicBool) {
    let Ok(copy) = io::stdin().as_fd().try_clone_to_owned() else {
        return;
    };
    // Unbuffered: each key goes at once.
    let mut input = File::from(copy);
    let mut buffer = [0; 1024];
    loop {
        let mut waiting = [PollFd::new(&input, PollFlags::IN)];
        if poll(&mut waiting, None).is_err() {
            continue;
        }
        let count = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let keys = buffer.get(..count).unwrap_or_default();
        let detach = if typed {
            keys.iter().position(|key| *key == DETACH)
        } else {
            None
        };
        let keys = keys.get(..detach.unwrap_or(count)).unwrap_or_default();
        if (&*stream).write_all(keys).is_err() {
            return;
        }
        if detach.is_some() {
            left.store(true, Ordering::Relaxed);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}
