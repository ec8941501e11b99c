//! [`BlockingFront`]: a server's disk without an engine: one thread at a time sends a request and waits for
//! it. Migration uses it.
//!
//! It has a connection of its own, and memory that data is copied through. If the server goes down, the next
//! one is awaited for a limited time; then the request fails, and with it those that have waited meanwhile.
//! Completed writes that a server had not made durable may be lost with it: such losses are counted.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ringblk::remote::BlockingIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ReadWriteFlags, preadv2};
use vm_memory::{VolatileMemory, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connect::{Connection, DiskInfo};
use super::endpoint::Endpoint;
use super::kick::{Kick, Threads};
use super::ring::{DriverRing, Request};
use super::shared::{SharedMemory, SharedRings};

/// Bytes of memory for data, and most bytes of one request.
const DATA_MAX: usize = 1 << 20;
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
    memory: SharedMemory,
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
        let offsets = (offset..).step_by(DATA_MAX);
        match what {
            BlockingIo::Read(bytes) => {
                for (part, offset) in bytes.chunks_mut(DATA_MAX).zip(offsets) {
                    self.request(|session, left| session.read(part, offset, left))?;
                }
                Ok(())
            }
            BlockingIo::Write(bytes, durable) => {
                for (part, offset) in bytes.chunks(DATA_MAX).zip(offsets) {
                    self.request(|session, left| session.write(part, offset, left))?;
                }
                if durable {
                    self.request(Session::flush)?;
                }
                Ok(())
            }
            BlockingIo::Sync => self.request(Session::flush),
            BlockingIo::Zero { len, unmap } => {
                let request = |offset, len| Request::WriteZeroes { offset, len, unmap };
                self.range(offset, len, |info| info.write_zeroes, request)
            }
            BlockingIo::Discard { len } => {
                let request = |offset, len| Request::Discard { offset, len };
                self.range(offset, len, |info| info.discard, request)
            }
        }
    }

    /// Sends requests for the parts of a range, each of at most the bytes that `most` returns.
    fn range(
        &self,
        offset: u64,
        len: u64,
        most: fn(&DiskInfo) -> u64,
        request: impl Fn(u64, u64) -> Request,
    ) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            at += self.request(|session, end| {
                let most = most(&session.connection.info);
                let part = (len - at).min(most - most % ringblk::virtio::SECTOR_SIZE);
                if part == 0 {
                    return Err(refused(libc::EOPNOTSUPP));
                }
                session.run(request(offset + at, part), &[], end)?;
                session.set_dirty();
                Ok(part)
            })?;
        }
        Ok(())
    }

    /// Retries `act` with the next server until one has answered, or the timeout has expired.
    fn request<T>(&self, mut act: impl FnMut(&mut Session, Instant) -> Result<T, Failure>) -> io::Result<T> {
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
                Ok(done) => return Ok(done),
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

fn refused(errno: i32) -> Failure {
    Failure::Refused(io::Error::from_raw_os_error(errno))
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
        let memory = SharedMemory::new(c"ringd data", DATA_MAX, BASE)?;
        let rings = SharedRings::new(1, connection.event_idx())?;
        let kick = Kick::new(true, &front.threads)?;
        let call = EventFd::new(EFD_NONBLOCK)?;
        let kicks = [kick.for_server()?];
        connection.set_timeout(left());
        connection
            .start(&[memory.region()], &rings, &kicks, &call)
            .map_err(other)?;
        Ok(Self {
            connection,
            rings,
            kick,
            call,
            memory,
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
                        2 => Err(refused(libc::EOPNOTSUPP)),
                        _ => Err(refused(libc::EIO)),
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

    /// Returns the first `len` bytes of the memory for data.
    fn data(&self, len: usize) -> Result<VolatileSlice<'_>, Failure> {
        let data = self.memory.mapping.get_slice(0, len);
        data.map_err(|error| Failure::Gone(other(error)))
    }

    fn read(&mut self, bytes: &mut [u8], offset: u64, end: Instant) -> Result<(), Failure> {
        let part = (BASE, bytes.len() as u32);
        self.run(Request::Read { offset }, &[part], end)?;
        self.data(bytes.len())?.copy_to(bytes);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64, end: Instant) -> Result<(), Failure> {
        self.data(bytes.len())?.copy_from(bytes);
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
}
