//! [`PortMemory`]: what a port keeps in memory that outlives the process: two rings of bytes, and words.
//!
//! Positions count bytes since the zone's start. The process may be killed between any two stores; which
//! stores come in which order is what [`crate::queue`] relies on. One thread at a time uses the rings
//! ([`crate::port`] has the lock); each word has one user.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ringvirtio::MemoryError;
use ringvirtio::memory::Slots;
use ringvirtio::steps::step;
use vm_memory::MmapRegion;

/// Bytes of output that are kept.
pub const OUTPUT: usize = 64 << 10;
/// Bytes of input that wait at most.
pub const INPUT: usize = 4 << 10;
/// Bytes of the words.
const WORDS: usize = 4 << 10;
/// Bytes of a port's memory, whole pages.
pub const BYTES: usize = WORDS + INPUT + OUTPUT;

/// A word. Zero before its first use ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Word {
    /// Output is being written up to here: what lies [`OUTPUT`] before it is not valid.
    Claimed,
    /// Output is complete up to here.
    Written,
    /// The head, plus 1, whose bytes are being appended to the output; 0: none.
    ChainHead,
    /// Where the first of its bytes is.
    ChainStart,
    /// Input is complete up to here.
    Typed,
    /// Input was read by the driver up to here.
    Read,
    /// The head, plus 1, that is being completed with input; 0: none.
    InputHead,
    /// Up to which position the driver has input once that head is complete.
    InputEnd,
    /// Control messages that are to be sent, by bit.
    Messages,
    /// Columns, then rows in the upper 16 of 32 bits.
    Size,
    /// The epoch of the words of control, plus 1.
    Epoch,
    /// Up to where a pty's or a socket's reader has the output.
    Sent,
    /// Up to where a log file has it.
    Logged,
    /// Where that will be after the write that was begun.
    LogNext,
    /// The length of the file before that write.
    LogLength,
    /// Bytes of that write.
    LogBytes,
}

/// The result of [`PortMemory::read_output`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OutputRead {
    /// Bytes that are not kept any more; they precede those that were read.
    pub dropped: u64,
    /// Bytes at the beginning of the buffer.
    pub len: usize,
    /// Position behind them.
    pub next: u64,
}

/// See the module.
pub struct PortMemory {
    words: Slots<AtomicU64>,
    input: Slots<AtomicU8>,
    output: Slots<AtomicU8>,
}

impl PortMemory {
    /// Takes [`BYTES`] bytes from `offset` on.
    ///
    /// # Errors
    /// They are outside of the mapping, or misaligned.
    pub fn in_mapping(mapping: &Arc<MmapRegion>, offset: usize) -> Result<Self, MemoryError> {
        Ok(Self {
            words: Slots::in_mapping(mapping, offset, WORDS / 8)?,
            input: Slots::in_mapping(mapping, offset.saturating_add(WORDS), INPUT)?,
            output: Slots::in_mapping(mapping, offset.saturating_add(WORDS + INPUT), OUTPUT)?,
        })
    }

    /// Returns a word.
    #[must_use]
    pub fn get(&self, word: Word) -> u64 {
        let word = self.words.get(word as usize);
        word.map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Stores a word.
    pub fn set(&self, word: Word, value: u64) {
        if let Some(word) = self.words.get(word as usize) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// As [`Self::set`], on the thread that drives the queues.
    pub(crate) fn advance(&self, word: Word, value: u64) {
        self.set(word, value);
        step("word stored");
    }

    /// Appends to the output, over the oldest bytes.
    pub(crate) fn append(&self, bytes: &[u8]) {
        let start = self.get(Word::Written);
        let end = start.wrapping_add(bytes.len() as u64);
        self.advance(Word::Claimed, end);
        store(&self.output, OUTPUT, start, bytes);
        step("output copied");
        self.advance(Word::Written, end);
    }

    /// Reads output from a position on, as much as there is and fits.
    pub(crate) fn read_output(&self, position: u64, to: &mut [u8]) -> OutputRead {
        let written = self.get(Word::Written);
        // A daemon that was killed while it appended has overwritten some of the oldest.
        let oldest = self.get(Word::Claimed).max(written).saturating_sub(OUTPUT as u64);
        let position = position.min(written);
        let start = position.max(oldest).min(written);
        let len = written.saturating_sub(start).min(to.len() as u64);
        load(&self.output, OUTPUT, start, to.iter_mut().take(len as usize));
        OutputRead {
            dropped: start.saturating_sub(position),
            len: len as usize,
            next: start.wrapping_add(len),
        }
    }

    /// Returns how many bytes of input wait.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = self.get(Word::Typed).saturating_sub(self.get(Word::Read));
        waiting.min(INPUT as u64) as usize
    }

    /// Appends to the input what there is room for, and returns how many bytes.
    pub(crate) fn type_in(&self, bytes: &[u8]) -> usize {
        let room = INPUT.saturating_sub(self.waiting());
        let start = self.get(Word::Typed);
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        store(&self.input, INPUT, start, bytes);
        self.set(Word::Typed, start.wrapping_add(bytes.len() as u64));
        bytes.len()
    }

    /// Copies the input that waits, as much as fits, and returns how many bytes.
    pub(crate) fn peek_input(&self, to: &mut [u8]) -> usize {
        let start = self.get(Word::Read);
        let len = self.waiting().min(to.len());
        load(&self.input, INPUT, start, to.iter_mut().take(len));
        len
    }
}

/// Stores bytes at a position of a ring, whose size is a power of two.
fn store(ring: &Slots<AtomicU8>, size: usize, start: u64, bytes: &[u8]) {
    for (offset, byte) in bytes.iter().enumerate() {
        if let Some(cell) = ring.get(place(start, offset, size)) {
            cell.store(*byte, Ordering::Relaxed);
        }
    }
}

/// Loads the bytes at a position of a ring.
fn load<'a>(ring: &Slots<AtomicU8>, size: usize, start: u64, to: impl Iterator<Item = &'a mut u8>) {
    for (offset, byte) in to.enumerate() {
        let cell = ring.get(place(start, offset, size));
        *byte = cell.map_or(0, |cell| cell.load(Ordering::Relaxed));
    }
}

const fn place(start: u64, offset: usize, size: usize) -> usize {
    (start.wrapping_add(offset as u64) & (size as u64 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::MmapRegion;

    use super::{BYTES, INPUT, OUTPUT, OutputRead, PortMemory, Word};

    fn memory() -> PortMemory {
        let mapping = Arc::new(MmapRegion::new(BYTES).unwrap());
        PortMemory::in_mapping(&mapping, 0).unwrap()
    }

    #[test]
    fn output_is_kept_and_the_oldest_is_dropped() {
        let memory = memory();
        memory.append(b"hello");
        let mut bytes = [0; 8];
        let read = memory.read_output(1, &mut bytes);
        let expected = OutputRead {
            dropped: 0,
            len: 4,
            next: 5,
        };
        assert_eq!((read, &bytes[..4]), (expected, &b"ello"[..]));
        memory.append(&vec![b'x'; OUTPUT - 2]);
        let read = memory.read_output(1, &mut bytes);
        assert_eq!((read.dropped, read.len, bytes[0], bytes[2]), (2, 8, b'l', b'x'));
        // Killed while it appended.
        memory.set(Word::Claimed, memory.get(Word::Written) + 100);
        assert_eq!(memory.read_output(1, &mut bytes).dropped, 102);
        // A position of another life.
        assert_eq!(memory.read_output(u64::MAX, &mut bytes).len, 0);
    }

    #[test]
    fn input_waits_until_it_is_read() {
        let memory = memory();
        assert_eq!(memory.type_in(&[b'a'; INPUT - 1]), INPUT - 1);
        assert_eq!(memory.type_in(b"bc"), 1);
        assert_eq!((memory.type_in(b"d"), memory.waiting()), (0, INPUT));
        memory.set(Word::Read, INPUT as u64 - 1);
        let mut bytes = [0; 8];
        assert_eq!((memory.peek_input(&mut bytes), bytes[0]), (1, b'b'));
        assert_eq!(memory.type_in(b"ef"), 2);
        assert_eq!((memory.peek_input(&mut bytes), &bytes[..3]), (3, &b"bef"[..]));
    }

    // The next daemon of another layout refuses nothing: words that are nonsense bound nothing else.
    #[test]
    fn any_words_are_survived() {
        let memory = memory();
        let mut bytes = [0; 8];
        for value in [0, 1, u64::MAX - 3, u64::MAX] {
            for word in [Word::Claimed, Word::Written, Word::Typed, Word::Read] {
                memory.set(word, value);
                memory.append(b"abc");
                let _ = memory.read_output(5, &mut bytes);
                let _ = memory.type_in(b"abc");
                let _ = memory.peek_input(&mut bytes);
            }
        }
    }
}
