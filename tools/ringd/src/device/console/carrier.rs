//! [`Carrier`]: the two threads between a console and its pty or socket.
//!
//! One reads what is typed, one writes what the console has, from where the last daemon ended. What the
//! console has while no program is at the other end is not written later.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringconsole::{Port, Size, Word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::config::End;
use super::opener::{ConsoleOpener, ConsoleRequest, Part};
use crate::console::Console;

/// Most bytes of a read or write.
const STEP: usize = 1024;
/// How long to wait at a time for what another thread does.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often in a row a guest may take no input of a program that is gone.
const PATIENCE: usize = 10;
const SECOND: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The threads of a console, which end when this is dropped: the writer once everything is written.
pub struct Carrier {
    _stop: UnixStream,
}

/// The other end of a console, open.
pub struct Terminal {
    opener: Arc<dyn ConsoleOpener>,
    request: ConsoleRequest,
    console: Arc<Console>,
    port: Arc<Port>,
    /// What is polled while no program is at the other end.
    arrivals: OwnedFd,
    /// A pty's master.
    master: Option<Arc<OwnedFd>>,
}

/// What both threads use.
struct Both {
    terminal: Terminal,
    /// Where bytes go, if a program is at the other end.
    peer: Mutex<Option<Arc<OwnedFd>>>,
}

impl Terminal {
    /// Opens the other end of a console.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(
        opener: &Arc<dyn ConsoleOpener>,
        request: ConsoleRequest,
        console: Arc<Console>,
        port: Arc<Port>,
    ) -> io::Result<Self> {
        let (arrivals, master) = match request.end {
            End::Pty => {
                let master = opener.open(&request, Part::Master)?;
                (opener.open(&request, Part::Opened)?, Some(Arc::new(master)))
            }
            End::Socket(_) => (opener.open(&request, Part::Listener)?, None),
        };
        Ok(Self {
            opener: opener.clone(),
            request,
            console,
            port,
            arrivals,
            master,
        })
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// There can be none.
    pub fn start(self) -> io::Result<Carrier> {
        let name = format!("{}.{}", self.request.zone, self.request.index);
        let (stop, stopped) = UnixStream::pair()?;
        let both = Arc::new(Both {
            peer: Mutex::new(None),
            terminal: self,
        });
        // Before the writer begins: a program may have been there for long.
        both.find_peer();
        let reader = both.clone();
        let thread = std::thread::Builder::new().name(format!("read {name}"));
        thread.spawn(move || reader.read_all(&stopped))?;
        let thread = std::thread::Builder::new().name(format!("write {name}"));
        thread.spawn(move || both.write_all())?;
        Ok(Carrier { _stop: stop })
    }
}

impl Both {
    fn peer(&self) -> Option<Arc<OwnedFd>> {
        self.peer.lock().clone()
    }

    /// Looks whether a program is at the other end.
    fn find_peer(&self) -> Option<Arc<OwnedFd>> {
        let Terminal {
            opener,
            request,
            master,
            ..
        } = &self.terminal;
        let found = match master {
            // A program may have written and closed it already.
            Some(master) => (!is_hung_up(master) || has_input(master)).then(|| master.clone()),
            // Otherwise there is no connection.
            None => opener.open(request, Part::Connection).ok().map(Arc::new),
        };
        self.peer.lock().clone_from(&found);
        found
    }

    /// The program at the other end is gone.
    fn lose_peer(&self) {
        let lost = self.peer.lock().take();
        if let (Some(lost), None) = (lost, &self.terminal.master) {
            // The keeper has a duplicate.
            let _ = rustix::net::shutdown(&lost, rustix::net::Shutdown::Both);
        }
    }

    /// Reads what is typed until `stopped` is closed.
    fn read_all(&self, stopped: &UnixStream) {
        loop {
            let Some(peer) = self.peer() else {
                if !wait(&self.terminal.arrivals, stopped) {
                    return;
                }
                if self.terminal.master.is_some() {
                    // Events of inotify, of which only the arrival matters.
                    let mut events = [0; 4096];
                    while rustix::io::read(&self.terminal.arrivals, &mut events).is_ok_and(|len| len > 0) {}
                }
                if self.find_peer().is_none() && self.terminal.master.is_none() {
                    tracing::warn!(
                        zone = self.terminal.request.zone,
                        "cannot take a connection to a console"
                    );
                    std::thread::sleep(INTERVAL);
                }
                continue;
            };
            if !wait(&peer, stopped) {
                return;
            }
            let mut bytes = [0; STEP];
            match rustix::io::read(&peer, &mut bytes) {
                Ok(len) if len > 0 => {
                    if !self.type_in(bytes.get(..len).unwrap_or_default(), &peer, stopped) {
                        return;
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) if !is_hung_up(&peer) => {}
                // EIO: the last program has closed a pty.
                _ => self.lose_peer(),
            }
        }
    }

    /// Passes bytes to the guest. Returns `false` if the zone has ended. What a guest does not read is
    /// dropped some time after the program that wrote it has gone: the next one is waiting.
    fn type_in(&self, mut bytes: &[u8], peer: &OwnedFd, stopped: &UnixStream) -> bool {
        let mut refused = 0;
        while !bytes.is_empty() {
            let Some(taken) = self.terminal.console.type_into_port(bytes) else {
                return false;
            };
            bytes = bytes.get(taken..).unwrap_or_default();
            if taken == 0 {
                self.terminal.port.wait_for_room(INTERVAL);
                if is_hung_up(stopped) {
                    return false;
                }
                refused += 1;
                if refused >= PATIENCE && is_hung_up(peer) {
                    return true;
                }
            } else {
                refused = 0;
            }
        }
        true
    }

    /// Writes what the console has until it is closed.
    fn write_all(&self) {
        let Terminal { console, port, .. } = &self.terminal;
        let mut position = console.position_of(port.memory().get(Word::Sent));
        while let Some(chunk) = console.read(position, INTERVAL) {
            let Some(peer) = self.peer() else {
                position = chunk.next;
                self.mark(position);
                continue;
            };
            self.follow_size(&peer);
            if chunk.skipped > 0 {
                let note = format!("\r\n[ringd: {} bytes were lost here]\r\n", chunk.skipped);
                self.write(&peer, note.as_bytes(), None);
                position = position.saturating_add(chunk.skipped);
            }
            self.write(&peer, &chunk.bytes, Some(position));
            position = chunk.next;
            self.mark(position);
        }
    }

    /// Writes bytes, the first of which is at this position, as long as the peer is there.
    fn write(&self, peer: &Arc<OwnedFd>, mut bytes: &[u8], position: Option<u64>) {
        let mut position = position;
        while !bytes.is_empty() {
            let piece = bytes.get(..STEP.min(bytes.len())).unwrap_or_default();
            match send(peer, piece) {
                Ok(len) => {
                    bytes = bytes.get(len..).unwrap_or_default();
                    if let Some(position) = &mut position {
                        *position = position.saturating_add(len as u64);
                        self.mark(*position);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut ready = [PollFd::new(peer, PollFlags::OUT)];
                    let _ = poll(&mut ready, Some(&SECOND));
                    let there = self.peer().is_some_and(|now| Arc::ptr_eq(&now, peer));
                    let waits = ready.iter().all(|ready| ready.revents().is_empty());
                    if !there || is_hung_up(peer) || waits && self.terminal.console.is_closed() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// The other end has everything up to here.
    fn mark(&self, position: u64) {
        let guest = self.terminal.console.guest_position(position);
        self.terminal.port.memory().set(Word::Sent, guest);
    }

    /// Gives the guest the size that the program at a pty has set. No event says that it has.
    fn follow_size(&self, peer: &OwnedFd) {
        if self.terminal.master.is_none() {
            return;
        }
        if let Ok(size) = rustix::termios::tcgetwinsize(peer) {
            let size = Size {
                columns: size.ws_col,
                rows: size.ws_row,
            };
            if size != Size::default() {
                self.terminal.console.resize(size);
            }
        }
    }
}

/// Writes to a pty or a socket. A peer that is gone is an error, not a signal.
fn send(peer: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::net::send(peer, bytes, rustix::net::SendFlags::NOSIGNAL) {
        Err(Errno::NOTSOCK) => rustix::io::write(peer, bytes),
        sent => sent,
    }
}

/// Waits until a descriptor can be read or its peer is gone. Returns `false` when `stopped` is closed.
fn wait(descriptor: &impl AsFd, stopped: &UnixStream) -> bool {
    loop {
        let mut descriptors = [
            PollFd::new(descriptor, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return false,
            Ok(_) => {}
        }
        let [_, stop] = descriptors;
        return stop.revents().is_empty();
    }
}

/// Whether the other side of a descriptor is closed.
fn has_input(descriptor: &impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    let _ = poll(&mut descriptors, Some(&NOW));
    descriptors
        .iter()
        .any(|descriptor| descriptor.revents().contains(PollFlags::IN))
}

fn is_hung_up(descriptor: &impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::empty())];
    let _ = poll(&mut descriptors, Some(&NOW));
    descriptors
        .iter()
        .any(|descriptor| descriptor.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}
