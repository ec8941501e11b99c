//! [`BlockingFront`]: a server's disk used by one thread after the other, each waiting for its request: what moves a disk
//! does that.
//!
//! It has a connection of its own, and memory that data goes through. A server that goes is waited for, for a limited time;
//! then the request fails.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringblk::remote::Blocking;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connect::Connection;
use super::link::Reach;
use super::ring::{DriverRing, Request};
use super::shared::{SharedRings, sealed};

/// Bytes of memory for data, and most of one request.
const ROOM: u64 = 1 << 20;
/// Where the server is told that it is.
const BASE: u64 = 1 << 30;
/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// A server's disk.
pub struct BlockingFront {
    path: PathBuf,
    reach: Reach,
    patience: Duration,
    session: Mutex<Option<Session>>,
}

struct Session {
    connection: Connection,
    rings: SharedRings,
    kick: EventFd,
    call: EventFd,
    memory: GuestMemoryMmap,
    _file: File,
}

fn other(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

impl BlockingFront {
    /// Not connected yet.
    pub fn new(path: PathBuf, reach: Reach, patience: Duration) -> Self {
        Self {
            path,
            reach,
            patience,
            session: Mutex::default(),
        }
    }

    /// Lets go of the server, and waits for nobody. No request is in flight.
    pub fn disconnect(&self) {
        self.lock().take();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it, in as many requests as it takes.
    ///
    /// # Errors
    /// The server refuses, or is not there for longer than it may.
    pub fn perform(&self, what: Blocking<'_>, offset: u64) -> io::Result<()> {
        let piece = |at: usize, len: usize| at..len.min(at + ROOM as usize);
        match what {
            Blocking::Read(bytes) => {
                let (mut at, len) = (0, bytes.len());
                while at < len {
                    let part = bytes.get_mut(piece(at, len)).unwrap_or_default();
                    let offset = offset + at as u64;
                    at += part.len();
                    self.request(|session, left| session.read(part, offset, left))?;
                }
                Ok(())
            }
            Blocking::Write(bytes, durable) => {
                let (mut at, len) = (0, bytes.len());
                while at < len {
                    let part = bytes.get(piece(at, len)).unwrap_or_default();
                    let offset = offset + at as u64;
                    at += part.len();
                    self.request(|session, left| session.write(part, offset, left))?;
                }
                if durable {
                    self.request(Session::flush)?;
                }
                Ok(())
            }
            Blocking::Sync => self.request(Session::flush),
            Blocking::Zero { len, unmap } => {
                let mut at = 0;
                while at < len {
                    let mut most = 0;
                    self.request(|session, left| {
                        most = session.zero(offset + at, len - at, unmap, left)?;
                        Ok(())
                    })?;
                    at += most;
                }
                Ok(())
            }
        }
    }

    /// Tries until a server has answered, or the time is over.
    fn request(&self, mut act: impl FnMut(&mut Session, Instant) -> Result<(), Failure>) -> io::Result<()> {
        let end = Instant::now() + self.patience;
        let mut session = self.lock();
        loop {
            let done = match &mut *session {
                Some(session) => act(session, end),
                None => match Session::new(self) {
                    Ok(new) => {
                        *session = Some(new);
                        continue;
                    }
                    Err(error) => Err(Failure::Gone(error)),
                },
            };
            match done {
                Ok(()) => return Ok(()),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Gone(error)) => {
                    // What it had is asked of the next one again.
                    *session = None;
                    if Instant::now() >= end {
                        return Err(error);
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

/// Why a request is not done.
enum Failure {
    /// The server said so.
    Refused(io::Error),
    /// There is no server any more.
    Gone(io::Error),
}

impl Session {
    fn new(front: &BlockingFront) -> io::Result<Self> {
        let stream = (front.reach)(&front.path)?;
        let mut connection = Connection::negotiate_within(stream, 1, front.patience).map_err(other)?;
        let file = sealed(c"ringd data", ROOM)?;
        let mapping: MmapRegion =
            MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), ROOM as usize).map_err(other)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: ROOM,
            userspace_addr: mapping.as_ptr().addr() as u64,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        let region_here =
            GuestRegionMmap::new(mapping, GuestAddress(BASE)).ok_or_else(|| other("no room for data"))?;
        let memory = GuestMemoryMmap::from_regions(vec![region_here]).map_err(other)?;
        let rings = SharedRings::new(1, connection.event_idx())?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let call = EventFd::new(EFD_NONBLOCK)?;
        let kicks = [kick.try_clone()?];
        connection
            .start(&[region], &rings, &kicks, &call)
            .map_err(other)?;
        Ok(Self {
            connection,
            rings,
            kick,
            call,
            memory,
            _file: file,
        })
    }

    fn ring(&mut self) -> Result<&mut DriverRing, Failure> {
        let ring = self.rings.rings.first_mut();
        ring.ok_or_else(|| Failure::Gone(other("no ring")))
    }

    /// One request and its answer.
    fn run(&mut self, request: Request, parts: &[(u64, u32)], end: Instant) -> Result<(), Failure> {
        let ring = self.ring()?;
        ring.push(0, request, parts);
        if ring.publish() {
            // A full counter has kicked already.
            let _ = self.kick.write(1);
        }
        loop {
            let ring = self.ring()?;
            match ring.pop() {
                Ok(Some(done)) => {
                    return match done.status {
                        0 => Ok(()),
                        2 => Err(Failure::Refused(io::Error::from_raw_os_error(libc::EOPNOTSUPP))),
                        _ => Err(Failure::Refused(io::Error::from_raw_os_error(libc::EIO))),
                    };
                }
                Ok(None) => {}
                Err(nonsense) => return Err(Failure::Gone(other(nonsense))),
            }
            if ring.arm() {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Gone(io::ErrorKind::TimedOut.into()));
            }
            self.wait(left)?;
        }
    }

    fn wait(&self, time: Duration) -> Result<(), Failure> {
        // SAFETY: open as long as the session.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let mut fds = [
            PollFd::new(&call, PollFlags::IN),
            PollFd::new(self.connection.stream(), PollFlags::IN),
        ];
        let time = Timespec::try_from(time).ok();
        let _ = poll(&mut fds, time.as_ref());
        let _ = self.call.read();
        let [called, stream] = fds.map(|fd| !fd.revents().is_empty());
        if stream && !called {
            return Err(Failure::Gone(io::ErrorKind::ConnectionReset.into()));
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8], offset: u64, end: Instant) -> Result<(), Failure> {
        let part = (BASE, bytes.len() as u32);
        self.run(Request::Read { offset }, &[part], end)?;
        let read = self.memory.read_slice(bytes, GuestAddress(BASE));
        read.map_err(|error| Failure::Gone(other(error)))
    }

    fn write(&mut self, bytes: &[u8], offset: u64, end: Instant) -> Result<(), Failure> {
        let written = self.memory.write_slice(bytes, GuestAddress(BASE));
        written.map_err(|error| Failure::Gone(other(error)))?;
        let part = (BASE, bytes.len() as u32);
        self.run(Request::Write { offset }, &[part], end)
    }

    fn flush(&mut self, end: Instant) -> Result<(), Failure> {
        // Without the feature it has no cache.
        if !self.connection.shape().flush {
            return Ok(());
        }
        self.run(Request::Flush, &[], end)
    }

    /// Gives the bytes of the one request.
    fn zero(&mut self, offset: u64, len: u64, unmap: bool, end: Instant) -> Result<u64, Failure> {
        let most = self.connection.shape().zeroes;
        let most = len.min(most - most % ringblk::virtio::SECTOR_SIZE);
        if most == 0 {
            let error = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return Err(Failure::Refused(error));
        }
        let request = Request::WriteZeroes {
            offset,
            len: most,
            unmap,
        };
        self.run(request, &[], end).map(|()| most)
    }
}
