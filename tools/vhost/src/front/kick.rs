//! [`Kick`]: notifies a server of requests without ever blocking on it.
//!
//! The server shares the open file description of the `eventfd`: at any time it can fill the counter and
//! clear `O_NONBLOCK`, and from then on a `write` would block the reactor's thread, which all disks share.
//! The kernel has no non-blocking write to an `eventfd` (RWF_NOWAIT works for reads only), and a check
//! beforehand would race with the server. But the kernel's own signals never block (`eventfd_signal`), and an
//! io_uring sends one with each completion. So each kick has a small ring of its own, where a kick is a
//! no-op: one system call, as a `write` is.
//!
//! Where io_uring is not available, or not wanted, a thread writes: one more wake-up for each kick, and only
//! that thread blocks. A process that restricts its system calls reserves rings before ([`reserve`]): no ring
//! is made afterwards, and these do nothing but signal.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use io_uring::{IoUring, opcode, register};
use parking_lot::Mutex;
use rustix::io::{ReadWriteFlags, preadv2};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What may be registered in a ring once it is enabled (`linux/io_uring.h`): IORING_REGISTER_EVENTFD and
/// IORING_UNREGISTER_EVENTFD.
const REGISTRATIONS: [u8; 2] = [4, 5];

/// Rings that no kick uses.
static RESERVE: Mutex<Vec<IoUring>> = Mutex::new(Vec::new());

/// Makes rings for `count` kicks, or as many as the system allows.
pub fn reserve(count: usize) {
    let rings = (0..count).map_while(|_| restricted().ok());
    RESERVE.lock().extend(rings);
}

/// Most threads of one disk, including those that earlier servers still block.
const THREADS: usize = 64;

/// Counts a disk's threads: each holds a reference, and so does the disk.
pub type Threads = Arc<()>;

/// Kicks one queue.
pub struct Kick {
    event: EventFd,
    way: Way,
}

enum Way {
    /// Signals the event with each completion; `None` when it is dropped.
    Ring(Option<Box<IoUring>>),
    /// Makes the thread write, unless it is about to.
    Thread(SyncSender<()>),
}

impl Kick {
    /// Uses a ring if `io_uring` is set and the system supports it, else a thread.
    ///
    /// # Errors
    /// No descriptors or threads are left.
    pub fn new(io_uring: bool, threads: &Threads) -> io::Result<Self> {
        Self::of(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, io_uring, threads)
    }

    /// As [`Self::new`], by this event descriptor.
    ///
    /// # Errors
    /// As there.
    pub fn of(event: EventFd, io_uring: bool, threads: &Threads) -> io::Result<Self> {
        let way = match io_uring.then(|| ring(&event)) {
            Some(Ok(ring)) => Way::Ring(Some(Box::new(ring))),
            _ => Way::Thread(thread(&event, threads)?),
        };
        Ok(Self { event, way })
    }

    /// Returns the server's descriptor.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn for_server(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Kicks the server, without blocking.
    pub fn kick(&mut self) {
        match &mut self.way {
            Way::Ring(None) => {}
            Way::Ring(Some(ring)) => {
                let nothing = opcode::Nop::new().build();
                // If the ring is full, the previous kick is still pending and has the same effect.
                // SAFETY: the operation has no buffer.
                let _ = unsafe { ring.submission().push(&nothing) };
                if let Err(error) = ring.submit() {
                    tracing::error!(%error, "cannot kick a disk's server");
                }
                ring.completion().for_each(drop);
            }
            // If the channel is full, the thread has not received the previous kick and writes after it has.
            Way::Thread(thread) => {
                let _ = thread.try_send(());
            }
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        if let Way::Ring(ring) = &mut self.way
            && let Some(ring) = ring.take()
            && ring.submitter().unregister_eventfd().is_ok()
        {
            RESERVE.lock().push(*ring);
        }
        // Unblocks a thread that the server blocks.
        if matches!(self.way, Way::Thread(_)) {
            // SAFETY: open as long as `self`.
            let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
            let mut count = [0; 8];
            let mut buffer = [IoSliceMut::new(&mut count)];
            let _ = preadv2(event, &mut buffer, u64::MAX, ReadWriteFlags::NOWAIT);
        }
    }
}

/// Returns a ring that signals `event`.
fn ring(event: &EventFd) -> io::Result<IoUring> {
    let reserved = RESERVE.lock().pop();
    let ring = reserved.map_or_else(restricted, Ok)?;
    ring.submitter().register_eventfd(event.as_raw_fd())?;
    Ok(ring)
}

/// Returns a ring that only executes no-ops.
fn restricted() -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(1)?;
    let mut allowed = vec![register::Restriction::sqe_op(opcode::Nop::CODE)];
    allowed.extend(REGISTRATIONS.map(register::Restriction::register_op));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

fn thread(event: &EventFd, threads: &Threads) -> io::Result<SyncSender<()>> {
    if Arc::strong_count(threads) > THREADS {
        return Err(io::Error::other("servers block too many threads that kick them"));
    }
    let (event, running) = (event.try_clone()?, threads.clone());
    let (send, take) = sync_channel(1);
    std::thread::Builder::new().name("kick".into()).spawn(move || {
        ringvirtio::affinity::run_anywhere();
        let _running = running;
        while take.recv().is_ok() {
            // A full counter is a kick already.
            let _ = event.write(1);
        }
    })?;
    Ok(send)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::{Kick, THREADS, Threads, Way};

    fn soon(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_kick_never_blocks() {
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
    fn blocked_threads_are_limited() {
        let threads = Threads::default();
        let kicks: Vec<_> = (0..THREADS)
            .map(|_| Kick::new(false, &threads).unwrap())
            .collect();
        assert!(Kick::new(false, &threads).is_err());
        drop(kicks);
        soon(|| Kick::new(false, &threads).is_ok());
    }
}
