//! [`MirrorEngine`]: runs a mirror's operations on threads that are its alone, so that a slow target keeps no other disk
//! waiting.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::engine::threads::Threads;
use crate::engine::{Engine, IoDone, IoOp};
use crate::remote::RemoteEngine;

/// A pool for one disk.
pub struct MirrorEngine {
    pool: Threads,
    event: Arc<File>,
}

impl MirrorEngine {
    /// Starts the threads.
    pub fn new() -> io::Result<Self> {
        let pool = Threads::new()?;
        let event = Arc::new(pool.event_copy()?);
        Ok(Self { pool, event })
    }
}

impl Engine for MirrorEngine {
    unsafe fn push(&mut self, op: IoOp) {
        // SAFETY: says the caller.
        unsafe { self.pool.push(op) }
    }

    fn submit(&mut self) {
        self.pool.submit();
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        self.pool.reap(done);
    }
}

impl RemoteEngine for MirrorEngine {
    fn event(&self) -> Arc<File> {
        self.event.clone()
    }

    fn has_done(&self) -> bool {
        self.pool.has_done()
    }

    fn arm(&mut self) -> bool {
        self.pool.has_done()
    }

    /// Each of its operations ends by itself, soon: none can be forgotten, since threads are at work at it.
    fn abandon(&mut self, _tag_base: u64) -> bool {
        false
    }
}
