//! [`LinkState`]: what the engine ([`super::engine`]) and the thread of a connection ([`super::link`]) share.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connect::DiskInfo;
use super::kick::Kick;
use super::log_limit::LogLimit;
use super::shared::SharedRings;

/// What the thread reports to the engine.
pub enum LinkEvent {
    /// A server is connected and uses these rings.
    Connected {
        /// Its disk.
        info: DiskInfo,
        /// Its rings.
        rings: SharedRings,
        /// The kick of each ring.
        kicks: Vec<Kick>,
    },
    /// The server has broken the protocol and is disconnected: it gets no more requests, and its completions
    /// are ignored.
    Faulty,
    /// The server is gone; no process accesses the requests in flight any more.
    Disconnected,
}

/// Shared by the thread and the engine.
pub struct LinkState {
    /// Readable when the server has signalled completions, or the thread has queued events: an epoll
    /// instance, so that each connection can have a call eventfd of its own. The server shares that eventfd
    /// and could make it block, so it is only polled, never read or written, and it is closed with its
    /// connection in whatever state the server has left it.
    pub event: Arc<File>,
    /// Signalled by the thread; the server does not have it.
    queued: File,
    /// Limits the log lines about the server.
    pub log: LogLimit,
    /// The current server has been told to disconnect.
    rejected: AtomicBool,
    events: Mutex<Vec<LinkEvent>>,
    has_events: AtomicBool,
    /// The thread is to end.
    ending: AtomicBool,
    /// Number of the current wait for the server to release abandoned requests; 0 if there is none.
    abandon_wait: AtomicU64,
    /// Wakes the thread.
    wake: File,
    /// The current connection.
    stream: Mutex<Option<UnixStream>>,
}

impl LinkState {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(File::from);
        let (all, queued) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, event()?);
        watch(&all, &queued)?;
        Ok(Arc::new(Self {
            event: Arc::new(all.into()),
            queued,
            log: LogLimit::default(),
            rejected: AtomicBool::new(false),
            events: Mutex::default(),
            has_events: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            abandon_wait: AtomicU64::new(0),
            wake: event()?,
            stream: Mutex::default(),
        }))
    }

    /// Takes the queued events, oldest first.
    pub fn take_events(&self) -> Vec<LinkEvent> {
        if !self.has_events.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.events.lock())
    }

    /// Returns whether events are queued.
    pub fn has_events(&self) -> bool {
        self.has_events.load(Ordering::Acquire)
    }

    /// Queues an event for the engine.
    pub(super) fn push(&self, event: LinkEvent) {
        self.events.lock().push(event);
        self.has_events.store(true, Ordering::Release);
        let _ = (&self.queued).write(&1_u64.to_ne_bytes());
    }

    /// Sets the connection of a server that has been started.
    pub(super) fn set_connection(&self, stream: UnixStream) {
        self.rejected.store(false, Ordering::Release);
        *self.stream.lock() = Some(stream);
    }

    /// Clears the connection after it has ended.
    pub(super) fn clear_connection(&self) {
        *self.stream.lock() = None;
    }

    /// Tells a server that has broken the protocol to disconnect. The requests that it has are free when it
    /// has closed the connection or died.
    pub fn reject(&self) {
        self.rejected.store(true, Ordering::Release);
        if let Some(stream) = &*self.stream.lock() {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Begins or ends a wait for the server to release abandoned requests, limited by
    /// [`super::endpoint::Endpoint::timeout`]. `number` counts such waits from 1; 0 ends one.
    pub fn set_abandon_wait(&self, number: u64) {
        self.abandon_wait.store(number, Ordering::Release);
        if number != 0 {
            self.wake();
        }
    }

    /// Returns the number of the current wait; 0 if there is none.
    pub(super) fn abandon_wait(&self) -> u64 {
        self.abandon_wait.load(Ordering::Acquire)
    }

    /// Ends the thread, after it has stopped the server's queues.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let _ = (&self.wake).write(&1_u64.to_ne_bytes());
    }

    pub(super) fn is_rejected(&self) -> bool {
        self.rejected.load(Ordering::Acquire)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(super) fn pause(&self, time: Duration) {
        self.wait([], Some(time));
    }

    /// Waits until woken, one of `fds` is readable or closed, or the time has passed. Returns which of them
    /// are.
    pub(super) fn wait<const N: usize>(
        &self,
        fds: [Option<BorrowedFd<'_>>; N],
        time: Option<Duration>,
    ) -> [bool; N] {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(
            fds.iter()
                .flatten()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let _ = poll(&mut polled, time.as_ref());
        let mut results = polled.iter().map(|fd| !fd.revents().is_empty());
        if results.next() == Some(true) {
            let _ = (&self.wake).read(&mut [0; 8]);
        }
        fds.map(|fd| fd.is_some() && results.next() == Some(true))
    }
}

/// Makes `epoll` readable while `event` is.
fn watch(epoll: impl AsFd, event: impl AsFd) -> io::Result<()> {
    let flags = epoll::EventFlags::IN;
    Ok(epoll::add(epoll, event, epoll::EventData::new_u64(0), flags)?)
}

/// The call eventfd of one connection, watched until it is dropped.
pub struct Call<'a> {
    state: &'a LinkState,
    /// The server signals it.
    pub event: EventFd,
}

impl<'a> Call<'a> {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(state: &'a LinkState) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let call = Self { state, event };
        watch(&call.state.event, call.fd())?;
        Ok(call)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // Explicitly: the server may keep the eventfd open.
        let _ = epoll::delete(&self.state.event, self.fd());
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{Call, LinkEvent, LinkState};

    #[test]
    fn a_call_counts_as_long_as_its_connection() {
        let state = LinkState::new().unwrap();
        let readable = || {
            let mut polled = [PollFd::new(&*state.event, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
        };
        assert!(!readable());
        let call = Call::new(&state).unwrap();
        let server = call.event.try_clone().unwrap();
        server.write(u64::MAX - 1).unwrap();
        assert!(readable());
        drop(call);
        assert!(!readable());
        state.push(LinkEvent::Disconnected);
        assert!(readable());
    }
}
