//! [`Port`]: a port: its streams, as its queues and the daemon's threads use them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::memory::{INPUT, OutputRead, PortMemory, Word};

/// Called on the reactor's thread when there is new output; must not block.
pub type OnOutput = Box<dyn Fn() + Send>;

/// The size of a console in characters; 0: unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A port.
pub struct Port {
    memory: Arc<PortMemory>,
    /// Held while a ring is used.
    rings: Mutex<()>,
    /// The driver has read input.
    room: Condvar,
    on_output: Mutex<Option<OnOutput>>,
}

impl Port {
    /// Returns the port that has this memory.
    pub(crate) fn new(memory: Arc<PortMemory>) -> Self {
        Self {
            memory,
            rings: Mutex::new(()),
            room: Condvar::new(),
            on_output: Mutex::new(None),
        }
    }

    /// Returns its memory.
    #[must_use]
    pub const fn memory(&self) -> &Arc<PortMemory> {
        &self.memory
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `notify` whenever there is new output.
    pub fn on_output(&self, notify: OnOutput) {
        *self.on_output.lock().unwrap_or_else(PoisonError::into_inner) = Some(notify);
    }

    /// Reads output from a position on, as much as there is and fits.
    pub fn read_output(&self, position: u64, to: &mut [u8]) -> OutputRead {
        let _lock = self.lock();
        self.memory.read_output(position, to)
    }

    /// Appends to the input what there is room for, and returns how many bytes. The device's queues must be
    /// scheduled then.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let _lock = self.lock();
        self.memory.type_in(bytes)
    }

    /// Waits until there is room for input, or until the time has expired.
    pub fn wait_for_room(&self, timeout: Duration) {
        let lock = self.lock();
        let full = |&mut (): &mut ()| self.memory.waiting() == INPUT;
        drop(self.room.wait_timeout_while(lock, timeout, full));
    }

    /// Returns its size.
    #[must_use]
    pub fn size(&self) -> Size {
        let size = self.memory.get(Word::Size) as u32;
        Size {
            columns: size as u16,
            rows: (size >> 16) as u16,
        }
    }

    pub(crate) fn set_size(&self, size: Size) {
        let rows = u64::from(size.rows) << 16;
        self.memory.set(Word::Size, rows | u64::from(size.columns));
    }

    /// Returns whether input waits.
    pub(crate) fn has_input(&self) -> bool {
        self.memory.waiting() > 0
    }

    /// The transmit queue was set up, with these heads started by an earlier daemon: forgets the head that
    /// was being appended if it was completed.
    pub(crate) fn recover_output(&self, started: &[u16]) {
        if !is_among(self.memory.get(Word::ChainHead), started) {
            self.memory.advance(Word::ChainHead, 0);
        }
    }

    /// Appends some of a chain's bytes; the head is started in the log.
    pub(crate) fn append(&self, bytes: &[u8]) {
        let _lock = self.lock();
        self.memory.append(bytes);
    }

    /// Returns how many bytes of a head, which is started, are in the output already.
    pub(crate) fn begin_chain(&self, head: u16) -> u64 {
        let name = u64::from(head) + 1;
        if self.memory.get(Word::ChainHead) != name {
            // Nothing was appended since it was started.
            self.memory
                .advance(Word::ChainStart, self.memory.get(Word::Written));
            self.memory.advance(Word::ChainHead, name);
        }
        let start = self.memory.get(Word::ChainStart);
        self.memory.get(Word::Written).saturating_sub(start)
    }

    /// The head is complete in the log.
    pub(crate) fn end_chain(&self) {
        self.memory.advance(Word::ChainHead, 0);
    }

    /// There is new output.
    pub(crate) fn notify_output(&self) {
        if let Some(notify) = &*self.on_output.lock().unwrap_or_else(PoisonError::into_inner) {
            notify();
        }
    }

    /// The receive queue was set up, with these heads started by an earlier daemon: if it had completed
    /// another with input, that was read.
    pub(crate) fn recover_input(&self, started: &[u16]) {
        let name = self.memory.get(Word::InputHead);
        if name != 0 && !is_among(name, started) {
            self.end_input();
        }
        self.memory.advance(Word::InputHead, 0);
    }

    /// Copies input for a head that is started, and returns how many bytes.
    pub(crate) fn peek_input(&self, to: &mut [u8]) -> usize {
        let _lock = self.lock();
        self.memory.peek_input(to)
    }

    /// The head is about to be completed with so much input.
    pub(crate) fn begin_input(&self, head: u16, len: usize) {
        let end = self.memory.get(Word::Read).wrapping_add(len as u64);
        self.memory.advance(Word::InputEnd, end);
        self.memory.advance(Word::InputHead, u64::from(head) + 1);
    }

    /// It is complete in the log.
    pub(crate) fn end_input(&self) {
        let lock = self.lock();
        let end = self.memory.get(Word::InputEnd);
        self.memory.advance(Word::Read, end);
        self.memory.advance(Word::InputHead, 0);
        drop(lock);
        self.room.notify_all();
    }
}

/// Returns whether a head's name is that of one of these.
fn is_among(name: u64, heads: &[u16]) -> bool {
    heads.iter().any(|head| u64::from(*head) + 1 == name)
}
