//! How a reactor's thread sleeps: in `io_uring_enter`, or in `epoll_wait` where io_uring is not to be had.
//!
//! Either way a watched descriptor is read when it is readable, so that its owner only learns that it was. What other
//! processes have too is not: they could make the read wait.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::engine::uring::Uring;

/// How a descriptor is read, and how many bytes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadWidth {
    /// `/dev/uioN`: four bytes.
    Four,
    /// An `eventfd` of this process: eight bytes. It is made blocking.
    Eight,
    /// An `eventfd` that another process uses too, or anything else that is polled: it is never read, its flags stay as they
    /// are, and what counts is that it becomes readable once more.
    Foreign,
}

impl ReadWidth {
    /// Bytes of a read.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight | Self::Foreign => 8,
        }
    }
}

/// How long to wait for something to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleep {
    /// Only look.
    Not,
    /// No longer than this.
    AtMost(Duration),
    /// As long as it takes.
    Forever,
}

impl Sleep {
    /// The longest time, if there is one.
    pub const fn at_most(self) -> Option<Duration> {
        match self {
            Self::Not => Some(Duration::ZERO),
            Self::AtMost(time) => Some(time),
            Self::Forever => None,
        }
    }
}

/// A new blocking `eventfd`.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked and owned by nobody else.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// A watched descriptor was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    /// In the order of the calls to `watch`, from 0.
    pub watch: usize,
}

/// Where the thread sleeps.
pub(crate) enum Sleeper {
    Uring(Box<Uring>),
    Epoll(Epoll),
}

impl Sleeper {
    /// A ring if `uring` and the system allow it. Else epoll, with the reason in the log.
    pub fn new(uring: bool, entries: u32) -> io::Result<Self> {
        if uring {
            match Uring::new(entries) {
                Ok(ring) => return Ok(Self::Uring(Box::new(ring))),
                Err(error) => tracing::warn!(%error, "no io_uring here: all disks use the thread pool"),
            }
        }
        Epoll::new().map(Self::Epoll)
    }

    /// Makes `fd` blocking if it is ours: a ring answers a read of a non-blocking one at once, with EAGAIN.
    /// Gives the number that it is watched as.
    pub fn watch(&mut self, fd: RawFd, width: ReadWidth) -> io::Result<usize> {
        if width != ReadWidth::Foreign {
            // SAFETY: no pointers.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            // SAFETY: no pointers.
            if flags == -1 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        match self {
            Self::Uring(ring) => Ok(ring.watch(fd, width)),
            Self::Epoll(epoll) => epoll.watch(fd, width),
        }
    }

    /// Stops watching a foreign descriptor, which may be closed afterwards. Its number is given to another.
    pub fn unwatch(&mut self, number: usize, fd: RawFd) {
        match self {
            Self::Uring(ring) => ring.unwatch(number),
            Self::Epoll(epoll) => epoll.unwatch(number, fd),
        }
    }

    /// Whether the thread has something left to copy, and must not sleep.
    pub fn is_copying(&self) -> bool {
        match self {
            Self::Uring(ring) => ring.is_copying(),
            Self::Epoll(_) => false,
        }
    }

    pub fn wait(&mut self, sleep: Sleep, ready: &mut Vec<Ready>) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.wait(sleep, ready),
            Self::Epoll(epoll) => epoll.wait(sleep, ready),
        }
    }
}

/// An epoll instance and what it watches.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    watches: Vec<(RawFd, ReadWidth)>,
    /// Numbers of those that are watched no more.
    free: Vec<usize>,
}

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked and owned by nobody else.
        let epoll = match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: as above.
            fd => unsafe { OwnedFd::from_raw_fd(fd) },
        };
        Ok(Self {
            epoll,
            watches: Vec::new(),
            free: Vec::new(),
        })
    }

    fn unwatch(&mut self, number: usize, fd: RawFd) {
        // SAFETY: no event is needed to delete one.
        unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                fd,
                std::ptr::null_mut(),
            )
        };
        self.free.push(number);
    }

    fn watch(&mut self, fd: RawFd, width: ReadWidth) -> io::Result<usize> {
        let number = self.free.pop().unwrap_or(self.watches.len());
        let mut event = libc::epoll_event {
            events: match width {
                ReadWidth::Foreign => libc::EPOLLIN | libc::EPOLLET,
                ReadWidth::Four | ReadWidth::Eight => libc::EPOLLIN,
            } as u32,
            u64: number as u64,
        };
        // SAFETY: the event outlives the call.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } {
            -1 => Err(io::Error::last_os_error()),
            _ => {
                match self.watches.get_mut(number) {
                    Some(watch) => *watch = (fd, width),
                    None => self.watches.push((fd, width)),
                }
                Ok(number)
            }
        }
    }

    fn wait(&mut self, sleep: Sleep, ready: &mut Vec<Ready>) -> io::Result<()> {
        const BATCH: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let timeout = match sleep {
            Sleep::Not => 0,
            // Whole milliseconds, rather too many than a loop of too few.
            Sleep::AtMost(time) => time
                .as_nanos()
                .div_ceil(1_000_000)
                .try_into()
                .unwrap_or(libc::c_int::MAX),
            Sleep::Forever => -1,
        };
        // SAFETY: room for `BATCH` events.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH as libc::c_int,
                timeout,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(())
            } else {
                Err(error)
            };
        };
        for event in events.iter().take(count) {
            let watch = event.u64 as usize;
            let Some(&(fd, width)) = self.watches.get(watch) else {
                continue;
            };
            if width == ReadWidth::Foreign || self.read(fd, width) {
                ready.push(Ready { watch });
            }
        }
        Ok(())
    }

    /// Takes what made the descriptor readable; stops watching one that fails.
    fn read(&self, fd: RawFd, width: ReadWidth) -> bool {
        let mut buffer = [0_u8; 8];
        // SAFETY: room for eight bytes, which is the largest width.
        let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), width.bytes()) };
        if count > 0 {
            return true;
        }
        let error = io::Error::last_os_error();
        if count < 0 && matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return false;
        }
        tracing::error!(fd, %error, "watched descriptor failed");
        // SAFETY: no event is needed to delete one.
        unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                fd,
                std::ptr::null_mut(),
            )
        };
        false
    }
}
