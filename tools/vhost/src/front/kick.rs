//! [`Kick`]: tells a server that there are requests, and cannot be held up by it.
//!
//! The server has the same open file of an `eventfd`: at any time it can fill the counter and take `O_NONBLOCK` away, and a
//! `write` of ours would wait from then on, on the reactor's thread, which all disks share. The kernel has no write to an
//! `eventfd` that is told not to wait (RWF_NOWAIT: reads only), and looking beforehand leaves the server time in between. But
//! its own signals never wait (`eventfd_signal`), and an io_uring sends one with each completion. So each kick has a small
//! ring of its own, where a kick is an operation that does nothing: one system call, as a `write` is.
//!
//! Where io_uring is not to be had, or not wanted, a thread writes: a wake-up more for each kick, and only that thread waits.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use io_uring::{IoUring, opcode};
use rustix::io::{ReadWriteFlags, preadv2};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Most threads of one disk, with those that servers before this one still hold up.
const THREADS: usize = 64;

/// Counts a disk's threads: each has one of these, and so does who starts them.
pub type Threads = Arc<()>;

/// Kicks one queue.
pub struct Kick {
    event: EventFd,
    way: Way,
}

enum Way {
    /// Signals the event with each completion.
    Ring(Box<IoUring>),
    /// Has the thread write, if it is not about to.
    Thread(SyncSender<()>),
}

impl Kick {
    /// With a ring if `io_uring` and the system has it, else with a thread.
    ///
    /// # Errors
    /// No descriptors or threads are left.
    pub fn new(io_uring: bool, threads: &Threads) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let way = match io_uring.then(|| ring(&event)) {
            Some(Ok(ring)) => Way::Ring(Box::new(ring)),
            _ => Way::Thread(thread(&event, threads)?),
        };
        Ok(Self { event, way })
    }

    /// What the server gets.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn for_server(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Kicks, and waits for nobody.
    pub fn kick(&mut self) {
        match &mut self.way {
            Way::Ring(ring) => {
                let nothing = opcode::Nop::new().build();
                // Without room the last one is still there, and is as good.
                // SAFETY: the operation has no buffer.
                let _ = unsafe { ring.submission().push(&nothing) };
                if let Err(error) = ring.submit() {
                    tracing::error!(%error, "cannot kick a disk's server");
                }
                ring.completion().for_each(drop);
            }
            // If there is no room, the thread has yet to take what is there, and writes after it has.
            Way::Thread(thread) => {
                let _ = thread.try_send(());
            }
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // A thread that the server has held up is let go.
        if matches!(self.way, Way::Thread(_)) {
            // SAFETY: open as long as `self`.
            let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
            let mut count = [0; 8];
            let mut buffer = [IoSliceMut::new(&mut count)];
            let _ = preadv2(event, &mut buffer, u64::MAX, ReadWriteFlags::NOWAIT);
        }
    }
}

fn ring(event: &EventFd) -> io::Result<IoUring> {
    let ring = IoUring::new(1)?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    Ok(ring)
}

fn thread(event: &EventFd, threads: &Threads) -> io::Result<SyncSender<()>> {
    if Arc::strong_count(threads) > THREADS {
        return Err(io::Error::other(
            "servers hold up too many threads that kick them",
        ));
    }
    let (event, running) = (event.try_clone()?, threads.clone());
    let (send, take) = sync_channel(1);
    std::thread::Builder::new().name("kick".into()).spawn(move || {
        ringblk::affinity::run_anywhere();
        let _running = running;
        while take.recv().is_ok() {
            // A full counter has kicked already.
            let _ = event.write(1);
        }
    })?;
    Ok(send)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn soon(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_server_is_kicked_and_holds_nobody_up() {
        for io_uring in [true, false] {
            let threads = Threads::default();
            let mut kick = Kick::new(io_uring, &threads).unwrap();
            assert_eq!(matches!(kick.way, Way::Thread(_)), !io_uring);
            let server = kick.for_server().unwrap();
            for _ in 0..3 {
                kick.kick();
                soon(|| server.read().is_ok());
            }
            assert_eq!(server.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            // SAFETY: open as long as `server`.
            let fd = unsafe { BorrowedFd::borrow_raw(server.as_raw_fd()) };
            fcntl_setfl(fd, OFlags::RDWR).unwrap();
            server.write(u64::MAX - 1).unwrap();
            for _ in 0..1000 {
                kick.kick();
            }
            drop(kick);
            soon(|| Arc::strong_count(&threads) == 1);
        }
    }

    #[test]
    fn threads_that_are_held_up_are_limited() {
        let threads = Threads::default();
        let kicks: Vec<_> = (0..THREADS)
            .map(|_| Kick::new(false, &threads).unwrap())
            .collect();
        assert!(Kick::new(false, &threads).is_err());
        drop(kicks);
        soon(|| Kick::new(false, &threads).is_ok());
    }
}
