//! Where a reactor's thread waits: in `io_uring_enter`, or in `epoll_wait` where io_uring is not available.
//!
//! Either way a watched descriptor is read when it is readable, so its owner only learns that it was. One
//! that is shared with another process is polled, never read ([`ReadWidth::Foreign`]).

pub mod epoll;
pub mod registry;
pub mod uring;
mod watch;

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

pub use watch::{ReadWidth, eventfd};

use crate::affinity;
use epoll::Epoll;
use uring::Uring;

/// Where the thread waits.
pub enum Waiter {
    /// A ring, which also carries the devices' I/O.
    Uring(Box<Uring>),
    /// An epoll instance: I/O needs threads.
    Epoll(Epoll),
}

impl Waiter {
    /// As [`Self::disabled`], enabled for this thread.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(io_uring: bool, entries: u32) -> io::Result<Self> {
        let waiter = Self::disabled(io_uring, entries)?;
        waiter.enable()?;
        Ok(waiter)
    }

    /// Enables the ring, if there is one, for the calling thread, which alone waits from now on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enable(&self) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.enable(),
            Self::Epoll(_) => Ok(()),
        }
    }

    /// Returns a ring of `entries` submissions, to be enabled, if `io_uring` and the system allow it. Else
    /// epoll, with the reason in the log.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn disabled(io_uring: bool, entries: u32) -> io::Result<Self> {
        if io_uring {
            match Uring::disabled(entries) {
                Ok(ring) => return Ok(Self::Uring(Box::new(ring))),
                Err(error) => tracing::warn!(%error, "no io_uring here: I/O uses thread pools"),
            }
        }
        Epoll::new().map(Self::Epoll)
    }

    /// Returns the ring, if there is one.
    #[must_use]
    pub fn ring(&mut self) -> Option<&mut Uring> {
        match self {
            Self::Uring(ring) => Some(ring),
            Self::Epoll(_) => None,
        }
    }

    /// Watches `fd` and returns its number. Makes it blocking unless it is foreign: a ring completes a read
    /// of a non-blocking descriptor at once, with EAGAIN.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn watch(&mut self, fd: RawFd, width: ReadWidth) -> io::Result<usize> {
        if width != ReadWidth::Foreign {
            // SAFETY: the owner keeps what is watched open.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl_setfl(fd, fcntl_getfl(fd)? - OFlags::NONBLOCK)?;
        }
        match self {
            Self::Uring(ring) => Ok(ring.watch(fd, width)),
            Self::Epoll(epoll) => epoll.watch(fd, width),
        }
    }

    /// Stops watching a foreign descriptor, which may be closed afterwards. Its number is used again.
    pub fn unwatch(&mut self, number: usize, fd: RawFd) {
        match self {
            Self::Uring(ring) => ring.unwatch(number),
            Self::Epoll(epoll) => epoll.unwatch(number, fd),
        }
    }

    /// Starts what was pushed to the ring.
    pub fn submit(&mut self) {
        if let Self::Uring(ring) = self {
            ring.submit();
        }
    }

    /// Starts what was pushed and waits until something has happened, or for the timeout, if there is one.
    /// Appends the numbers of the watches that became readable to `ready`.
    ///
    /// # Errors
    /// Waiting itself failed.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<usize>) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.wait(timeout, ready),
            Self::Epoll(epoll) => epoll.wait(timeout, ready),
        }
    }

    /// Keeps the calling thread on a CPU, and the ring's workers on all others; with `None` lets it run
    /// anywhere.
    ///
    /// # Errors
    /// The system refused; then the thread may run anywhere.
    pub fn bind(&self, cpu: Option<usize>) -> io::Result<()> {
        affinity::bind(cpu, |workers| match self {
            Self::Uring(ring) => ring.keep_workers_on(workers),
            Self::Epoll(_) => Ok(()),
        })
    }
}
