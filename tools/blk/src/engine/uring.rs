//! The io_uring engine. Its ring is also where the reactor sleeps: file I/O and watched descriptors complete in one
//! `io_uring_enter`.
//!
//! The ring belongs to the thread that made it (SINGLE_ISSUER, DEFER_TASKRUN where the kernel has them).

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::{Engine, IoDone, IoKind, IoOp, fallocate_mode, perform};
use crate::reactor::wait::{ReadWidth, Ready, Sleep};

/// Set in the user data of a watch; the rest is its number. Else the user data is an operation's tag.
const WATCH: u64 = 1 << 63;

struct Watch {
    fd: RawFd,
    width: ReadWidth,
    /// Where the kernel stores what it reads; leaked, for a read may be outstanding when the ring is dropped.
    buffer: &'static mut [u8; 8],
}

/// A ring with its operations and watches.
pub struct Uring {
    ring: IoUring,
    in_flight: usize,
    /// Operations for which the submission queue had no room.
    backlog: VecDeque<IoOp>,
    done: Vec<IoDone>,
    watches: Vec<Watch>,
    /// Watches that read something and are to read again.
    rearm: Vec<usize>,
}

impl Uring {
    /// A ring with `entries` submissions; fails where the kernel or a policy forbids io_uring.
    pub fn new(entries: u32) -> io::Result<Self> {
        let completions = entries.saturating_mul(4);
        let ring = IoUring::builder()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Tells when completions wait for an enter that takes events, so that one which does not sleep can.
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_cqsize(completions).build(entries))?;
        // Sleeping with a deadline: Linux 5.11.
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        Ok(Self {
            ring,
            in_flight: 0,
            backlog: VecDeque::with_capacity(entries as usize),
            done: Vec::with_capacity(completions as usize),
            watches: Vec::new(),
            rearm: Vec::new(),
        })
    }

    /// Reads from `fd`, which must be blocking, whenever there is something, until it fails; watch numbers count
    /// from 0.
    pub(crate) fn watch(&mut self, fd: RawFd, width: ReadWidth) {
        let number = self.watches.len();
        self.watches.push(Watch {
            fd,
            width,
            buffer: Box::leak(Box::new([0; 8])),
        });
        self.start_watch(number);
    }

    fn start_watch(&mut self, number: usize) {
        let Some(watch) = self.watches.get_mut(number) else {
            return;
        };
        let entry = opcode::Read::new(types::Fd(watch.fd), watch.buffer.as_mut_ptr(), watch.width as u32)
            .offset(u64::MAX)
            .build()
            .user_data(WATCH | number as u64);
        if !self.enqueue(&entry) {
            tracing::error!(
                fd = watch_fd(&self.watches, number),
                "io_uring: no room for a watch"
            );
        }
    }

    /// Starts what was pushed and sleeps until something has completed. Appends the watches that read something to
    /// `ready`; finished operations are left for [`Engine::reap`].
    pub(crate) fn wait(&mut self, sleep: Sleep, ready: &mut Vec<Ready>) -> io::Result<()> {
        self.drain_backlog();
        let idle = self.done.is_empty() && self.backlog.is_empty();
        self.enter(if idle { sleep } else { Sleep::Not })?;
        self.collect(ready);
        Ok(())
    }

    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let queue = self.ring.submission();
        if sleep == Sleep::Not && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        let entered = match sleep {
            Sleep::Not => self.ring.submit_and_wait(0),
            Sleep::Forever => self.ring.submit_and_wait(1),
            Sleep::AtMost(time) => {
                let time = types::Timespec::from(time);
                let arguments = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time has passed; interrupted; or completions must be taken, or memory be free, before more is
                // accepted.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn collect(&mut self, ready: &mut Vec<Ready>) {
        for entry in self.ring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            if data & WATCH == 0 {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.done.push(IoDone { tag: data, result });
                continue;
            }
            let number = (data & !WATCH) as usize;
            match result {
                1.. => ready.push(Ready { watch: number }),
                error if matches!(-error, libc::EINTR | libc::EAGAIN) => {}
                other => {
                    let error = io::Error::from_raw_os_error(-other);
                    tracing::error!(fd = watch_fd(&self.watches, number), %error, "watched descriptor failed");
                    continue;
                }
            }
            self.rearm.push(number);
        }
        while let Some(number) = self.rearm.pop() {
            self.start_watch(number);
        }
    }

    /// Puts an entry on the submission queue, making room once if need be.
    fn enqueue(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: watches have leaked buffers; operations are valid by the contract of `Engine::push`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.ring.submit().is_err() {
                break;
            }
        }
        false
    }

    fn drain_backlog(&mut self) {
        while let Some(op) = self.backlog.front() {
            let entry = build(op);
            if !self.enqueue(&entry) {
                return;
            }
            self.backlog.pop_front();
            self.in_flight += 1;
        }
    }
}

fn watch_fd(watches: &[Watch], number: usize) -> RawFd {
    watches.get(number).map_or(-1, |watch| watch.fd)
}

fn build(op: &IoOp) -> squeue::Entry {
    let fd = types::Fd(op.fd);
    let flags = if op.kind == IoKind::WriteDurable {
        libc::RWF_DSYNC
    } else {
        0
    };
    let single = if op.count == 1 {
        // SAFETY: by the contract of `Engine::push`, `count` entries are there.
        unsafe { op.iov.as_ref() }
    } else {
        None
    };
    // A descriptor's length is 32 bits, so a single buffer's fits.
    let entry = match (op.kind, single) {
        (IoKind::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        (IoKind::Discard | IoKind::WriteZeroes { .. }, _) => opcode::Fallocate::new(fd, op.len)
            .offset(op.offset)
            .mode(fallocate_mode(op.kind))
            .build(),
        (IoKind::Read, Some(one)) => opcode::Read::new(fd, one.as_ptr(), one.len() as u32)
            .offset(op.offset)
            .build(),
        (IoKind::Read, None) => opcode::Readv::new(fd, op.iov.cast(), op.count)
            .offset(op.offset)
            .build(),
        (_, Some(one)) => opcode::Write::new(fd, one.as_ptr(), one.len() as u32)
            .offset(op.offset)
            .rw_flags(flags)
            .build(),
        (_, None) => opcode::Writev::new(fd, op.iov.cast(), op.count)
            .offset(op.offset)
            .rw_flags(flags)
            .build(),
    };
    entry.user_data(op.tag & !WATCH)
}

impl Engine for Uring {
    unsafe fn push(&mut self, op: IoOp) {
        if op.immediate {
            // SAFETY: by this function's own contract.
            self.done.push(unsafe { perform(&op) });
            return;
        }
        // Behind the backlog, so that nothing is overtaken for ever.
        if self.backlog.is_empty() && self.enqueue(&build(&op)) {
            self.in_flight += 1;
        } else {
            self.backlog.push_back(op);
        }
    }

    fn submit(&mut self) {
        self.drain_backlog();
        if let Err(error) = self.enter(Sleep::Not) {
            tracing::error!(%error, "io_uring: submit failed");
        }
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        done.append(&mut self.done);
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still does: it writes to memory that may go next.
    fn drop(&mut self) {
        self.backlog.clear();
        let mut ready = Vec::new();
        while self.in_flight > 0 {
            if let Err(error) = self.enter(Sleep::Forever) {
                tracing::error!(%error, in_flight = self.in_flight, "io_uring: cannot wait for I/O");
                std::process::abort();
            }
            self.watches.clear();
            self.collect(&mut ready);
        }
    }
}
