//! Large writes to files in memory are made in pieces.
//!
//! Before Linux 6.13 a file on tmpfs claims to have pages of 2 MiB, whether it has them or not. A write of `n` pages then
//! touches all that are left of its buffers before it copies the next one of 4 KiB: `n²/2` times in all, 33 000 for 1 MiB,
//! each of which is a walk of two page tables where the TLB has fewer entries than the write has pages. What it does not
//! touch are buffers that were registered. So a large registered buffer is a piece of its own, and the others are taken
//! together up to [`PIECE`] bytes.

use crate::engine::IoKind;
use crate::image::file::RawFile;
use crate::memory::IoVec;

/// Bytes of a piece of buffers that are not registered.
pub const PIECE: usize = 64 << 10;

/// Whether a transfer is made in pieces.
pub fn wanted(kind: IoKind, file: &RawFile, len: u64) -> bool {
    matches!(kind, IoKind::Write | IoKind::WriteDurable) && file.is_memory() && len > PIECE as u64
}

/// How many of these buffers are the first piece, and their bytes: at least one, if there is one.
pub fn first(parts: &[IoVec]) -> (usize, u64) {
    let mut bytes = 0;
    for (count, part) in parts.iter().enumerate() {
        if count > 0 && bytes + part.len() > PIECE {
            return (count, bytes as u64);
        }
        bytes += part.len();
    }
    (parts.len(), bytes as u64)
}

/// What has become of a write's pieces, which end in any order.
#[derive(Default)]
pub struct Progress {
    tag: u64,
    /// Where each piece ends, in bytes from the write's beginning.
    ends: Vec<u64>,
    /// Pieces that have not ended.
    left: usize,
    /// Bytes from the beginning without a gap, and what ended them if that was an error.
    good: u64,
    error: i32,
}

impl Progress {
    /// A write that begins. What it was before is forgotten.
    pub fn begin(&mut self, tag: u64) {
        self.ends.clear();
        (self.tag, self.left, self.good, self.error) = (tag, 0, u64::MAX, 0);
    }

    /// One more piece, of so many bytes.
    pub fn push(&mut self, bytes: u64) {
        self.ends.push(self.end() + bytes);
        self.left += 1;
    }

    /// Bytes of all pieces.
    pub fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Pieces so far.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// A piece has ended with bytes or `-errno`. Tag and result of the whole, if that was the last: the bytes up to the first
    /// that were not written, or the error if there are none. Bytes behind a gap are written again.
    pub fn ended(&mut self, piece: usize, result: i32) -> Option<(u64, i32)> {
        let end = self.ends.get(piece).copied()?;
        let start = piece
            .checked_sub(1)
            .and_then(|before| self.ends.get(before).copied())
            .unwrap_or(0);
        let reached = start.saturating_add(u64::try_from(result).unwrap_or(0)).min(end);
        if reached < end && reached < self.good {
            self.good = reached;
            self.error = result.min(0);
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return None;
        }
        let bytes = i32::try_from(self.good.min(self.end())).unwrap_or(i32::MAX);
        Some((self.tag, if bytes > 0 { bytes } else { self.error }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(sizes: &[usize], memory: &mut [u8]) -> Vec<IoVec> {
        sizes.iter().map(|&size| IoVec::of(&mut memory[..size])).collect()
    }

    #[test]
    fn small_buffers_are_taken_together_and_large_ones_alone() {
        let mut memory = vec![0; 3 * PIECE];
        let mut sizes = |sizes: &[usize]| {
            let parts = buffers(sizes, &mut memory);
            let (mut rest, mut pieces) = (&parts[..], Vec::new());
            while !rest.is_empty() {
                let (count, bytes) = first(rest);
                pieces.push((count, bytes as usize));
                rest = &rest[count..];
            }
            pieces
        };
        assert_eq!(sizes(&[4096; 33]), [(16, PIECE), (16, PIECE), (1, 4096)]);
        assert_eq!(
            sizes(&[512, 3 * PIECE, 512, PIECE - 512, 1]),
            [(1, 512), (1, 3 * PIECE), (2, PIECE), (1, 1)]
        );
        assert_eq!(sizes(&[PIECE]), [(1, PIECE)]);
        assert_eq!(first(&[]), (0, 0));
    }

    #[test]
    fn a_write_is_as_good_as_its_pieces_up_to_the_first_gap() {
        let outcome = |results: [(usize, i32); 3]| {
            let mut progress = Progress::default();
            progress.begin(1);
            progress.push(5);
            progress.begin(77);
            for bytes in [100, 200, 300] {
                progress.push(bytes);
            }
            let [a, b, c] = results.map(|(piece, result)| progress.ended(piece, result));
            assert_eq!((a, b), (None, None));
            let (tag, result) = c.unwrap();
            assert_eq!(tag, 77);
            result
        };
        assert_eq!(outcome([(2, 300), (0, 100), (1, 200)]), 600);
        assert_eq!(outcome([(2, 300), (0, 100), (1, 199)]), 299);
        assert_eq!(outcome([(2, -5), (0, 100), (1, 200)]), 300);
        assert_eq!(outcome([(2, -5), (0, 30), (1, -6)]), 30);
        assert_eq!(outcome([(0, -4), (1, 200), (2, -5)]), -4);
        assert_eq!(outcome([(2, 300), (1, -5), (0, 0)]), 0);
        // More than was asked for is not believed.
        assert_eq!(outcome([(0, 101), (1, -5), (2, 300)]), 100);
    }
}
