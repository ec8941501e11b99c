//! A zone's console on the user's terminal, or on other standard input and output.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode, size};
use rustix::event::{PollFd, PollFlags, poll};
use zerocopy::{FromZeros, IntoBytes};

use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Frame, Request};

use super::reconnect;
use crate::signals::{ENDING, Signals};

/// Which console, and how it is left.
#[derive(Args, Clone, Debug)]
pub struct ConsoleOptions {
    /// A console of the zone's [[console]] sections, counted from 0 as the guest's hvc0; the UART if not
    /// given.
    #[arg(long, value_name = "NUMBER")]
    pub port: Option<usize>,
    /// The key that leaves the console: ^X or ctrl-x with any letter or one of [\\]^_, or none.
    #[arg(long, value_name = "KEY", default_value = "^]", value_parser = escape)]
    pub escape: Escape,
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        Self {
            port: None,
            escape: Escape(Some(0x1d)),
        }
    }
}

/// The key that leaves a console, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape(Option<u8>);

impl fmt::Display for Escape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "Ctrl-{} leaves", char::from(key | 0x40)),
            None => f.write_str("no key leaves"),
        }
    }
}

fn escape(text: &str) -> Result<Escape, String> {
    let lower = text.to_ascii_lowercase();
    if lower == "none" {
        return Ok(Escape(None));
    }
    let key = lower.strip_prefix('^').or_else(|| lower.strip_prefix("ctrl-"));
    match key.map(str::as_bytes) {
        Some(&[key @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(Escape(Some(key & 0x1f))),
        _ => Err("expected a key such as ^] or ctrl-a, or none".into()),
    }
}

/// How often sending input is tried while there is no daemon.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait for a signal at a time.
const LONG: Duration = Duration::from_secs(3600);

/// Whether standard input goes to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// From any file or pipe.
    Always,
    /// Only from a terminal.
    IfTerminal,
}

/// Calls `restore`, which restores the terminal, before a signal ends the program. Called before other
/// threads are started.
pub(super) fn restore_on_signals(restore: impl Fn() + Send + 'static) -> io::Result<()> {
    let signals = Signals::block(&ENDING)?;
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(move || {
        loop {
            if let Some(signal) = signals.next(LONG) {
                restore();
                signals.obey(signal);
            }
        }
    })?;
    Ok(())
}

/// The terminal in raw mode; restored when dropped, and when a signal ends the program.
struct Raw;

impl Raw {
    /// `resized` is called whenever the terminal has another size.
    fn enter(resized: impl Fn() + Send + 'static) -> io::Result<Self> {
        let signals = Signals::block(&[&ENDING[..], &[libc::SIGWINCH]].concat())?;
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || {
            loop {
                match signals.next(LONG) {
                    Some(libc::SIGWINCH) => resized(),
                    Some(signal) => {
                        let _ = disable_raw_mode();
                        signals.obey(signal);
                    }
                    None => {}
                }
            }
        })?;
        enable_raw_mode()?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = disable_raw_mode();
    }
}

/// Shows a zone's console until the zone ends or the user leaves; returns `true` if the user left. Continues
/// with the next daemon if one dies.
///
/// # Errors
/// There is no such zone, or a stream failed.
pub fn follow(
    socket: &Path,
    zone: &str,
    input: Input,
    options: &ConsoleOptions,
) -> Result<bool, ClientError> {
    let ConsoleOptions { port, escape } = *options;
    let mut seen = 0;
    let (mut reader, stream) = open(Client::connect(socket)?, zone, port, Some(seen))?;
    let typed = io::stdin().is_terminal();
    let raw = if typed {
        eprintln!("[console of {zone}; {escape}]");
        let (socket, zone) = (socket.to_owned(), zone.to_owned());
        let resized = move || send_size(&socket, &zone, port);
        resized();
        Some(Raw::enter(resized)?)
    } else {
        None
    };
    let escape = if typed { escape } else { Escape(None) };
    let keys = Arc::new(Keys::new(stream));
    if typed || input == Input::Always {
        let keys = keys.clone();
        // Not joined: it may never return from a read of standard input.
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || send_input(&keys, escape))?;
    }
    let outcome = loop {
        let cause = match copy_frames(&mut reader, &mut seen) {
            Ok(()) => break Ok(()),
            Err(FrameError::Output(error)) => break Err(error.into()),
            Err(FrameError::Lost(_)) if keys.left() => break Ok(()),
            Err(FrameError::Lost(cause)) => cause,
        };
        let next = match reconnect::next_daemon(socket, &cause, || keys.left()) {
            Ok(Some(client)) => open(client, zone, port, Some(seen)),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        match next {
            Ok((next, stream)) => {
                reader = next;
                keys.go_to(stream);
            }
            // It may have died as well.
            Err(ClientError::Lost(_)) => {}
            Err(ClientError::Refused(_)) => break Err(ClientError::Forgotten(zone.into())),
            Err(error) => break Err(error),
        }
    };
    drop(raw);
    if keys.left() {
        eprintln!("\n[left the console of {zone}]");
        return Ok(true);
    }
    outcome.map(|()| false)
}

/// Where input goes: the connection to the present daemon.
struct Keys {
    stream: Mutex<UnixStream>,
    left: AtomicBool,
}

impl Keys {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream: Mutex::new(stream),
            left: AtomicBool::new(false),
        }
    }

    fn go_to(&self, stream: UnixStream) {
        *self.stream.lock() = stream;
        // The user may have left between two daemons.
        if self.left() {
            self.leave();
        }
    }

    fn left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        let _ = self.stream.lock().shutdown(std::net::Shutdown::Both);
    }

    /// Sends to the guest, if there is a daemon.
    fn try_send(&self, keys: &[u8]) {
        let _ = self.stream.lock().write_all(keys);
    }

    /// Sends to the guest, by the next daemon if there is none now.
    fn send(&self, mut keys: &[u8]) {
        while !keys.is_empty() {
            let sent = self.stream.lock().write(keys);
            match sent {
                Ok(count) => keys = keys.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
        }
    }
}

/// Prints what is kept of a zone's output.
///
/// # Errors
/// There is no such zone, or a stream failed.
pub fn dump(socket: &Path, zone: &str, port: Option<usize>) -> Result<(), ClientError> {
    let (mut reader, _stream) = open(Client::connect(socket)?, zone, port, None)?;
    io::copy(&mut reader, &mut io::stdout().lock())?;
    Ok(io::stdout().flush()?)
}

/// Requests a console: its output so far, or from a position on and what follows.
fn open(
    mut client: Client,
    zone: &str,
    port: Option<usize>,
    from: Option<u64>,
) -> Result<(BufReader<UnixStream>, UnixStream), ClientError> {
    client.ask(&Request::Console {
        name: zone.to_owned(),
        follow: from.is_some(),
        from,
        port,
    })?;
    Ok(client.into_bytes())
}

/// Has a port's guest see the size of this terminal. While there is no daemon, it does not.
fn send_size(socket: &Path, zone: &str, port: Option<usize>) {
    let (Some(port), Ok((columns, rows))) = (port, size()) else {
        return;
    };
    let request = Request::ConsoleSize {
        name: zone.to_owned(),
        port,
        columns,
        rows,
    };
    let _ = Client::connect(socket).and_then(|mut client| client.ask(&request));
}

/// Why a console ends before its zone.
enum FrameError {
    /// The daemon has ended.
    Lost(io::Error),
    /// Standard output is closed.
    Output(io::Error),
}

/// Shows the output until the zone's end; `seen` counts it.
fn copy_frames(reader: &mut impl Read, seen: &mut u64) -> Result<(), FrameError> {
    let mut output = io::stdout().lock();
    loop {
        let mut frame = Frame::new_zeroed();
        reader
            .read_exact(frame.as_mut_bytes())
            .map_err(FrameError::Lost)?;
        let len = frame.len.get();
        if len == 0 {
            return Ok(());
        }
        let mut piece = Vec::new();
        let read = reader.by_ref().take(len.into()).read_to_end(&mut piece);
        if read.map_err(FrameError::Lost)? < len as usize {
            return Err(FrameError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        output
            .write_all(&piece)
            .and_then(|()| output.flush())
            .map_err(FrameError::Output)?;
        *seen = frame.seen.get();
    }
}

/// Sends standard input until its end or the key that leaves.
fn send_input(stream: &Keys, escape: Escape) {
    let Ok(copy) = io::stdin().as_fd().try_clone_to_owned() else {
        return;
    };
    // Unbuffered: each key is sent at once.
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
        let detach = keys.iter().position(|key| Some(*key) == escape.0);
        let keys = keys.get(..detach.unwrap_or(count)).unwrap_or_default();
        if detach.is_some() {
            // Before they are sent: there may be no daemon.
            stream.try_send(keys);
            stream.leave();
            return;
        }
        stream.send(keys);
    }
}

#[cfg(test)]
mod tests {
    use super::{ConsoleOptions, Escape, escape};

    #[test]
    fn keys_that_leave() {
        assert_eq!(escape("^]"), Ok(ConsoleOptions::default().escape));
        for (text, key) in [("^a", 1), ("Ctrl-A", 1), ("ctrl-z", 26), ("^\\", 28), ("^_", 31)] {
            assert_eq!(escape(text), Ok(Escape(Some(key))), "{text}");
        }
        assert_eq!(escape("none"), Ok(Escape(None)));
        for text in ["", "a", "^", "^1", "ctrl-", "^ab", "ctrl-ä"] {
            assert!(escape(text).is_err(), "{text}");
        }
        assert_eq!(escape("^o").unwrap().to_string(), "Ctrl-O leaves");
    }
}
