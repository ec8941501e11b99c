//! Large writes to files in memory are made in pieces.
//!
//! In Linux 6.12 (until 5a90c155defa) a file on tmpfs claims to have pages of 2 MiB, whether it has them or not. A write of
//! `n` pages then touches all that are left of its buffers before it copies the next one of 4 KiB: `n²/2` times in all,
//! 33 000 for 1 MiB, each of which is a walk of two page tables where the TLB has fewer entries than the write has pages.
//! What it does not touch are registered buffers. So a large registered buffer is a piece of its own, of one that is not
//! each [`PIECE`] bytes are, and small ones are taken together up to [`PIECE`] bytes.

use crate::engine::IoKind;
use crate::image::file::RawFile;
use crate::memory::IoVec;

/// Most bytes of a piece, but for a registered buffer.
pub const PIECE: usize = 64 << 10;

/// Whether a transfer is made in pieces.
pub fn wanted(kind: IoKind, file: &RawFile, len: u64) -> bool {
    matches!(kind, IoKind::Write | IoKind::WriteDurable) && file.is_memory() && len > PIECE as u64
}

/// What is next of a write.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    /// So many buffers.
    Whole(&'a [IoVec]),
    /// A part of one.
    Part(IoVec),
}

impl Piece<'_> {
    /// Its buffers.
    pub fn parts(&self) -> &[IoVec] {
        match self {
            Self::Whole(parts) => parts,
            Self::Part(part) => std::slice::from_ref(part),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.len() as u64).sum()
    }
}

/// The pieces of a write, in order.
pub struct Pieces<'a> {
    parts: &'a [IoVec],
    /// Bytes of the first buffer that were in pieces already.
    skip: usize,
}

impl<'a> Pieces<'a> {
    /// Of these buffers.
    pub fn new(parts: &'a [IoVec]) -> Self {
        Self { parts, skip: 0 }
    }

    /// The next piece; `registered` says which buffers need not be cut, and always the same.
    pub fn next(&mut self, registered: impl Fn(&IoVec) -> bool) -> Option<Piece<'a>> {
        let (first, behind) = self.parts.split_first()?;
        if first.len() > PIECE && !registered(first) {
            let rest = first.behind(self.skip);
            self.skip += PIECE;
            if rest.len() <= PIECE {
                (self.parts, self.skip) = (behind, 0);
            }
            return Some(Piece::Part(rest.front(PIECE)));
        }
        let mut bytes = first.len();
        let more = behind.iter().take_while(|part| {
            bytes = bytes.saturating_add(part.len());
            bytes <= PIECE
        });
        let (piece, after) = self.parts.split_at_checked(1 + more.count())?;
        self.parts = after;
        Some(Piece::Whole(piece))
    }
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
    fn small_buffers_are_taken_together_and_large_ones_cut_unless_registered() {
        let mut memory = vec![0; 3 * PIECE];
        let start = memory.as_mut_ptr();
        let mut cut = |sizes: &[usize], registered: bool| -> Vec<(usize, usize, usize)> {
            let parts = buffers(sizes, &mut memory);
            let mut pieces = Pieces::new(&parts);
            std::iter::from_fn(|| pieces.next(|_| registered))
                .map(|piece| {
                    let first = piece.parts()[0].as_ptr();
                    let at = first.addr() - start.addr();
                    (piece.parts().len(), at, piece.bytes() as usize)
                })
                .collect()
        };
        assert_eq!(
            cut(&[4096; 33], false),
            [(16, 0, PIECE), (16, 0, PIECE), (1, 0, 4096)]
        );
        assert_eq!(
            cut(&[512, 3 * PIECE, 512, PIECE - 512, 1], true),
            [(1, 0, 512), (1, 0, 3 * PIECE), (2, 0, PIECE), (1, 0, 1)]
        );
        assert_eq!(
            cut(&[512, 2 * PIECE + 7, 512, 2 * PIECE], false),
            [
                (1, 0, 512),
                (1, 0, PIECE),
                (1, PIECE, PIECE),
                (1, 2 * PIECE, 7),
                (1, 0, 512),
                (1, 0, PIECE),
                (1, PIECE, PIECE)
            ]
        );
        assert_eq!(cut(&[PIECE], false), [(1, 0, PIECE)]);
        assert_eq!(cut(&[], false), []);
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
