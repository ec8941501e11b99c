//! Waiting in `epoll_wait`, where io_uring is not available.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::watch::{ReadWidth, Ready, Timeout};

/// An epoll instance and what it watches.
pub struct Epoll {
    epoll: OwnedFd,
    watches: Vec<(RawFd, ReadWidth)>,
    /// Numbers that are free again.
    free: Vec<usize>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked and has no other owner.
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

    pub(super) fn unwatch(&mut self, number: usize, fd: RawFd) {
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

    pub(super) fn watch(&mut self, fd: RawFd, width: ReadWidth) -> io::Result<usize> {
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

    pub(super) fn wait(&mut self, timeout: Timeout, ready: &mut Vec<Ready>) -> io::Result<()> {
        const BATCH: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let milliseconds = match timeout {
            Timeout::Zero => 0,
            // Rounded up to whole milliseconds: rounded down, the thread would wake too early, again and
            // again.
            Timeout::AtMost(time) => time
                .as_nanos()
                .div_ceil(1_000_000)
                .try_into()
                .unwrap_or(libc::c_int::MAX),
            Timeout::Never => -1,
        };
        // SAFETY: room for `BATCH` events.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH as libc::c_int,
                milliseconds,
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

    /// Reads what made the descriptor readable; stops watching one that fails.
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
