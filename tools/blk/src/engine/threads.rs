//! The thread-pool engine: blocking system calls, for every kind of image and every kernel.
//!
//! One thread pushes and reaps; the workers signal completions to it through an `eventfd`. Which operation is
//! next is decided by [`Jobs`]: guests take turns.

mod jobs;

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use jobs::Jobs;
use ringvirtio::Completion;
use ringvirtio::waiter::eventfd;

use super::{Engine, IoOp};

/// Workers of a pool.
pub const WORKERS: usize = 8;

#[derive(Default)]
struct Shared {
    jobs: Jobs,
    done: Vec<Completion>,
    stop: bool,
}

struct Pool {
    shared: Mutex<Shared>,
    work: Condvar,
    event: Arc<File>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut shared = self.lock();
        loop {
            if shared.stop {
                return;
            }
            let Some(mut job) = shared.jobs.take() else {
                shared = self.work.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(shared);
            // SAFETY: by the contract of `Engine::push`.
            let done = unsafe { job.step() };
            shared = self.lock();
            // What its owner's limit kept from starting is taken by this thread, in the next iteration, or by
            // one that it wakes.
            shared.jobs.put_back(job, done.is_none());
            if shared.jobs.has_waiting() {
                self.work.notify_one();
            }
            let Some(done) = done else { continue };
            shared.done.push(done);
            // Later completions find the event still set, or the list reaped and empty.
            if shared.done.len() == 1 {
                // The write fails only if the counter is full, and then the eventfd is readable anyway.
                let _ = (&*self.event).write(&1_u64.to_ne_bytes());
            }
        }
    }
}

/// A pool of threads with its operations.
pub struct Threads {
    pool: Arc<Pool>,
    workers: Vec<JoinHandle<()>>,
    /// Not submitted yet, so that a round locks the pool only once.
    pushed: Vec<IoOp>,
}

impl Threads {
    /// Starts the workers.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn new() -> io::Result<Self> {
        let event = Arc::new(File::from(eventfd()?));
        let pool = Arc::new(Pool {
            shared: Mutex::default(),
            work: Condvar::new(),
            event,
        });
        let mut engine = Self {
            pool,
            workers: Vec::with_capacity(WORKERS),
            pushed: Vec::new(),
        };
        for number in 0..WORKERS {
            let pool = engine.pool.clone();
            let worker = thread::Builder::new()
                .name(format!("blk-io-{number}"))
                .spawn(move || {
                    ringvirtio::affinity::run_anywhere();
                    pool.run();
                })?;
            engine.workers.push(worker);
        }
        Ok(engine)
    }

    /// Returns an `eventfd` that is readable when there are completions to reap.
    pub fn event(&self) -> &Arc<File> {
        &self.pool.event
    }

    /// Returns whether there are completions to reap.
    pub(crate) fn has_completions(&self) -> bool {
        !self.pool.lock().done.is_empty()
    }
}

impl Engine for Threads {
    unsafe fn push(&mut self, op: IoOp) {
        self.pushed.push(op);
    }

    fn submit(&mut self) {
        let count = self.pushed.len();
        if count == 0 {
            return;
        }
        let mut shared = self.pool.lock();
        self.pushed.drain(..).for_each(|op| shared.jobs.push(op));
        drop(shared);
        if count == 1 {
            self.pool.work.notify_one();
        } else {
            self.pool.work.notify_all();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.pool.lock().done);
    }
}

impl Drop for Threads {
    /// Waits for the running operations; the others are never started.
    fn drop(&mut self) {
        self.pool.lock().stop = true;
        self.pool.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker does not panic; even if it did, its operation would have ended.
            let _ = worker.join();
        }
    }
}
