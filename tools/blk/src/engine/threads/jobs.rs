//! [`Jobs`]: the operations that wait for a thread of the pool, by owner, and the pieces of long ones.
//!
//! Owners take turns, and one has at most half of the threads. What takes long is done in pieces, with the
//! other owners' turns in between.

use std::collections::VecDeque;

use ringvirtio::Completion;
use ringvirtio::memory::IoVec;

use super::WORKERS;
use crate::engine::{IoKind, IoOp, perform};

/// Most threads that work for one owner.
const OWNER_MAX: usize = WORKERS / 2;
/// Bytes of a transfer after which it ends short: the queue submits the rest as another operation.
const TRANSFER_MAX: u64 = 1 << 20;
/// Bytes of a range that are discarded or zeroed in one piece. Pieces end at multiples of it, so that no
/// cluster is cut.
const RANGE_MAX: u64 = 64 << 20;

/// An operation and how far it is.
pub struct Job {
    op: IoOp,
    /// Bytes of a discard or of zeroes that are done.
    done: u64,
}

impl Job {
    /// Does a piece. Returns the completion if it was the last one.
    ///
    /// # Safety
    /// As for [`crate::engine::Engine::push`].
    pub unsafe fn step(&mut self) -> Option<Completion> {
        match self.op.kind {
            IoKind::Discard | IoKind::WriteZeroes { .. } => {
                let offset = self.op.offset.saturating_add(self.done);
                let to_boundary = RANGE_MAX - offset % RANGE_MAX;
                let len = (self.op.len - self.done).min(to_boundary);
                let piece = IoOp {
                    offset,
                    len,
                    ..self.op
                };
                // SAFETY: there are no buffers; the image lives, as the caller guarantees.
                let completion = unsafe { perform(&piece) };
                self.done += len;
                (completion.result < 0 || self.done >= self.op.len).then_some(completion)
            }
            // SAFETY: as the caller guarantees.
            IoKind::Sync => Some(unsafe { perform(&self.op) }),
            // SAFETY: as the caller guarantees.
            IoKind::Read | IoKind::Write | IoKind::WriteDurable => Some(unsafe { self.transfer() }),
        }
    }

    /// Does a transfer, or its first [`TRANSFER_MAX`] bytes.
    ///
    /// # Safety
    /// As for [`Self::step`].
    unsafe fn transfer(&self) -> Completion {
        // SAFETY: as the caller guarantees.
        let parts = unsafe { self.op.parts() };
        let mut len = 0;
        let mut count = 0;
        for part in parts {
            let with = len + part.len() as u64;
            if with > TRANSFER_MAX {
                break;
            }
            (len, count) = (with, count + 1);
        }
        let first: IoVec;
        let mut op = IoOp {
            len,
            count,
            ..self.op
        };
        if let (0, Some(part)) = (count, parts.first()) {
            first = part.front(TRANSFER_MAX as usize);
            (op.iov, op.count, op.len) = (&raw const first, 1, TRANSFER_MAX);
        }
        // SAFETY: the buffers are the operation's or the beginning of its first one.
        unsafe { perform(&op) }
    }
}

/// The jobs of one owner.
struct Owner {
    id: usize,
    jobs: VecDeque<Job>,
    running: usize,
}

/// Jobs that no thread works on.
#[derive(Default)]
pub struct Jobs {
    /// Owners with jobs that wait or run; it is the first one's turn.
    owners: VecDeque<Owner>,
    /// Empty lists for reuse.
    spare: Vec<VecDeque<Job>>,
}

impl Jobs {
    fn owner(&mut self, id: usize) -> Option<&mut Owner> {
        self.owners.iter_mut().find(|owner| owner.id == id)
    }

    /// Adds an operation.
    pub fn push(&mut self, op: IoOp) {
        let job = Job { op, done: 0 };
        if let Some(owner) = self.owner(op.owner) {
            owner.jobs.push_back(job);
            return;
        }
        let mut jobs = self.spare.pop().unwrap_or_default();
        jobs.push_back(job);
        self.owners.push_back(Owner {
            id: op.owner,
            jobs,
            running: 0,
        });
    }

    /// Returns the next job: of the first owner that has one and not too many threads, whose next turn is
    /// after all others'.
    pub fn take(&mut self) -> Option<Job> {
        let ready = |owner: &Owner| owner.running < OWNER_MAX && !owner.jobs.is_empty();
        let index = self.owners.iter().position(ready)?;
        let mut owner = self.owners.remove(index)?;
        let job = owner.jobs.pop_front();
        owner.running += 1;
        self.owners.push_back(owner);
        job
    }

    /// A thread has done a piece of a job; `more`: it was not the last one.
    pub fn put_back(&mut self, job: Job, more: bool) {
        let id = job.op.owner;
        let Some(index) = self.owners.iter().position(|owner| owner.id == id) else {
            return;
        };
        let Some(owner) = self.owners.get_mut(index) else {
            return;
        };
        owner.running -= 1;
        if more {
            // Behind the owner's other jobs: they may be short ones.
            owner.jobs.push_back(job);
        }
        if owner.running == 0
            && owner.jobs.is_empty()
            && let Some(owner) = self.owners.remove(index)
        {
            self.spare.push(owner.jobs);
        }
    }

    /// Returns whether [`Self::take`] would return a job.
    pub fn has_waiting(&self) -> bool {
        self.owners
            .iter()
            .any(|owner| owner.running < OWNER_MAX && !owner.jobs.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::ptr;

    use ringvirtio::memory::IoVec;

    use super::{IoKind, IoOp, Job, Jobs, OWNER_MAX, RANGE_MAX, TRANSFER_MAX};
    use crate::disk::{Disk, DiskConfig, HostCache};

    fn op(owner: usize, tag: u64) -> IoOp {
        IoOp {
            tag,
            image: ptr::null(),
            kind: IoKind::Sync,
            iov: ptr::null(),
            count: 0,
            offset: 0,
            len: 0,
            owner,
            immediate: false,
        }
    }

    // 100 operations of one guest are before one of another, which is second all the same.
    #[test]
    fn owners_take_turns() {
        let mut jobs = Jobs::default();
        (0..100).for_each(|tag| jobs.push(op(1, tag)));
        jobs.push(op(2, 1000));
        jobs.push(op(2, 1001));
        let mut order = Vec::new();
        while let Some(job) = jobs.take() {
            order.push(job.op.tag);
            jobs.put_back(job, false);
        }
        assert_eq!(order[..5], [0, 1000, 1, 1001, 2]);
        assert_eq!(order.len(), 102);
        assert!(jobs.owners.is_empty());
    }

    #[test]
    fn one_owner_has_half_of_the_threads() {
        let mut jobs = Jobs::default();
        (0..100).for_each(|tag| jobs.push(op(1, tag)));
        let running: Vec<Job> = std::iter::from_fn(|| jobs.take()).collect();
        assert_eq!(running.len(), OWNER_MAX);
        assert!(!jobs.has_waiting());
        jobs.push(op(2, 1000));
        assert_eq!(jobs.take().unwrap().op.tag, 1000, "there is a thread left");
        for job in running {
            jobs.put_back(job, false);
        }
        assert!(jobs.has_waiting());
    }

    #[test]
    fn a_long_job_lets_others_pass_between_its_pieces() {
        let mut jobs = Jobs::default();
        jobs.push(op(1, 0));
        let job = jobs.take().unwrap();
        jobs.push(op(2, 1));
        jobs.push(op(1, 2));
        jobs.put_back(job, true);
        let mut order = Vec::new();
        while let Some(job) = jobs.take() {
            order.push(job.op.tag);
            jobs.put_back(job, false);
        }
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn ranges_and_transfers_are_done_in_pieces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = 4 * RANGE_MAX;
        file.as_file().set_len(size).unwrap();
        let disk = Disk::open(&DiskConfig {
            path: file.path().into(),
            // Whatever the buffers' alignment.
            cache: HostCache::Writeback,
            ..DiskConfig::default()
        })
        .unwrap();
        let (offset, len) = (RANGE_MAX / 2, 2 * RANGE_MAX + 4096);
        let steps = |kind, iov: *const IoVec, count, len| {
            let mut job = Job {
                op: IoOp {
                    image: disk.image(),
                    kind,
                    iov,
                    count,
                    offset,
                    len,
                    ..op(1, 0)
                },
                done: 0,
            };
            let mut steps = 1;
            loop {
                // SAFETY: disk and buffers live.
                if let Some(done) = unsafe { job.step() } {
                    return (steps, done.result);
                }
                steps += 1;
            }
        };
        // To the middle of the first piece, a whole one, and 4 KiB more than half of one.
        assert_eq!(steps(IoKind::Discard, ptr::null(), 0, len), (3, 0));
        let mut bytes = vec![7_u8; 2 * TRANSFER_MAX as usize];
        let all = bytes.len() as u64;
        let whole = [IoVec::of(&mut bytes)];
        let most = TRANSFER_MAX as i32;
        assert_eq!(steps(IoKind::Write, whole.as_ptr(), 1, all), (1, most));
        let half: Vec<IoVec> = bytes.chunks_mut(3 << 18).map(IoVec::of).collect();
        let count = half.len() as u32;
        assert_eq!(steps(IoKind::Write, half.as_ptr(), count, all), (1, 3 << 18));
        assert!(file.as_file().metadata().unwrap().blocks() > 0);
    }
}
