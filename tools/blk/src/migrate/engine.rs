//! [`MigrationEngine`]: runs a migration's operations on threads of its own, so that a slow target delays no
//! other disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

use ringvirtio::Completion;

use crate::engine::threads::Threads;
use crate::engine::{Engine, IoOp};
use crate::remote::RemoteEngine;

/// A thread pool for one disk.
pub struct MigrationEngine {
    pool: Threads,
    event: Arc<File>,
}

impl MigrationEngine {
    /// Starts the threads.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn new() -> io::Result<Self> {
        let pool = Threads::new()?;
        let event = Arc::new(pool.event_copy()?);
        Ok(Self { pool, event })
    }
}

impl Engine for MigrationEngine {
    unsafe fn push(&mut self, op: IoOp) {
        // SAFETY: as for the caller.
        unsafe { self.pool.push(op) }
    }

    fn submit(&mut self) {
        self.pool.submit();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.pool.reap(done);
    }
}

impl RemoteEngine for MigrationEngine {
    fn event(&self) -> Arc<File> {
        self.event.clone()
    }

    fn has_completions(&self) -> bool {
        self.pool.has_completions()
    }

    fn arm(&mut self) -> bool {
        self.pool.has_completions()
    }

    /// Returns `false`: threads access the buffers, so no operation can be dropped; each completes soon by
    /// itself.
    fn abandon(&mut self, _tag_base: u64) -> bool {
        false
    }
}
