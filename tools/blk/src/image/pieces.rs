//! [`PieceTransfer`]: a large transfer from or to a file in memory, split into pieces.
//!
//! Pieces let other queues have their turn in between. Besides, in Linux 6.12 (until 5a90c155defa) a file on
//! tmpfs claims to have pages of 2 MiB even if it has none. A write of `n` pages then touches all pages left
//! of its buffers before it copies the next 4 KiB: `n²/2` touches in all, 33 000 for 1 MiB, each of which is
//! a walk of two page tables where the TLB has fewer entries than the write has pages.

use std::io;

use ringvirtio::memory::IoVec;

/// Most bytes of a piece.
pub const PIECE: usize = 64 << 10;
/// Bytes after which a transfer ends short and the rest is another operation: results have 31 bits, and other
/// operations wait for the thread.
pub const TRANSFER_MAX: u64 = 1 << 30;

/// One piece of a transfer.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    /// Whole buffers.
    Whole(&'a [IoVec]),
    /// A part of one buffer.
    Part(IoVec),
}

impl Piece<'_> {
    /// Returns its buffers.
    pub fn parts(&self) -> &[IoVec] {
        match self {
            Self::Whole(parts) => parts,
            Self::Part(part) => std::slice::from_ref(part),
        }
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.len() as u64).sum()
    }
}

/// The pieces of a transfer, in order.
pub struct Pieces<'a> {
    parts: &'a [IoVec],
    /// Bytes of the first buffer that earlier pieces contain.
    skip: usize,
}

impl<'a> Pieces<'a> {
    /// Splits these buffers.
    pub fn new(parts: &'a [IoVec]) -> Self {
        Self { parts, skip: 0 }
    }

    /// Returns whether no piece is left.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns the next piece.
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

/// A transfer that is done piece by piece.
pub struct PieceTransfer<'a> {
    pieces: Pieces<'a>,
    /// Bytes so far.
    transferred: u64,
}

impl<'a> PieceTransfer<'a> {
    /// Begins a transfer with these buffers.
    pub fn new(parts: &'a [IoVec]) -> Self {
        let pieces = Pieces::new(parts);
        Self {
            pieces,
            transferred: 0,
        }
    }

    /// Transfers the next piece by `transfer(buffers, bytes before them, their bytes)`. Returns the piece's
    /// bytes, and the result of the whole transfer if it has ended: with the last piece, at a short one, or
    /// after [`TRANSFER_MAX`] bytes. An error after some bytes ends it short; the caller gets the error when
    /// it retries the rest.
    pub fn step(
        &mut self,
        transfer: impl FnOnce(&[IoVec], u64, u64) -> io::Result<usize>,
    ) -> (u64, Option<io::Result<usize>>) {
        let Some(piece) = self.pieces.next() else {
            return (0, Some(Ok(self.transferred as usize)));
        };
        let bytes = piece.bytes();
        let ended = match transfer(piece.parts(), self.transferred, bytes) {
            Ok(count) => {
                self.transferred += count as u64;
                (count as u64) < bytes || self.transferred >= TRANSFER_MAX || self.pieces.is_empty()
            }
            Err(error) if self.transferred == 0 => return (bytes, Some(Err(error))),
            Err(_) => true,
        };
        (bytes, ended.then_some(Ok(self.transferred as usize)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{PIECE, PieceTransfer, Pieces};
    use ringvirtio::memory::IoVec;

    fn buffers(sizes: &[usize], memory: &mut [u8]) -> Vec<IoVec> {
        sizes.iter().map(|&size| IoVec::of(&mut memory[..size])).collect()
    }

    #[test]
    fn small_buffers_are_joined_and_large_ones_cut() {
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
        // From the results of up to 3 pieces: the result of the transfer, and how many pieces it took.
        let run = |results: &[io::Result<usize>]| {
            let mut transfer = PieceTransfer::new(&parts);
            for (made, result) in results.iter().enumerate() {
                let (bytes, ended) = transfer.step(|_, before, bytes| {
                    assert_eq!((before, bytes), (made as u64 * piece, piece));
                    result.as_ref().copied().map_err(|error| error.kind().into())
                });
                assert_eq!(bytes, piece);
                if let Some(ended) = ended {
                    return (ended.map_err(|error| error.kind()), made + 1);
                }
            }
            panic!("the transfer has not ended");
        };
        let failed = || Err(io::ErrorKind::StorageFull.into());
        assert_eq!(run(&[Ok(PIECE), Ok(PIECE), Ok(PIECE)]), (Ok(3 * PIECE), 3));
        assert_eq!(run(&[Ok(PIECE), Ok(7), Ok(PIECE)]), (Ok(PIECE + 7), 2));
        assert_eq!(run(&[Ok(PIECE), failed(), Ok(PIECE)]), (Ok(PIECE), 2));
        assert_eq!(run(&[Ok(0)]), (Ok(0), 1));
        assert_eq!(run(&[failed()]), (Err(io::ErrorKind::StorageFull), 1));
    }
}
