//! Waiting in `epoll_wait`, where io_uring is not available.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::watch::ReadWidth;

/// An epoll instance and what it watches.
pub struct Epoll {
    epoll: OwnedFd,
    watches: Vec<(RawFd, ReadWidth)>,
    /// Numbers that are free again.
    free: Vec<usize>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watches: Vec::new(),
            free: Vec::new(),
        })
    }

    pub(super) fn unwatch(&mut self, number: usize, fd: RawFd) {
        let _ = epoll::delete(&self.epoll, borrow(fd));
        self.free.push(number);
    }

    pub(super) fn watch(&mut self, fd: RawFd, width: ReadWidth) -> io::Result<usize> {
        let number = self.free.pop().unwrap_or(self.watches.len());
        let flags = match width {
            ReadWidth::Foreign => EventFlags::IN | EventFlags::ET,
            ReadWidth::Four | ReadWidth::Eight => EventFlags::IN,
        };
        epoll::add(&self.epoll, borrow(fd), EventData::new_u64(number as u64), flags)?;
        match self.watches.get_mut(number) {
            Some(watch) => *watch = (fd, width),
            None => self.watches.push((fd, width)),
        }
        Ok(number)
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<usize>) -> io::Result<()> {
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        let mut events = [const { MaybeUninit::uninit() }; 16];
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events {
            let watch = { event.data }.u64() as usize;
            let Some(&(fd, width)) = self.watches.get(watch) else {
                continue;
            };
            if width == ReadWidth::Foreign || self.read(fd, width) {
                ready.push(watch);
            }
        }
        Ok(())
    }

    /// Reads what made the descriptor readable; stops watching one that fails.
    fn read(&self, fd: RawFd, width: ReadWidth) -> bool {
        let mut buffer = [0_u8; 8];
        let room = buffer.get_mut(..width.bytes()).unwrap_or_default();
        match rustix::io::read(borrow(fd), room) {
            Ok(1..) => return true,
            Err(Errno::INTR | Errno::AGAIN) => return false,
            result => tracing::error!(fd, ?result, "watched descriptor failed"),
        }
        let _ = epoll::delete(&self.epoll, borrow(fd));
        false
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: used for one system call, while the descriptor is watched: its owner keeps it open that long.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
