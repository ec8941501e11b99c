//! Large transfers from and to files in memory are made in pieces.
//!
//! Others have their turn in between; and in Linux 6.12 (until 5a90c155defa) a file on tmpfs claims to have pages of 2 MiB,
//! whether it has them or not. A write of `n` pages then touches all that are left of its buffers before it copies the next one
//! of 4 KiB: `n²/2` times in all, 33 000 for 1 MiB, each of which is a walk of two page tables where the TLB has fewer entries
//! than the write has pages.

use std::io;

use crate::memory::IoVec;

/// Most bytes of a piece.
pub const PIECE: usize = 64 << 10;
/// Bytes after which a transfer ends short, and the rest is another: results have 31 bits, and somebody may wait.
pub const MOST: u64 = 1 << 30;

/// What is next of a transfer.
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

/// The pieces of a transfer, in order.
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

    /// Whether there is no other.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The next piece.
    pub fn next(&mut self) -> Option<Piece<'a>> {
        let (first, behind) = self.parts.split_first()?;
        if first.len() > PIECE {
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

/// A transfer that is made piece by piece.
pub struct Progress<'a> {
    pieces: Pieces<'a>,
    moved: u64,
}

impl<'a> Progress<'a> {
    /// At its beginning.
    pub fn new(parts: &'a [IoVec]) -> Self {
        let pieces = Pieces::new(parts);
        Self { pieces, moved: 0 }
    }

    /// Makes one piece by `transfer`, of these buffers with so many bytes, so far behind the beginning. Gives its bytes, and the outcome of
    /// the whole if it has ended: with the last piece, at one that was short, or after [`MOST`] bytes. What was moved before an
    /// error is told first, and the rest tried again.
    pub fn step(
        &mut self,
        transfer: impl FnOnce(&[IoVec], u64, u64) -> io::Result<usize>,
    ) -> (u64, Option<io::Result<usize>>) {
        let Some(piece) = self.pieces.next() else {
            return (0, Some(Ok(self.moved as usize)));
        };
        let bytes = piece.bytes();
        let ended = match transfer(piece.parts(), self.moved, bytes) {
            Ok(moved) => {
                self.moved += moved as u64;
                (moved as u64) < bytes || self.moved >= MOST || self.pieces.is_empty()
            }
            Err(error) if self.moved == 0 => return (bytes, Some(Err(error))),
            Err(_) => true,
        };
        (bytes, ended.then_some(Ok(self.moved as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(sizes: &[usize], memory: &mut [u8]) -> Vec<IoVec> {
        sizes.iter().map(|&size| IoVec::of(&mut memory[..size])).collect()
    }

    #[test]
    fn small_buffers_are_taken_together_and_large_ones_cut() {
        let mut memory = vec![0; 3 * PIECE];
        let start = memory.as_mut_ptr();
        let mut cut = |sizes: &[usize]| -> Vec<(usize, usize, usize)> {
            let parts = buffers(sizes, &mut memory);
            let mut pieces = Pieces::new(&parts);
            std::iter::from_fn(|| pieces.next())
                .map(|piece| {
                    let first = piece.parts()[0].as_ptr();
                    let at = first.addr() - start.addr();
                    (piece.parts().len(), at, piece.bytes() as usize)
                })
                .collect()
        };
        assert_eq!(cut(&[4096; 33]), [(16, 0, PIECE), (16, 0, PIECE), (1, 0, 4096)]);
        assert_eq!(
            cut(&[512, PIECE, 512, PIECE - 512, 1]),
            [(1, 0, 512), (1, 0, PIECE), (2, 0, PIECE), (1, 0, 1)]
        );
        assert_eq!(
            cut(&[512, 2 * PIECE + 7, 512, 2 * PIECE]),
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
        assert_eq!(cut(&[PIECE]), [(1, 0, PIECE)]);
        assert_eq!(cut(&[]), []);
    }

    #[test]
    fn a_transfer_is_as_good_as_its_pieces_up_to_the_first_gap() {
        let mut memory = vec![0; 3 * PIECE];
        let parts = buffers(&[3 * PIECE], &mut memory);
        let piece = PIECE as u64;
        // What pieces give, of 3 of them; what the whole gives, and how many were made.
        let outcome = |results: &[io::Result<usize>]| {
            let mut progress = Progress::new(&parts);
            for (made, result) in results.iter().enumerate() {
                let (bytes, ended) = progress.step(|_, behind, bytes| {
                    assert_eq!((behind, bytes), (made as u64 * piece, piece));
                    result.as_ref().copied().map_err(|error| error.kind().into())
                });
                assert_eq!(bytes, piece);
                if let Some(ended) = ended {
                    return (ended.map_err(|error| error.kind()), made + 1);
                }
            }
            panic!("it has not ended");
        };
        let failed = || Err(io::ErrorKind::StorageFull.into());
        assert_eq!(outcome(&[Ok(PIECE), Ok(PIECE), Ok(PIECE)]), (Ok(3 * PIECE), 3));
        assert_eq!(outcome(&[Ok(PIECE), Ok(7), Ok(PIECE)]), (Ok(PIECE + 7), 2));
        assert_eq!(outcome(&[Ok(PIECE), failed(), Ok(PIECE)]), (Ok(PIECE), 2));
        assert_eq!(outcome(&[Ok(0)]), (Ok(0), 1));
        assert_eq!(outcome(&[failed()]), (Err(io::ErrorKind::StorageFull), 1));
    }
}
