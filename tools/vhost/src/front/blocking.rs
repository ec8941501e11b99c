//! [`BlockingFront`]: a server's disk without an engine: one thread at a time sends a request and waits for
//! it. Migration uses it.
//!
//! It has a connection of its own, and memory that data is copied through. If the server goes down, the next
//! one is awaited for a limited time; then the request fails, and with it those that have waited meanwhile.
//! Completed writes that a server had not made durable may be lost with it: such losses are counted.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringblk::remote::BlockingIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ReadWriteFlags, preadv2};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connect::Connection;
use super::endpoint::Endpoint;
use super::kick::{Kick, Threads};
use super::ring::{DriverRing, Request};
use super::shared::{SharedRings, sealed};

/// Bytes of memory for data, and most bytes of one request.
const DATA_MAX: u64 = 1 << 20;
/// Guest-physical address of that memory.
const BASE: u64 = 1 << 30;
/// Time between attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A server's disk without an engine.
pub struct BlockingFront {
    endpoint: Arc<Endpoint>,
    threads: Threads,
    write_losses: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// When a request last failed because the server was down or did not answer.
    failed: Option<Instant>,
}

struct Session {
    connection: Connection,
    rings: SharedRings,
    kick: Kick,
    call: EventFd,
    memory: GuestMemoryMmap,
    _file: File,
    /// Completed writes may be lost with the server.
    dirty: bool,
}

fn other(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

impl BlockingFront {
    /// Makes one that connects at the first request.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self {
            endpoint,
            threads: Threads::default(),
            write_losses: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Returns how many times completed writes may have been lost with a server.
    pub fn write_losses(&self) -> u64 {
        self.write_losses.load(Ordering::Acquire)
    }

    /// Disconnects, without waiting. No request is in flight.
    pub fn disconnect(&self) {
        self.state.lock().session = None;
    }

    /// Runs an operation, in as many requests as it takes.
    ///
    /// # Errors
    /// The server fails a request, or is down for longer than the timeout.
    pub fn run(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        let offsets = (offset..).step_by(DATA_MAX as usize);
        match what {
            BlockingIo::Read(bytes) => {
                for (part, offset) in bytes.chunks_mut(DATA_MAX as usize).zip(offsets) {
                    self.request(|session, left| session.read(part, offset, left))?;
                }
                Ok(())
            }
            BlockingIo::Write(bytes, durable) => {
                for (part, offset) in bytes.chunks(DATA_MAX as usize).zip(offsets) {
                    self.request(|session, left| session.write(part, offset, left))?;
                }
                if durable {
                    self.request(Session::flush)?;
                }
                Ok(())
            }
            BlockingIo::Sync => self.request(Session::flush),
            BlockingIo::Zero { len, unmap } => self.range(offset, len, |session, offset, len, left| {
                session.zero(offset, len, unmap, left)
            }),
            BlockingIo::Discard { len } => self.range(offset, len, Session::discard),
        }
    }

    /// Repeats `act`, which handles and returns a part of the range, until the whole range is done.
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

    /// Retries `act` with the next server until one has answered, or the timeout has expired.
    fn request(&self, mut act: impl FnMut(&mut Session, Instant) -> Result<(), Failure>) -> io::Result<()> {
        let begin = Instant::now();
        let end = begin + self.endpoint.timeout;
        let mut state = self.state.lock();
        // The server has had its time while this thread waited for the lock.
        if Instant::now() >= end || state.failed.is_some_and(|failed| failed >= begin) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut failure = None;
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
                    // The request is repeated with the next server; completed ones are not.
                    if state.session.take().is_some_and(|session| session.dirty) {
                        self.write_losses.fetch_add(1, Ordering::Release);
                    }
                    // The last attempts fail for lack of time, which says nothing about the server.
                    if left >= self.endpoint.timeout / 4 {
                        failure = Some(error);
                    } else {
                        failure.get_or_insert(error);
                    }
                    if Instant::now() >= end {
                        state.failed = Some(Instant::now());
                        return Err(failure.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
                    }
                    std::thread::sleep(RETRY_INTERVAL);
                }
            }
        }
    }
}

/// Why a request failed.
enum Failure {
    /// The server failed it.
    Refused(io::Error),
    /// The server is down.
    Gone(io::Error),
}

impl Session {
    fn new(front: &BlockingFront, end: Instant) -> io::Result<Self> {
        let left = || end.saturating_duration_since(Instant::now());
        let stream = (front.endpoint.connect)(&front.endpoint.path)?;
        let mut connection = Connection::negotiate_within(stream, 1, left()).map_err(other)?;
        front.endpoint.known.check(&connection.info).map_err(other)?;
        let file = sealed(c"ringd data", DATA_MAX)?;
        let mapping: MmapRegion =
            MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), DATA_MAX as usize).map_err(other)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: DATA_MAX,
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
        connection.set_timeout(left());
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

    /// Sends one request and waits for its completion.
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
                Err(fault) => return Err(Failure::Gone(other(fault))),
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
            PollFd::new(&self.connection.stream, PollFlags::IN),
        ];
        let time = Timespec::try_from(time).ok();
        let _ = poll(&mut fds, time.as_ref());
        // Not by `read`, which the server can make block.
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
        self.set_dirty();
        Ok(())
    }

    /// Records that a write has completed and may be in the server's cache.
    fn set_dirty(&mut self) {
        self.dirty |= self.connection.info.flush;
    }

    fn flush(&mut self, end: Instant) -> Result<(), Failure> {
        // Without VIRTIO_BLK_F_FLUSH the server has no cache.
        if !self.connection.info.flush {
            return Ok(());
        }
        self.run(Request::Flush, &[], end)?;
        self.dirty = false;
        Ok(())
    }

    /// Zeroes as much as one request can, and returns the bytes.
    fn zero(&mut self, offset: u64, len: u64, unmap: bool, end: Instant) -> Result<u64, Failure> {
        let len = piece(len, self.connection.info.write_zeroes)?;
        self.run(Request::WriteZeroes { offset, len, unmap }, &[], end)?;
        self.set_dirty();
        Ok(len)
    }

    /// Discards as much as one request can, and returns the bytes.
    fn discard(&mut self, offset: u64, len: u64, end: Instant) -> Result<u64, Failure> {
        let len = piece(len, self.connection.info.discard)?;
        self.run(Request::Discard { offset, len }, &[], end)?;
        self.set_dirty();
        Ok(len)
    }
}

/// Returns how much of `len` one request can handle; an error if the server does not support the request.
fn piece(len: u64, most: u64) -> Result<u64, Failure> {
    match len.min(most - most % ringblk::virtio::SECTOR_SIZE) {
        0 => Err(Failure::Refused(io::Error::from_raw_os_error(libc::EOPNOTSUPP))),
        len => Ok(len),
    }
}
