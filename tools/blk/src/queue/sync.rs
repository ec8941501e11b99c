//! [`SyncState`]: one `fdatasync` answers all requests that came before it started.

use std::mem;

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
