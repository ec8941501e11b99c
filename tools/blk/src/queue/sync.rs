//! [`SyncState`]: one `fdatasync` answers all requests that came before it started.
//! [`WriteCache`]: whether a completed write may still be in a cache.

use std::mem;

use crate::disk::Disk;

/// The `fdatasync` in progress and the next one.
pub struct SyncState {
    /// Heads that the one in progress answers.
    current: Vec<u16>,
    /// Those that came after its start, for which an `fdatasync` of their own follows.
    next: Vec<u16>,
    /// EINTR and EAGAIN in a row.
    pub retries: u8,
    /// When it was submitted.
    pub submitted_at: u64,
}

impl SyncState {
    pub fn new(size: usize) -> Self {
        Self {
            current: Vec::with_capacity(size),
            next: Vec::with_capacity(size),
            retries: 0,
            submitted_at: 0,
        }
    }

    /// Adds a request, which waits for an `fdatasync` that starts from now on. Returns whether that must be
    /// submitted.
    pub fn add(&mut self, head: u16) -> bool {
        let first = self.current.is_empty();
        if first {
            self.current.push(head);
            self.retries = 0;
        } else {
            self.next.push(head);
        }
        first
    }

    /// Returns the heads that the `fdatasync` in progress answers.
    pub fn current(&self) -> &[u16] {
        &self.current
    }

    /// Takes one of the heads that the completed `fdatasync` answers.
    pub fn pop(&mut self) -> Option<u16> {
        self.current.pop()
    }

    /// All are answered: returns whether the next `fdatasync` must be submitted. It starts after every write
    /// that completed before its requests came.
    pub fn advance(&mut self) -> bool {
        mem::swap(&mut self.current, &mut self.next);
        self.retries = 0;
        !self.current.is_empty()
    }
}

/// What was negotiated (5.2.6.2).
#[derive(Clone, Copy)]
enum Mode {
    /// No FLUSH: each write is durable before it completes.
    Through,
    /// FLUSH.
    Back,
    /// FLUSH and CONFIG_WCE: as the driver chooses from time to time.
    Chosen,
}

/// The mode of a queue's write cache.
pub struct WriteCache {
    mode: Mode,
    /// Whether it was write-back at the last call of [`Self::is_turned_off`].
    was_writeback: bool,
}

impl WriteCache {
    pub fn new(flush: bool, config_wce: bool, disk: &Disk) -> Self {
        let mode = match (flush, config_wce) {
            (false, _) => Mode::Through,
            (true, false) => Mode::Back,
            (true, true) => Mode::Chosen,
        };
        let mut cache = Self {
            mode,
            was_writeback: false,
        };
        cache.was_writeback = cache.is_writeback(disk);
        cache
    }

    /// Returns whether the driver may choose the mode.
    pub const fn is_chosen(&self) -> bool {
        matches!(self.mode, Mode::Chosen)
    }

    /// Returns whether completed writes may wait for a flush.
    pub fn is_writeback(&self, disk: &Disk) -> bool {
        match self.mode {
            Mode::Through => false,
            Mode::Back => true,
            Mode::Chosen => disk.control().writeback(),
        }
    }

    /// Returns whether the driver has turned the cache off since the last call.
    pub fn is_turned_off(&mut self, disk: &Disk) -> bool {
        let back = self.is_writeback(disk);
        std::mem::replace(&mut self.was_writeback, back) && !back
    }
}

#[cfg(test)]
mod tests {
    use super::SyncState;

    #[test]
    fn a_late_request_waits_for_the_next_sync() {
        let mut sync = SyncState::new(4);
        assert!(sync.add(1));
        assert!(!sync.add(2) && !sync.add(3));
        assert_eq!(sync.current(), [1]);
        assert_eq!((sync.pop(), sync.pop()), (Some(1), None));
        assert!(sync.advance());
        assert_eq!(sync.current(), [2, 3]);
        assert!(!sync.add(4));
        while sync.pop().is_some() {}
        assert!(sync.advance());
        assert_eq!((sync.pop(), sync.pop()), (Some(4), None));
        assert!(!sync.advance() && sync.add(1));
    }
}
