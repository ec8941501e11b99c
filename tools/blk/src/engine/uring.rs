//! The io_uring engine. Its ring is also where the reactor sleeps: file I/O and watched descriptors complete in one
//! `io_uring_enter`.
//!
//! The ring belongs to the thread that made it (SINGLE_ISSUER, DEFER_TASKRUN where the kernel has them). What it does
//! itself is transfers that the file takes as they are, and syncs; large ones from and to memory are [`copies`]; all else is for a pool of
//! threads of its own, made when first needed: the kernel would hand such operations to threads as well.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::copies::Copies;
use super::registry::Registry;
use super::threads::Threads;
use super::{Engine, IoDone, IoKind, IoOp, perform};
use crate::image::Image;
use crate::image::file::RawFile;
use crate::memory::{GuestRam, IoVec};
use crate::reactor::wait::{ReadWidth, Ready, Sleep};

/// Set in the user data of a watch; the rest is its number. Without it, the user data is an operation's tag.
const WATCH: u64 = 1 << 63;
/// The user data of the helpers' watch.
const HELPERS: u64 = u64::MAX;
/// The user data of a watch's removal.
const UNWATCHED: u64 = u64::MAX - 1;

struct Watch {
    fd: RawFd,
    width: ReadWidth,
    /// Where the kernel stores what it reads; leaked, for a read may be outstanding when the ring is dropped.
    buffer: &'static mut [u8; 8],
    /// Its poll is being taken back: what it still says is of no interest, and its last word frees the number.
    leaving: bool,
}

impl Watch {
    fn new(fd: RawFd, width: ReadWidth) -> Self {
        let buffer = Box::leak(Box::new([0; 8]));
        let leaving = false;
        Self {
            fd,
            width,
            buffer,
            leaving,
        }
    }

    fn entry(&mut self, data: u64) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let entry = if self.polls() {
            opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build()
        } else {
            opcode::Read::new(fd, self.buffer.as_mut_ptr(), self.width.bytes() as u32)
                .offset(u64::MAX)
                .build()
        };
        entry.user_data(data)
    }

    /// Whether it is polled for good and never read. A uio driver counts its interrupts and has nothing but a blocking
    /// `read` to tell that the count has changed. io_uring must not call that: it finds the file readable, gets EAGAIN and
    /// asks again, 128 times (some 200 000 instructions), until it leaves the read to a thread. Of interest is only that
    /// there was one, which a multishot poll says at each wake-up, without being asked again. A foreign eventfd may be
    /// non-blocking, for which a read of io_uring's ends at once; its count grows, which takes ages to matter, or does what
    /// the other process wants, which harms that one.
    fn polls(&self) -> bool {
        self.width != ReadWidth::Eight
    }
}

/// Threads for what a ring does not do.
struct Helpers {
    pool: Threads,
    watch: Watch,
}

/// A ring with its operations and watches.
pub struct Uring {
    ring: IoUring,
    in_flight: usize,
    /// Operations for which the submission queue had no room.
    backlog: VecDeque<IoOp>,
    done: Vec<IoDone>,
    copies: Copies,
    watches: Vec<Watch>,
    /// Numbers of watches that have ended.
    free_watches: Vec<usize>,
    /// Watches that are to be submitted again.
    rearm: Vec<usize>,
    registry: Registry,
    helpers: Option<Helpers>,
}

impl Uring {
    /// Keeps the kernel's threads for requests that wait on these CPUs. On the thread that submits.
    pub(crate) fn keep_workers_on(&self, cpus: &rustix::thread::CpuSet) -> io::Result<()> {
        // SAFETY: a cpu_set_t is an array of words, for which zeroes are valid.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)) {
            // SAFETY: the set has MAX_CPU bits.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        self.ring.submitter().register_iowq_aff(&set)
    }

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
            registry: Registry::new(&ring),
            helpers: None,
            ring,
            in_flight: 0,
            backlog: VecDeque::with_capacity(entries as usize),
            done: Vec::with_capacity(completions as usize),
            copies: Copies::new(entries),
            watches: Vec::new(),
            free_watches: Vec::new(),
            rearm: Vec::new(),
        })
    }

    /// Reads from `fd`, which must be blocking if it is ours, whenever there is something, until it fails; watch numbers count
    /// from 0.
    pub(crate) fn watch(&mut self, fd: RawFd, width: ReadWidth) -> usize {
        let free = self.free_watches.pop().unwrap_or(self.watches.len());
        match self.watches.get_mut(free) {
            Some(watch) => (watch.fd, watch.width, watch.leaving) = (fd, width, false),
            None => self.watches.push(Watch::new(fd, width)),
        }
        self.start_watch(free);
        free
    }

    /// Stops polling a foreign descriptor, which may be closed afterwards. Its number is used again when the poll has
    /// said its last: that it was taken back, or what it had said already.
    pub(crate) fn unwatch(&mut self, number: usize) {
        if let Some(watch) = self.watches.get_mut(number) {
            watch.leaving = true;
        }
        let entry = opcode::PollRemove::new(WATCH | number as u64).build();
        self.enqueue_watch(&entry.user_data(UNWATCHED));
        // Nothing in the queue names the descriptor any more. What cannot be submitted now is later, to no harm but
        // that of a poll too many.
        let _ = self.ring.submit();
    }

    fn start_watch(&mut self, number: usize) {
        let Some(watch) = self.watches.get_mut(number) else {
            return;
        };
        let entry = watch.entry(WATCH | number as u64);
        self.enqueue_watch(&entry);
    }

    fn start_helpers_watch(&mut self) {
        if let Some(helpers) = &mut self.helpers {
            let entry = helpers.watch.entry(HELPERS);
            self.enqueue_watch(&entry);
        }
    }

    fn enqueue_watch(&mut self, entry: &squeue::Entry) {
        if !self.enqueue(entry) {
            tracing::error!("io_uring: no room for a watch");
        }
    }

    /// The pool, started if need be.
    fn helpers(&mut self) -> io::Result<&mut Threads> {
        if self.helpers.is_none() {
            let pool = Threads::new()?;
            let watch = Watch::new(pool.event(), ReadWidth::Eight);
            self.helpers = Some(Helpers { pool, watch });
            self.start_helpers_watch();
        }
        match &mut self.helpers {
            Some(helpers) => Ok(&mut helpers.pool),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// # Safety
    /// As for [`Engine::push`].
    unsafe fn help(&mut self, op: IoOp) {
        match self.helpers() {
            // SAFETY: says the caller.
            Ok(pool) => unsafe { pool.push(op) },
            Err(error) => {
                tracing::warn!(%error, "no threads for disk requests: done in place");
                // SAFETY: says the caller.
                self.done.push(unsafe { perform(&op) });
            }
        }
    }

    fn reap_helpers(&mut self) {
        if let Some(helpers) = &mut self.helpers {
            helpers.pool.reap(&mut self.done);
        }
        self.start_helpers_watch();
    }

    /// Files and buffers registered.
    #[cfg(test)]
    pub(crate) fn registered(&self) -> (usize, usize) {
        self.registry.count()
    }

    /// Whether there is something left to copy.
    pub(crate) fn is_copying(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Forgets what is left to copy for the queue that has this tag, and says how many transfers that are.
    pub(crate) fn abandon(&mut self, tag: u64) -> u16 {
        self.copies.abandon(tag)
    }

    /// Whether something has completed, or will when the ring is entered, that was not taken yet. No system call.
    pub(crate) fn is_ready(&mut self) -> bool {
        if !self.done.is_empty() || self.is_copying() || !self.ring.completion().is_empty() {
            return true;
        }
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Starts what was pushed and sleeps until something has completed. Appends the watches that read something to
    /// `ready`; finished operations are left for [`Engine::reap`].
    pub(crate) fn wait(&mut self, sleep: Sleep, ready: &mut Vec<Ready>) -> io::Result<()> {
        self.drain_backlog();
        if let Some(helpers) = &mut self.helpers {
            helpers.pool.submit();
        }
        let idle = self.done.is_empty() && self.backlog.is_empty() && !self.is_copying();
        // What the kernel does goes on beside the copying.
        self.enter(if idle { sleep } else { Sleep::Not })?;
        self.copies.run_round(&mut self.done);
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
        let mut helped = false;
        for entry in self.ring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            if data & WATCH == 0 {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.done.push(IoDone { tag: data, result });
                continue;
            }
            if data == HELPERS {
                helped = true;
                continue;
            }
            if data == UNWATCHED {
                continue;
            }
            let number = (data & !WATCH) as usize;
            if self.watches.get(number).is_some_and(|watch| watch.leaving) {
                if !cqueue::more(entry.flags()) {
                    self.free_watches.push(number);
                }
                continue;
            }
            match result {
                1.. => ready.push(Ready { watch: number }),
                error if matches!(-error, libc::EINTR | libc::EAGAIN) => {}
                other => {
                    let error = io::Error::from_raw_os_error(-other);
                    tracing::error!(fd = watch_fd(&self.watches, number), %error, "watched descriptor failed");
                    continue;
                }
            }
            // A poll goes on by itself, unless completions were lost; it then begins with what is there.
            if !cqueue::more(entry.flags()) {
                self.rearm.push(number);
            }
        }
        while let Some(number) = self.rearm.pop() {
            self.start_watch(number);
        }
        if helped {
            self.reap_helpers();
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
            // SAFETY: by the contract of `Engine::push`.
            let entry = unsafe { native(&self.registry, op) };
            let Some(entry) = entry else {
                // It was native when it came.
                self.backlog.pop_front();
                continue;
            };
            if !self.enqueue(&entry) {
                return;
            }
            self.backlog.pop_front();
            self.in_flight += 1;
        }
    }
}

/// Whether the kernel does a disk's transfers: those of files in memory are copied here.
fn is_for_the_kernel(image: &Image) -> bool {
    !image.raw().is_some_and(RawFile::is_memory)
}

fn watch_fd(watches: &[Watch], number: usize) -> RawFd {
    watches.get(number).map_or(-1, |watch| watch.fd)
}

/// The entry for an operation that a ring does; `None` for others.
///
/// # Safety
/// As for [`Engine::push`].
unsafe fn native(registry: &Registry, op: &IoOp) -> Option<squeue::Entry> {
    // SAFETY: says the caller.
    let (file, parts) = unsafe { (op.image.get().raw()?, op.parts()) };
    let fits = match op.kind {
        IoKind::Sync => true,
        IoKind::Discard | IoKind::WriteZeroes { .. } => false,
        IoKind::Read | IoKind::Write | IoKind::WriteDurable => file.accepts(parts, op.offset),
    };
    fits.then(|| build(registry, op, file, parts).user_data(op.tag & !WATCH))
}

fn build(registry: &Registry, op: &IoOp, file: &RawFile, parts: &[IoVec]) -> squeue::Entry {
    let flags = if op.kind == IoKind::WriteDurable {
        libc::RWF_DSYNC
    } else {
        0
    };
    // The crate's types for a descriptor and for a slot have no name in common.
    macro_rules! on {
        ($file:expr) => {{
            let file = $file;
            match (op.kind, parts) {
                (IoKind::Sync, _) => opcode::Fsync::new(file)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build(),
                // A descriptor's length is 32 bits, so a single buffer's fits.
                (IoKind::Read, [one]) => match registry.buffer(one) {
                    Some(buffer) => opcode::ReadFixed::new(file, one.as_ptr(), one.len() as u32, buffer)
                        .offset(op.offset)
                        .build(),
                    None => opcode::Read::new(file, one.as_ptr(), one.len() as u32)
                        .offset(op.offset)
                        .build(),
                },
                (IoKind::Read, _) => opcode::Readv::new(file, op.iov.cast(), op.count)
                    .offset(op.offset)
                    .build(),
                (_, [one]) => match registry.buffer(one) {
                    Some(buffer) => opcode::WriteFixed::new(file, one.as_ptr(), one.len() as u32, buffer)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Write::new(file, one.as_ptr(), one.len() as u32)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                },
                (_, _) => opcode::Writev::new(file, op.iov.cast(), op.count)
                    .offset(op.offset)
                    .rw_flags(flags)
                    .build(),
            }
        }};
    }
    match registry.file(op.image) {
        Some(slot) => on!(types::Fixed(slot)),
        None => on!(types::Fd(file.fd())),
    }
}

impl Engine for Uring {
    fn attach(&mut self, image: &Image, ram: &Arc<GuestRam>) {
        if is_for_the_kernel(image) {
            self.registry.attach(&self.ring, image, ram);
        }
    }

    fn detach(&mut self, image: &Image, ram: &Arc<GuestRam>) {
        if is_for_the_kernel(image) {
            self.registry.detach(&self.ring, image, ram);
        }
    }

    unsafe fn push(&mut self, op: IoOp) {
        if op.immediate {
            // SAFETY: by this function's own contract.
            self.done.push(unsafe { perform(&op) });
            return;
        }
        // SAFETY: by this function's own contract.
        let file = unsafe { op.image.get().raw() };
        if op.kind.is_transfer() && file.is_some_and(RawFile::is_memory) {
            // SAFETY: by this function's own contract.
            return unsafe { self.copies.push(op) };
        }
        // SAFETY: by this function's own contract.
        let Some(entry) = (unsafe { native(&self.registry, &op) }) else {
            // SAFETY: by this function's own contract.
            return unsafe { self.help(op) };
        };
        // Behind the backlog, so that nothing is overtaken for ever.
        if self.backlog.is_empty() && self.enqueue(&entry) {
            self.in_flight += 1;
        } else {
            self.backlog.push_back(op);
        }
    }

    fn submit(&mut self) {
        self.drain_backlog();
        if let Some(helpers) = &mut self.helpers {
            helpers.pool.submit();
        }
        if let Err(error) = self.enter(Sleep::Not) {
            tracing::error!(%error, "io_uring: submit failed");
        }
        self.copies.run_round(&mut self.done);
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        done.append(&mut self.done);
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still does: it writes to memory that may go next.
    fn drop(&mut self) {
        self.backlog.clear();
        self.copies.clear();
        // Waits for its threads.
        self.helpers = None;
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
