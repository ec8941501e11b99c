//! What was written to an image's file, in order, for the replay of power cuts; and a file system that is
//! full.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What was done to the file.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written.
    Write { offset: u64, bytes: Vec<u8> },
    /// A sync ended; it covers this many of the events.
    Sync { covered: usize },
}

/// The events of a file.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
    /// Where the file's room ends; 0 if it does not.
    end: AtomicU64,
}

impl Recorder {
    pub fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, event: Event) {
        self.events().push(event);
    }

    pub fn len(&self) -> usize {
        self.events().len()
    }

    /// Lets writes behind this offset fail for lack of space.
    pub fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Relaxed);
    }

    /// Returns an error if there is no room for a write up to `end`.
    pub fn check_room(&self, end: u64) -> io::Result<()> {
        let room = self.end.load(Ordering::Relaxed);
        match room != 0 && end > room {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    }
}
