//! [`Uring`]: an io_uring that carries operations by tag and watches descriptors. A reactor's thread waits in
//! it: I/O and watched descriptors complete in one `io_uring_enter`.
//!
//! The ring belongs to the thread that enables it (SINGLE_ISSUER, DEFER_TASKRUN where the kernel has them).
//! How an operation becomes a submission queue entry is its device's business, but the kernel executes only
//! those in [`OPERATIONS`]: a system call filter does not see what a ring does, so the ring has its own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, register, squeue, types};

use super::registry::Registry;
use super::watch::ReadWidth;
use crate::handler::Completion;

/// The operations that the kernel executes: transfers of open files, and waiting. None opens, connects, sends
/// a descriptor or changes a file's size.
const OPERATIONS: [u8; 10] = [
    opcode::Nop::CODE,
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::ReadFixed::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
];
/// IOSQE_FIXED_FILE, the flag that operations may have.
const FIXED_FILE: u8 = 1;
/// What may be registered once the ring is enabled (`linux/io_uring.h`): IORING_REGISTER_FILES_UPDATE,
/// IORING_REGISTER_BUFFERS_UPDATE and IORING_REGISTER_IOWQ_AFF.
const REGISTRATIONS: [u8; 3] = [6, 16, 17];

/// Set in the user data of a watch; the rest is its number. Without it, the user data is an operation's tag.
const WATCH: u64 = 1 << 63;
/// The user data of a watch's removal.
const UNWATCHED: u64 = u64::MAX;

struct Watch {
    fd: RawFd,
    width: ReadWidth,
    /// Where the kernel stores what it reads; leaked, for a read may be outstanding when the ring is dropped.
    buffer: &'static mut [u8; 8],
    /// Its poll is being removed: its completions are ignored, and the last one frees the number.
    leaving: bool,
}

impl Watch {
    fn new(fd: RawFd, width: ReadWidth) -> Self {
        Self {
            fd,
            width,
            buffer: Box::leak(Box::default()),
            leaving: false,
        }
    }

    fn entry(&mut self, data: u64) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let entry = if self.is_polled() {
            opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build()
        } else {
            opcode::Read::new(fd, self.buffer.as_mut_ptr(), self.width.bytes() as u32)
                .offset(u64::MAX)
                .build()
        };
        entry.user_data(data)
    }

    /// Returns whether a multishot poll watches it, and it is never read. A uio driver counts its interrupts
    /// and has only a blocking `read` to report a change. io_uring must not issue that read: it finds the
    /// file readable, gets EAGAIN and retries 128 times (some 200 000 instructions) before it hands the read
    /// to a thread. All that matters is that there was an interrupt, which a multishot poll reports at each
    /// wake-up without being armed again. A foreign eventfd may be non-blocking, for which a read of io_uring
    /// completes at once; its count grows, which takes ages to matter, or does what the other process wants,
    /// which harms that process alone.
    fn is_polled(&self) -> bool {
        self.width != ReadWidth::Eight
    }
}

/// A ring with its operations and watches.
pub struct Uring {
    /// The ring, with the files and buffers whose slots operations may name.
    pub registry: Registry,
    in_flight: usize,
    /// Operations for which the submission queue had no room.
    backlog: VecDeque<squeue::Entry>,
    done: Vec<Completion>,
    watches: Vec<Watch>,
    /// Numbers of watches that have ended.
    free_watches: Vec<usize>,
    /// Watches that are to be submitted again.
    rearm: Vec<usize>,
}

impl Uring {
    /// Returns a ring with `entries` submissions, enabled for this thread.
    ///
    /// # Errors
    /// The kernel or a policy forbids io_uring, or the kernel is older than Linux 5.11.
    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = Self::disabled(entries)?;
        ring.enable()?;
        Ok(ring)
    }

    /// Returns a ring with `entries` submissions that does nothing before [`Self::enable`].
    ///
    /// # Errors
    /// The kernel or a policy forbids io_uring, or the kernel is older than Linux 5.11.
    pub fn disabled(entries: u32) -> io::Result<Self> {
        let completions = entries.saturating_mul(4);
        let ring = IoUring::builder()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Shows in memory that completions wait for an `io_uring_enter`, so that busy polling can see it.
            .setup_taskrun_flag()
            .setup_r_disabled()
            .build(entries)
            .or_else(|_| {
                IoUring::builder()
                    .setup_cqsize(completions)
                    .setup_r_disabled()
                    .build(entries)
            })?;
        // Waiting with a timeout: Linux 5.11.
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let registry = Registry::new(ring);
        let mut allowed: Vec<_> = OPERATIONS.map(register::Restriction::sqe_op).into();
        allowed.extend(REGISTRATIONS.map(register::Restriction::register_op));
        allowed.push(register::Restriction::sqe_flags_allowed(FIXED_FILE));
        registry.ring.submitter().register_restrictions(&mut allowed)?;
        Ok(Self {
            registry,
            in_flight: 0,
            backlog: VecDeque::with_capacity(entries as usize),
            done: Vec::with_capacity(completions as usize),
            watches: Vec::new(),
            free_watches: Vec::new(),
            rearm: Vec::new(),
        })
    }

    /// Enables the ring for the calling thread, which alone submits to it from now on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enable(&self) -> io::Result<()> {
        self.registry.ring.submitter().register_enable_rings()
    }

    /// Keeps the kernel's threads for requests that block on these CPUs. Called on the thread that submits.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_workers_on(&self, cpus: &rustix::thread::CpuSet) -> io::Result<()> {
        // SAFETY: a cpu_set_t is an array of words, for which zeroes are valid.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)) {
            // SAFETY: the set has MAX_CPU bits.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        self.registry.ring.submitter().register_iowq_aff(&set)
    }

    /// Submits an operation; it starts at the next [`Self::submit`] or [`Self::wait`] at the latest.
    ///
    /// # Safety
    /// Until its [`Completion`] was reaped or the ring was dropped, all memory and descriptors that the entry
    /// names stay valid.
    #[inline]
    pub unsafe fn push(&mut self, entry: squeue::Entry, tag: u64) {
        let entry = entry.user_data(tag & !WATCH);
        // Behind the backlog, so that no operation starves.
        if self.backlog.is_empty() && self.enqueue(&entry) {
            self.in_flight += 1;
        } else {
            self.backlog.push_back(entry);
        }
    }

    /// Starts all that was pushed.
    pub fn submit(&mut self) {
        self.drain_backlog();
        if let Err(error) = self.enter(Some(Duration::ZERO)) {
            tracing::error!(%error, "io_uring: submit failed");
        }
    }

    /// Appends what has completed to `done`, without waiting.
    #[inline]
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    /// Reads from `fd`, which must be blocking unless it is foreign, whenever it is readable, until that
    /// fails. Returns the watch's number.
    pub fn watch(&mut self, fd: RawFd, width: ReadWidth) -> usize {
        let free = self.free_watches.pop().unwrap_or(self.watches.len());
        match self.watches.get_mut(free) {
            Some(watch) => (watch.fd, watch.width, watch.leaving) = (fd, width, false),
            None => self.watches.push(Watch::new(fd, width)),
        }
        self.start_watch(free);
        free
    }

    /// Stops polling a foreign descriptor, which may be closed afterwards. Its number is used again once the
    /// last completion of the poll has arrived.
    pub fn unwatch(&mut self, number: usize) {
        if let Some(watch) = self.watches.get_mut(number) {
            watch.leaving = true;
        }
        let entry = opcode::PollRemove::new(WATCH | number as u64).build();
        self.enqueue_watch(&entry.user_data(UNWATCHED));
        // Afterwards no entry in the queue names the descriptor. What cannot be submitted now is submitted
        // later: a poll too many does no harm.
        let _ = self.registry.ring.submit();
    }

    fn start_watch(&mut self, number: usize) {
        let Some(watch) = self.watches.get_mut(number) else {
            return;
        };
        let entry = watch.entry(WATCH | number as u64);
        self.enqueue_watch(&entry);
    }

    fn enqueue_watch(&mut self, entry: &squeue::Entry) {
        if !self.enqueue(entry) {
            tracing::error!("io_uring: no room for a watch");
        }
    }

    /// Returns whether something has completed, or will when the ring is entered, that was not reaped yet. No
    /// system call.
    pub fn is_ready(&mut self) -> bool {
        if !self.done.is_empty() || !self.registry.ring.completion().is_empty() {
            return true;
        }
        let queue = self.registry.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Starts what was pushed and waits until something has completed, or for the timeout. Appends the
    /// watches that became readable to `ready`; completed operations are left for [`Self::reap`].
    ///
    /// # Errors
    /// `io_uring_enter` failed.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<usize>) -> io::Result<()> {
        self.drain_backlog();
        let idle = self.done.is_empty() && self.backlog.is_empty();
        self.enter(if idle { timeout } else { Some(Duration::ZERO) })?;
        self.collect(ready);
        Ok(())
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let queue = self.registry.ring.submission();
        if timeout == Some(Duration::ZERO) && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        let entered = match timeout {
            Some(Duration::ZERO) => self.registry.ring.submit_and_wait(0),
            None => self.registry.ring.submit_and_wait(1),
            Some(time) => {
                let time = types::Timespec::from(time);
                let arguments = types::SubmitArgs::new().timespec(&time);
                self.registry.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match entered {
            Ok(_) => Ok(()),
            // Timed out; interrupted; or completions must be taken, or memory be free, before more is
            // accepted.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn collect(&mut self, ready: &mut Vec<usize>) {
        for entry in self.registry.ring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            if data & WATCH == 0 {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.done.push(Completion { tag: data, result });
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
                1.. => ready.push(number),
                error if matches!(-error, libc::EINTR | libc::EAGAIN) => {}
                other => {
                    let error = io::Error::from_raw_os_error(-other);
                    let fd = self.watches.get(number).map_or(-1, |watch| watch.fd);
                    tracing::error!(fd, %error, "watched descriptor failed");
                    continue;
                }
            }
            // A multishot poll stays armed, unless completions were lost; armed again, it begins with what is
            // there.
            if !cqueue::more(entry.flags()) {
                self.rearm.push(number);
            }
        }
        while let Some(number) = self.rearm.pop() {
            self.start_watch(number);
        }
    }

    /// Puts an entry on the submission queue, making room once if need be.
    fn enqueue(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: watches have leaked buffers; operations are valid by the contract of `push`.
            if unsafe { self.registry.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.registry.ring.submit().is_err() {
                break;
            }
        }
        false
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.enqueue(&entry) {
                self.backlog.push_front(entry);
                return;
            }
            self.in_flight += 1;
        }
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still does: it writes to memory that may be freed next.
    fn drop(&mut self) {
        self.backlog.clear();
        let mut ready = Vec::new();
        while self.in_flight > 0 {
            if let Err(error) = self.enter(None) {
                tracing::error!(%error, in_flight = self.in_flight, "io_uring: cannot wait for I/O");
                std::process::abort();
            }
            self.watches.clear();
            self.collect(&mut ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use io_uring::{opcode, squeue, types};

    use super::Uring;

    // A worker that was taken over submits what it likes.
    #[cfg_attr(miri, ignore = "Miri has no io_uring")]
    #[test]
    fn a_ring_neither_opens_nor_connects_nor_makes_sockets() {
        let Ok(mut ring) = Uring::new(8) else {
            return;
        };
        let (here, nowhere) = (types::Fd(libc::AT_FDCWD), std::ptr::null());
        let operations = [
            opcode::OpenAt::new(here, c"/etc/passwd".as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(types::Fd(0), nowhere, 0).build(),
            opcode::UnlinkAt::new(here, c"/nowhere".as_ptr()).build(),
            opcode::Fallocate::new(types::Fd(0), 0).build(),
            opcode::Nop::new().build().flags(squeue::Flags::IO_LINK),
        ];
        for (tag, operation) in (0..).zip(operations) {
            // SAFETY: the only memory that an operation names is static.
            unsafe { ring.push(operation, tag) };
            ring.wait(Some(Duration::from_secs(10)), &mut Vec::new()).unwrap();
            let mut done = Vec::new();
            ring.reap(&mut done);
            let results: Vec<_> = done.iter().map(|done| (done.tag, done.result)).collect();
            assert_eq!(results, [(tag, -libc::EACCES)]);
        }
        let submitter = ring.registry.ring.submitter();
        let refused = submitter.register_eventfd(0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
}
