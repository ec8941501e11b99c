//! Large transfers from and to files in memory, which the reactor's thread makes itself, a little in each of its rounds.
//!
//! Such a transfer is a copy, by whomever it is made; a thread of the kernel's would have to be woken for it, which takes as
//! long as copying some hundred KiB. In between the reactor looks at everybody else's queues.

use std::collections::VecDeque;

use super::pieces::Pieces;
use super::{IoDone, IoOp};

/// Bytes that are copied in one round of the reactor.
const ROUND: u64 = 256 << 10;
/// Bytes of one transfer after which the next one has its turn. Those of up to that size end in their order, as early as they can.
const TURN: u64 = 1 << 20;
/// Most bytes that a result can tell of, less than those of a piece.
const MOST: u64 = 1 << 30;

struct Copying {
    op: IoOp,
    pieces: Pieces<'static>,
    moved: u64,
    /// Bytes since its turn began.
    turn: u64,
}

impl Copying {
    /// Copies one piece: its bytes, and the outcome if it was the last.
    ///
    /// # Safety
    /// As for [`super::Engine::push`].
    unsafe fn step(&mut self) -> (u64, Option<i32>) {
        let ended = |moved: u64| Some(i32::try_from(moved).unwrap_or(i32::MAX));
        let Some(piece) = self.pieces.next() else {
            return (0, ended(self.moved));
        };
        let (offset, bytes) = (self.op.offset.saturating_add(self.moved), piece.bytes());
        // SAFETY: says the caller.
        match unsafe { self.op.image.get().run(self.op.kind, piece.parts(), offset, bytes) } {
            Ok(moved) => {
                self.moved += moved as u64;
                let short = (moved as u64) < bytes || self.moved >= MOST;
                (bytes, ended(self.moved).filter(|_| short || self.pieces.is_empty()))
            }
            // What was moved before is told first, and the rest tried again.
            Err(_) if self.moved > 0 => (bytes, ended(self.moved)),
            Err(error) => (bytes, Some(-error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

/// Transfers that are being made.
pub(super) struct Copies(VecDeque<Copying>);

impl Copies {
    /// None yet, but room for so many.
    pub fn new(room: u32) -> Self {
        Self(VecDeque::with_capacity(room as usize))
    }

    /// # Safety
    /// As for [`super::Engine::push`], until it is done or this is dropped or cleared.
    pub unsafe fn push(&mut self, op: IoOp) {
        // SAFETY: says the caller.
        let pieces = Pieces::new(unsafe { op.parts() });
        self.0.push_back(Copying {
            op,
            pieces,
            moved: 0,
            turn: 0,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Copies as much as is for one round.
    pub fn go_on(&mut self, done: &mut Vec<IoDone>) {
        let mut bytes = 0;
        while bytes < ROUND
            && let Some(copying) = self.0.front_mut()
        {
            let tag = copying.op.tag;
            // SAFETY: by the contract of `push`.
            let (now, ended) = unsafe { copying.step() };
            bytes += now;
            copying.turn += now;
            if let Some(result) = ended {
                self.0.pop_front();
                done.push(IoDone { tag, result });
            } else if copying.turn >= TURN {
                copying.turn = 0;
                self.0.rotate_left(1);
            }
        }
    }
}
