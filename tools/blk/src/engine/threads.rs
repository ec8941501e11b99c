//! The thread-pool engine: blocking `preadv` and `pwritev`, which work everywhere.
//!
//! One thread pushes and reaps; the workers tell it of completions through an `eventfd`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Engine, IoDone, IoOp, perform};
use crate::reactor::wait::eventfd;

/// Workers of a pool.
pub const WORKERS: usize = 8;

#[derive(Default)]
struct Shared {
    jobs: VecDeque<IoOp>,
    done: Vec<IoDone>,
    stop: bool,
}

struct Pool {
    shared: Mutex<Shared>,
    work: Condvar,
    event: File,
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
            let Some(op) = shared.jobs.pop_front() else {
                shared = self.work.wait(shared).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(shared);
            // SAFETY: by the contract of `Engine::push`.
            let done = unsafe { perform(&op) };
            shared = self.lock();
            shared.done.push(done);
            // Later ones find the event still set, or the list taken and empty.
            if shared.done.len() == 1 {
                // An eventfd write fails only when its counter is full, and then it is readable anyway.
                let _ = (&self.event).write(&1_u64.to_ne_bytes());
            }
        }
    }
}

/// A pool with its operations.
pub struct Threads {
    pool: Arc<Pool>,
    workers: Vec<JoinHandle<()>>,
    /// Until they are submitted, so that a round locks the pool once, whatever it has.
    pushed: Vec<IoOp>,
}

impl Threads {
    /// Starts the workers.
    pub fn new() -> io::Result<Self> {
        let event = File::from(eventfd()?);
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
                    crate::affinity::run_anywhere();
                    pool.run();
                })?;
            engine.workers.push(worker);
        }
        Ok(engine)
    }

    /// An `eventfd` that is readable when there is something to reap.
    #[must_use]
    pub fn event(&self) -> RawFd {
        self.pool.event.as_raw_fd()
    }

    /// Another descriptor of it.
    pub(crate) fn event_copy(&self) -> io::Result<File> {
        self.pool.event.try_clone()
    }

    /// Whether there is something to reap.
    pub(crate) fn has_done(&self) -> bool {
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
        self.pool.lock().jobs.extend(self.pushed.drain(..));
        if count == 1 {
            self.pool.work.notify_one();
        } else {
            self.pool.work.notify_all();
        }
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        done.append(&mut self.pool.lock().done);
    }
}

impl Drop for Threads {
    /// Waits for what is being done; what was not begun never is.
    fn drop(&mut self) {
        self.pool.lock().stop = true;
        self.pool.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker does not panic; were it to, its operation would have ended all the same.
            let _ = worker.join();
        }
    }
}
