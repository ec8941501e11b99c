//! The engine of a migration: a thread pool of its own, so that a slow target delays no other disk.

use std::fs::File;
use std::sync::Arc;

use crate::engine::threads::Threads;
use crate::remote::RemoteEngine;

impl RemoteEngine for Threads {
    fn event(&self) -> Arc<File> {
        self.event_file().clone()
    }

    fn has_completions(&self) -> bool {
        Self::has_completions(self)
    }

    fn arm(&mut self) -> bool {
        Self::has_completions(self)
    }

    /// Returns `false`: threads access the buffers, so no operation can be dropped; each completes soon by
    /// itself.
    fn abandon(&mut self, _tag_base: u64) -> bool {
        false
    }
}
