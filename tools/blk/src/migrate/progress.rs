//! [`Progress`]: how far a migration has come.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringvirtio::memory::Slots;

/// How many bytes the target has, in a word of memory that outlives the process.
pub struct Progress {
    words: Arc<Slots<AtomicU64>>,
    index: usize,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.get()).finish()
    }
}

impl Progress {
    /// Uses the word with this index.
    #[must_use]
    pub const fn new(words: Arc<Slots<AtomicU64>>, index: usize) -> Self {
        Self { words, index }
    }

    /// Returns the bytes.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.words
            .get(self.index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets the bytes.
    pub fn set(&self, bytes: u64) {
        if let Some(word) = self.words.get(self.index) {
            word.store(bytes, Ordering::Release);
        }
    }
}
