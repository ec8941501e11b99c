//! [`Polls`]: what a reactor has for queues that wait for a descriptor of their own, such as a network
//! device's: it polls the descriptors, and wakes the queues of a device that has changed.
//!
//! A poll is an operation of the reactor's io_uring. Without io_uring, descriptors are watched, and polled in
//! each round.

use std::io;
use std::os::fd::RawFd;

use io_uring::{opcode, types};

use crate::{Completion, ReactorBackend, ReadWidth, Waiter};

/// The low bits of a queue's tags: a poll has completed. Above them is the poll's number, so that one that
/// was cancelled too late is not taken for the next.
const POLLED: u64 = 0;
/// The device has changed.
const CHANGED: u64 = 1;
/// A poll was cancelled.
const CANCELLED: u64 = 2;
/// Bits of the above.
const KIND_BITS: u64 = 2;
/// Bits of a tag that are the queue's own.
const OWN: u64 = 0xffff;

/// A queue that is woken with its group.
struct Member {
    group: usize,
    tag_base: u64,
}

/// A poll without io_uring.
struct Poll {
    tag: u64,
    fd: RawFd,
    watch: usize,
    armed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Polls {
    members: Vec<Member>,
    /// Tags of queues that are to be woken.
    woken: Vec<u64>,
    polls: Vec<Poll>,
}

impl Polls {
    /// A queue comes to the reactor; [`Self::wake`] of its group, a device, wakes it.
    pub fn attach(&mut self, group: usize, tag_base: u64) {
        self.members.push(Member { group, tag_base });
    }

    /// The queue leaves.
    pub fn detach(&mut self, tag_base: u64) {
        self.members.retain(|member| member.tag_base != tag_base);
        self.woken.retain(|tag| !same_queue(*tag, tag_base));
    }

    /// Wakes the queues of a group.
    pub fn wake(&mut self, group: usize) {
        let members = self.members.iter().filter(|member| member.group == group);
        self.woken.extend(members.map(|member| member.tag_base | CHANGED));
    }

    /// Polls a descriptor until it can be read; then `tag` completes.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn poll_in(&mut self, waiter: &mut Waiter, fd: RawFd, tag: u64) -> io::Result<()> {
        if let Some(ring) = waiter.ring() {
            let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
            // SAFETY: no memory is named, and the descriptor is open: its owner drops it after `cancel`.
            unsafe { ring.push(entry, tag) };
            return Ok(());
        }
        if let Some(poll) = self.polls.iter_mut().find(|poll| same_queue(poll.tag, tag)) {
            (poll.tag, poll.armed) = (tag, true);
            return Ok(());
        }
        let watch = waiter.watch(fd, ReadWidth::Foreign)?;
        self.polls.push(Poll {
            tag,
            fd,
            watch,
            armed: true,
        });
        Ok(())
    }

    /// Polls a descriptor until it can be written; then `tag` completes. Returns `false` if the reactor
    /// cannot.
    pub fn poll_out(&mut self, waiter: &mut Waiter, fd: RawFd, tag: u64) -> bool {
        let Some(ring) = waiter.ring() else {
            return false;
        };
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLOUT as u32).build();
        // SAFETY: as above.
        unsafe { ring.push(entry, tag) };
        true
    }

    /// Returns whether there is something to reap, by a system call.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.woken.is_empty() || self.ready().iter().any(|events| *events != 0)
    }

    /// Returns the events of each poll that the ring does not carry out; nothing if none is armed.
    fn ready(&self) -> Vec<libc::c_short> {
        if !self.polls.iter().any(|poll| poll.armed) {
            return Vec::new();
        }
        let one = |poll: &Poll| libc::pollfd {
            // A negative one is not looked at.
            fd: if poll.armed { poll.fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds: Vec<libc::pollfd> = self.polls.iter().map(one).collect();
        // SAFETY: the array has that many entries.
        let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) };
        if count <= 0 {
            return Vec::new();
        }
        fds.iter().map(|fd| fd.revents).collect()
    }

    /// Cancels a poll, and forgets its descriptor, which may be closed afterwards. With io_uring the poll
    /// completes all the same.
    pub fn cancel(&mut self, waiter: &mut Waiter, tag: u64) {
        if let Some(ring) = waiter.ring() {
            let entry = opcode::PollRemove::new(tag).build();
            // SAFETY: neither memory nor a descriptor is named.
            unsafe { ring.push(entry, tag & !OWN | CANCELLED) };
            // No entry that names the descriptor stays in the submission queue.
            ring.submit();
        }
        self.forget(waiter, tag);
    }

    /// Forgets the descriptor that a queue's polls were of, armed or not: it may be closed afterwards, or be
    /// that of another queue.
    pub fn forget(&mut self, waiter: &mut Waiter, tag: u64) {
        if let Some(index) = self.polls.iter().position(|poll| same_queue(poll.tag, tag)) {
            let poll = self.polls.swap_remove(index);
            waiter.unwatch(poll.watch, poll.fd);
        }
    }
}

const fn same_queue(one: u64, other: u64) -> bool {
    one & !OWN == other & !OWN
}

/// The polls of a queue, of which one is armed at most.
#[derive(Default)]
pub struct PollState {
    number: u64,
    armed: Option<u64>,
}

impl PollState {
    /// Returns the tag of a new poll, which counts as armed.
    pub const fn begin(&mut self, tag_base: u64) -> u64 {
        self.number = (self.number + 1) & (OWN >> KIND_BITS);
        let tag = tag_base | self.number << KIND_BITS | POLLED;
        self.armed = Some(tag);
        tag
    }

    /// Returns whether a poll is armed.
    #[inline]
    pub const fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// An operation of the queue has completed. Returns whether the queue is to be serviced.
    pub fn complete(&mut self, tag: u64) -> bool {
        if self.armed == Some(tag) {
            self.armed = None;
            return true;
        }
        tag & OWN == CHANGED
    }

    /// Returns the poll that is armed, to be cancelled.
    pub const fn take(&mut self) -> Option<u64> {
        self.armed.take()
    }
}

impl ReactorBackend for Polls {
    fn submit(&mut self, _waiter: &mut Waiter) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.extend(self.woken.drain(..).map(|tag| Completion { tag, result: 0 }));
        let ready = self.ready();
        for (poll, events) in self.polls.iter_mut().zip(ready) {
            if events != 0 {
                poll.armed = false;
                done.push(Completion {
                    tag: poll.tag,
                    result: events.into(),
                });
            }
        }
    }

    fn has_completions(&self) -> bool {
        !self.woken.is_empty()
    }
}
