//! [`BlockingFront`]: a server's disk used by one thread after the other, each waiting for its request: what moves a disk
//! does that.
//!
//! It has a connection of its own, and memory that data goes through. A server that goes is waited for, for a limited time;
//! then the request fails, and with it those that have waited meanwhile. What a server had answered before it went and not
//! made durable may be lost: that is counted.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringblk::remote::Blocking;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ReadWriteFlags, preadv2};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connect::Connection;
use super::kick::{Kick, Threads};
use super::link::{Known, Reach};
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
    threads: Threads,
    known: Arc<Known>,
    losses: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// When a request failed last because the server was not there, or did not answer.
    failed: Option<Instant>,
}

struct Session {
    connection: Connection,
    rings: SharedRings,
    kick: Kick,
    call: EventFd,
    memory: GuestMemoryMmap,
    _file: File,
    /// It may be lost with the server what was written.
    dirty: bool,
}

fn other(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

impl BlockingFront {
    /// Not connected yet.
    pub fn new(path: PathBuf, reach: Reach, patience: Duration, known: Arc<Known>) -> Self {
        Self {
            path,
            reach,
            patience,
            threads: Threads::default(),
            known,
            losses: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// How often a server went that may have lost something.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Lets go of the server, and waits for nobody. No request is in flight.
    pub fn disconnect(&self) {
        self.lock().session = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            Blocking::Zero { len, unmap } => self.range(offset, len, |session, offset, len, left| {
                session.zero(offset, len, unmap, left)
            }),
            Blocking::Discard { len } => self.range(offset, len, Session::discard),
        }
    }

    /// As many requests as it takes to do `act` to so many bytes; it gives those of one.
    fn range(
        &self,
        offset: u64,
        len: u64,
        act: impl Fn(&mut Session, u64, u64, Instant) -> Result<u64, Failure>,
    ) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let mut done = 0;
            self.request(|session, left| {
                done = act(session, offset + at, len - at, left)?;
                Ok(())
            })?;
            at += done;
        }
        Ok(())
    }

    /// Tries until a server has answered, or the time is over.
    fn request(&self, mut act: impl FnMut(&mut Session, Instant) -> Result<(), Failure>) -> io::Result<()> {
        let begin = Instant::now();
        let end = begin + self.patience;
        let mut state = self.lock();
        // The server has had its time.
        if Instant::now() >= end || state.failed.is_some_and(|failed| failed >= begin) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut said = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let done = match &mut state.session {
                Some(session) => act(session, end),
                None => match Session::new(self, end) {
                    Ok(new) => {
                        state.session = Some(new);
                        continue;
                    }
                    Err(error) => Err(Failure::Gone(error)),
                },
            };
            match done {
                Ok(()) => return Ok(()),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Gone(error)) => {
                    // What it had is asked of the next one again; not so what it had answered.
                    if state.session.take().is_some_and(|session| session.dirty) {
                        self.losses.fetch_add(1, Ordering::Release);
                    }
                    // The last attempts fail for want of time, which says nothing of the server.
                    if left >= self.patience / 4 {
                        said = Some(error);
                    } else {
                        said.get_or_insert(error);
                    }
                    if Instant::now() >= end {
                        state.failed = Some(Instant::now());
                        return Err(said.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
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
    fn new(front: &BlockingFront, end: Instant) -> io::Result<Self> {
        let left = || end.saturating_duration_since(Instant::now());
        let stream = (front.reach)(&front.path)?;
        let mut connection = Connection::negotiate_within(stream, 1, left()).map_err(other)?;
        front.known.check(connection.shape()).map_err(other)?;
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
        let kick = Kick::new(true, &front.threads)?;
        let call = EventFd::new(EFD_NONBLOCK)?;
        let kicks = [kick.for_server()?];
        connection.set_patience(left());
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
            dirty: false,
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
            self.kick.kick();
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
        // Not by `read`: the server can make that wait.
        let mut count = [0; 8];
        let _ = preadv2(
            call,
            &mut [IoSliceMut::new(&mut count)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        );
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
        self.run(Request::Write { offset }, &[part], end)?;
        self.written();
        Ok(())
    }

    /// Something was, and may be in a cache.
    fn written(&mut self) {
        self.dirty |= self.connection.shape().flush;
    }

    fn flush(&mut self, end: Instant) -> Result<(), Failure> {
        // Without the feature it has no cache.
        if !self.connection.shape().flush {
            return Ok(());
        }
        self.run(Request::Flush, &[], end)?;
        self.dirty = false;
        Ok(())
    }

    /// Gives the bytes of the one request.
    fn zero(&mut self, offset: u64, len: u64, unmap: bool, end: Instant) -> Result<u64, Failure> {
        let len = piece(len, self.connection.shape().zeroes)?;
        self.run(Request::WriteZeroes { offset, len, unmap }, &[], end)?;
        self.written();
        Ok(len)
    }

    /// As [`Self::zero`].
    fn discard(&mut self, offset: u64, len: u64, end: Instant) -> Result<u64, Failure> {
        let len = piece(len, self.connection.shape().discard)?;
        self.run(Request::Discard { offset, len }, &[], end)?;
        self.written();
        Ok(len)
    }
}

/// As much of `len` as one request takes, if the server knows such at all.
fn piece(len: u64, most: u64) -> Result<u64, Failure> {
    match len.min(most - most % ringblk::virtio::SECTOR_SIZE) {
        0 => Err(Failure::Refused(io::Error::from_raw_os_error(libc::EOPNOTSUPP))),
        len => Ok(len),
    }
}
