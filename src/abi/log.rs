//! EL2's log, in read-only pages of BAR 0 from [`OFFSET`] on: [`Log`], a header and a ring of text.
//!
//! A start of EL2 does not clear this memory, so the text outlives a reset of the machine that keeps RAM, and
//! the next EL2 continues it. Lines end with CR LF, as they are sent to the UART. EL2 writes text before the
//! position that counts it; a reader reads the position, copies, reads the position again, and drops what may
//! have been overwritten meanwhile ([`intact`]).

use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::BAR_SIZE;

/// Offset in BAR 0.
pub const OFFSET: usize = 0x6_0000;
/// Bytes of header and text: whole pages.
pub const SIZE: usize = 32 << 10;
/// Bytes of text in the ring.
pub const CAPACITY: usize = SIZE - 64;
/// Longest line in bytes, with CR LF; EL2 cuts longer ones.
pub const MAX_LINE: usize = 256;

/// Offset in the log of the number of bytes ever written.
pub const WRITTEN: usize = offset_of!(Log, written);

/// "RVEL2LOG".
const MAGIC: u64 = u64::from_le_bytes(*b"RVEL2LOG");

/// The log. Only loads and stores, no read-modify-write, because EL2 maps the memory non-cacheable: writers
/// hold a lock of EL2's.
#[repr(C)]
pub struct Log {
    magic: AtomicU64,
    /// Bytes ever written, over all starts.
    written: AtomicU64,
    /// `written` at the beginning of the last panic's text, plus 1; 0 if none.
    panic: AtomicU64,
    /// Starts of EL2 since the memory lost its content.
    starts: AtomicU64,
    reserved: [AtomicU64; 4],
    text: [AtomicU8; CAPACITY],
}

const _: () = assert!(size_of::<Log>() == SIZE && offset_of!(Log, text) == SIZE - CAPACITY);
const _: () = assert!(OFFSET + SIZE <= BAR_SIZE as usize && SIZE.is_multiple_of(4096));

/// What [`Log::open`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    /// Which start this is, from 1.
    pub starts: u64,
    /// Where the text of the panic begins that ended the last start; `None` if none did.
    pub panic: Option<u64>,
}

impl Log {
    /// Continues the log that is in memory, or begins one. Called once at each start.
    pub fn open(&self) -> Opened {
        if self.magic.load(Ordering::Relaxed) != MAGIC {
            for word in [&self.written, &self.panic, &self.starts] {
                word.store(0, Ordering::Relaxed);
            }
            self.magic.store(MAGIC, Ordering::Relaxed);
        }
        let starts = self.starts.load(Ordering::Relaxed).wrapping_add(1);
        self.starts.store(starts, Ordering::Relaxed);
        let panic = self.panic.load(Ordering::Relaxed).checked_sub(1);
        self.panic.store(0, Ordering::Relaxed);
        Opened {
            starts,
            panic: panic.map(|panic| panic.clamp(self.oldest(), self.written())),
        }
    }

    /// Appends text. The caller holds the writers' lock.
    pub fn append(&self, text: &[u8]) {
        let mut position = self.written();
        for &byte in text {
            if let Some(place) = self.text.get(place(position)) {
                place.store(byte, Ordering::Relaxed);
            }
            position = position.wrapping_add(1);
        }
        self.written.store(position, Ordering::Release);
    }

    /// Marks that a panic's text begins here.
    pub fn begin_panic(&self) {
        self.panic
            .store(self.written().wrapping_add(1), Ordering::Relaxed);
    }

    /// Returns the number of bytes ever written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Returns the position of the oldest byte in the ring.
    pub fn oldest(&self) -> u64 {
        self.written().saturating_sub(CAPACITY as u64)
    }

    /// Returns the byte at a position from [`Self::oldest`] up to, excluding, [`Self::written`].
    pub fn byte(&self, position: u64) -> u8 {
        let place = self.text.get(place(position));
        place.map_or(0, |byte| byte.load(Ordering::Relaxed))
    }
}

/// Returns the index of the byte at `position`.
const fn place(position: u64) -> usize {
    (position % CAPACITY as u64) as usize
}

/// Returns the whole lines in `copy`, a copy of the log's [`SIZE`] bytes, oldest first. `after` is the second
/// word of the log, read after the copy was made. `None` if it is no log.
pub fn intact(copy: &[u8], after: u64) -> Option<Vec<u8>> {
    let word = |index: usize| {
        let bytes = copy.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let text = copy.get(SIZE - CAPACITY..SIZE)?;
    let before = word(0).filter(|magic| *magic == MAGIC).and_then(|_| word(1))?;
    // A line that is being written may have overwritten the oldest bytes.
    let oldest = (after.saturating_add(MAX_LINE as u64)).saturating_sub(CAPACITY as u64);
    let mut lines: Vec<u8> = (oldest..before)
        .filter_map(|position| text.get(place(position)).copied())
        .collect();
    if oldest > 0 {
        let first = lines
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(lines.len(), |end| end + 1);
        lines.drain(..first);
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use alloc::format;
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    use super::{CAPACITY, Log, MAX_LINE, Opened, SIZE, intact};

    /// Memory as it is after power-on.
    fn log() -> Box<Log> {
        let word = || AtomicU64::new(0x5a5a_5a5a_5a5a_5a5a);
        Box::new(Log {
            magic: word(),
            written: word(),
            panic: word(),
            starts: word(),
            reserved: [word(), word(), word(), word()],
            text: [const { AtomicU8::new(0xa5) }; CAPACITY],
        })
    }

    fn copy(log: &Log) -> Vec<u8> {
        let words = [&log.magic, &log.written, &log.panic, &log.starts];
        let mut copy: Vec<u8> = words
            .into_iter()
            .chain(&log.reserved)
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        copy.extend(log.text.iter().map(|byte| byte.load(Ordering::Relaxed)));
        assert_eq!(copy.len(), SIZE);
        copy
    }

    #[test]
    fn text_outlives_a_start() {
        let log = log();
        let opened = |starts, panic| Opened { starts, panic };
        assert_eq!(log.open(), opened(1, None));
        log.append(b"first\r\n");
        assert_eq!(log.open(), opened(2, None));
        log.append(b"second\r\n");
        assert_eq!(
            intact(&copy(&log), log.written()).unwrap(),
            b"first\r\nsecond\r\n"
        );
    }

    #[test]
    fn a_panic_is_reported_to_the_next_start_only() {
        let log = log();
        log.open();
        log.append(b"before\r\n");
        log.begin_panic();
        log.append(b"EL2 PANIC\r\n");
        let panic = log.open().panic.unwrap();
        let text: Vec<u8> = (panic..log.written()).map(|at| log.byte(at)).collect();
        assert_eq!(text, b"EL2 PANIC\r\n");
        assert_eq!(log.open().panic, None);
        // At the very beginning, and overwritten by what followed.
        let log = self::log();
        log.open();
        log.begin_panic();
        log.append(&[b'x'; CAPACITY + 5]);
        assert_eq!(log.open().panic, Some(5));
    }

    #[test]
    fn old_lines_give_way_and_no_line_is_torn() {
        let log = log();
        log.open();
        for number in 0..5000 {
            log.append(format!("line {number}\r\n").as_bytes());
        }
        assert_eq!(log.byte(log.written() - 1), b'\n');
        let text = intact(&copy(&log), log.written()).unwrap();
        assert!(text.len() > CAPACITY - 2 * MAX_LINE && text.len() < CAPACITY);
        let text = core::str::from_utf8(&text).unwrap();
        for (expected, line) in (5000 - text.lines().count()..).zip(text.lines()) {
            assert_eq!(line, format!("line {expected}"));
        }
        // Much was written while the copy was made: what of it is old is dropped, not mixed.
        assert_eq!(intact(&copy(&log), log.written() + SIZE as u64).unwrap(), b"");
        let later = intact(&copy(&log), log.written() + 1000).unwrap();
        assert!(text.as_bytes().ends_with(&later) && later.starts_with(b"line "));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let mut bytes = copy(&log());
        assert_eq!(intact(&bytes, 0), None);
        assert_eq!(intact(&[], 0), None);
        let log = log();
        log.open();
        bytes = copy(&log);
        assert_eq!(intact(&bytes, 0), Some(Vec::new()));
        bytes.pop();
        assert_eq!(intact(&bytes, 0), None);
    }
}
