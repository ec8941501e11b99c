//! Console byte rings of a zone. Positions are counts of bytes since the start and never wrap in practice
//! (2^64).
//!
//! - Output: [`OutputProducer`] at EL2 never waits and never reads what the daemon writes. [`OutputConsumer`]
//!   in the daemon reports how many bytes were overwritten before it read them.
//! - Input: [`InputProducer`] in the daemon waits for room, [`InputConsumer`] at EL2 uses a private read
//!   position; an invalid write position counts as an empty ring.

use crate::sync::{AtomicU8, AtomicU64, Ordering, fence, mutated, ordering};

/// The shared words of console output, written by EL2.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Bytes are being written up to this position: those a ring's length before it are not valid.
    pub claimed: &'a AtomicU64,
    /// Bytes are complete up to this position.
    pub written: &'a AtomicU64,
    /// A power of two of bytes.
    pub bytes: &'a [AtomicU8],
}

/// The shared words of console input.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Bytes are complete up to this position; written by the daemon.
    pub written: &'a AtomicU64,
    /// Bytes are read up to this position; written by EL2 and never read by it.
    pub read: &'a AtomicU64,
    /// A power of two of bytes.
    pub bytes: &'a [AtomicU8],
}

/// Returns the byte at a position; `None` only for a ring without bytes.
fn at(bytes: &[AtomicU8], position: u64) -> Option<&AtomicU8> {
    let mask = bytes.len().checked_sub(1)? as u64;
    bytes.get((position & mask) as usize)
}

/// EL2's side of console output. One CPU at a time, under the UART's lock.
#[derive(Debug, Default)]
pub struct OutputProducer {
    written: u64,
}

impl OutputProducer {
    /// Starts at position 0.
    pub const fn new() -> Self {
        Self { written: 0 }
    }

    /// Starts at any position.
    pub const fn starting_at(written: u64) -> Self {
        Self { written }
    }

    /// Appends `data`, overwriting the oldest bytes if need be.
    pub fn write(&mut self, ring: &Output<'_>, data: &[u8]) {
        let end = self.written.wrapping_add(data.len() as u64);
        ring.claimed.store(end, Ordering::Relaxed);
        // Pairs with the fence in OutputConsumer::read: a reader that saw one of the new bytes sees the
        // claim.
        if !mutated("output_claim_fence") {
            fence(Ordering::Release);
        }
        for &byte in data {
            if let Some(cell) = at(ring.bytes, self.written) {
                cell.store(byte, Ordering::Relaxed);
            }
            self.written = self.written.wrapping_add(1);
        }
        ring.written
            .store(end, ordering("output_written", Ordering::Release));
    }

    /// Returns the number of bytes ever written.
    pub const fn written(&self) -> u64 {
        self.written
    }
}

/// Result of [`OutputConsumer::read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputRead {
    /// Bytes that were overwritten before they could be read; they precede those that were.
    pub dropped: u64,
    /// Bytes at the beginning of the buffer.
    pub len: usize,
}

/// The daemon's side of console output.
#[derive(Debug, Default)]
pub struct OutputConsumer {
    read: u64,
}

impl OutputConsumer {
    /// Starts at a position; 0 reads everything that is still there.
    pub const fn starting_at(read: u64) -> Self {
        Self { read }
    }

    /// Returns the position of the next byte.
    pub const fn position(&self) -> u64 {
        self.read
    }

    /// Reads as many bytes as are available and fit.
    pub fn read(&mut self, ring: &Output<'_>, buffer: &mut [u8]) -> OutputRead {
        let size = ring.bytes.len() as u64;
        let written = ring.written.load(ordering("output_read", Ordering::Acquire));
        // After a restart of EL2 the position is ahead of what it has written.
        if self.read.wrapping_sub(written) as i64 > 0 {
            self.read = written;
        }
        let mut dropped = written.wrapping_sub(self.read).saturating_sub(size);
        let start = self.read.wrapping_add(dropped);
        let len = written.wrapping_sub(start).min(buffer.len() as u64) as usize;
        for (target, position) in buffer.iter_mut().take(len).zip(start..) {
            *target = at(ring.bytes, position).map_or(0, |cell| cell.load(Ordering::Relaxed));
        }
        if !mutated("output_check_fence") {
            fence(Ordering::Acquire);
        }
        // Drop what EL2 has begun to overwrite meanwhile.
        let claimed = ring.claimed.load(Ordering::Relaxed);
        let torn = claimed.wrapping_sub(start).saturating_sub(size).min(len as u64) as usize;
        if torn > 0 {
            buffer.copy_within(torn..len, 0);
            dropped = dropped.wrapping_add(torn as u64);
        }
        self.read = start.wrapping_add(len as u64);
        OutputRead {
            dropped,
            len: len - torn,
        }
    }
}

/// The daemon's side of console input.
#[derive(Debug)]
pub struct InputProducer {
    written: u64,
}

impl InputProducer {
    /// Continues where the last producer ended, or at EL2's position if that end is not valid.
    #[must_use]
    pub fn attach(ring: &Input<'_>) -> Self {
        let written = ring.written.load(Ordering::Relaxed);
        let read = ring.read.load(Ordering::Acquire);
        if written.wrapping_sub(read) <= ring.bytes.len() as u64 {
            Self { written }
        } else {
            ring.written.store(read, Ordering::Release);
            Self { written: read }
        }
    }

    /// Appends as much of `data` as there is room for and returns its length. The caller then notifies EL2.
    pub fn write(&mut self, ring: &Input<'_>, data: &[u8]) -> usize {
        let size = ring.bytes.len() as u64;
        // Acquire and InputConsumer::pop's release keep a new byte from overtaking the load of the old one.
        // No test can notice: in loom as in Miri no load returns a value that is stored later.
        let read = ring.read.load(Ordering::Acquire);
        let room = size.saturating_sub(self.written.wrapping_sub(read));
        let len = room.min(data.len() as u64) as usize;
        for (&byte, position) in data.iter().take(len).zip(self.written..) {
            if let Some(cell) = at(ring.bytes, position) {
                cell.store(byte, Ordering::Relaxed);
            }
        }
        self.written = self.written.wrapping_add(len as u64);
        ring.written
            .store(self.written, ordering("input_written", Ordering::Release));
        len
    }
}

/// EL2's side of console input. One CPU at a time, under the UART's lock.
#[derive(Debug, Default)]
pub struct InputConsumer {
    read: u64,
}

impl InputConsumer {
    /// Starts at position 0.
    pub const fn new() -> Self {
        Self { read: 0 }
    }

    /// Returns the number of bytes available, at most the ring's length; 0 if the daemon's position is not
    /// valid.
    pub fn len(&self, ring: &Input<'_>) -> usize {
        let ahead = ring
            .written
            .load(ordering("input_len", Ordering::Acquire))
            .wrapping_sub(self.read);
        if ahead <= ring.bytes.len() as u64 {
            ahead as usize
        } else {
            0
        }
    }

    /// Returns whether no byte is available.
    pub fn is_empty(&self, ring: &Input<'_>) -> bool {
        self.len(ring) == 0
    }

    /// Removes and returns one byte.
    pub fn pop(&mut self, ring: &Input<'_>) -> Option<u8> {
        if self.is_empty(ring) {
            return None;
        }
        let byte = at(ring.bytes, self.read)?.load(Ordering::Relaxed);
        self.read = self.read.wrapping_add(1);
        ring.read.store(self.read, Ordering::Release);
        Some(byte)
    }
}
