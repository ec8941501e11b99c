//! Large transfers from and to files in memory, which the reactor's thread makes itself, a little in each of its rounds.
//!
//! Such a transfer is a copy, by whomever it is made; a thread of the kernel's would have to be woken for it, which takes as
//! long as copying some hundred KiB. In between the reactor looks at everybody else's queues. Those of one queue are made one after
//! the other, so that each ends as early as it can; queues take turns.

use std::collections::VecDeque;

use super::pieces::Progress;
use super::{IoDone, IoOp};

/// Bytes that are copied in one round of the reactor, and in a queue's turn.
const ROUND: u64 = 256 << 10;

struct Copying {
    op: IoOp,
    progress: Progress<'static>,
}

impl Copying {
    /// Copies one piece: its bytes, and the outcome if it was the last.
    ///
    /// # Safety
    /// As for [`super::Engine::push`].
    unsafe fn step(&mut self) -> (u64, Option<IoDone>) {
        let op = &self.op;
        let (bytes, ended) = self.progress.step(|parts, behind, bytes| {
            let offset = op.offset.saturating_add(behind);
            // SAFETY: image and buffers are valid, says the caller.
            unsafe { op.image.get().run(op.kind, parts, offset, bytes) }
        });
        (bytes, ended.map(|result| IoDone::new(op.tag, result)))
    }
}

/// A queue's transfers, in their order.
struct Line {
    /// By which its tags are told from others'.
    queue: u64,
    list: VecDeque<Copying>,
    /// Bytes since its turn began.
    turn: u64,
}

/// Transfers that are being made.
pub(super) struct Copies {
    /// Of queues that have some; the first one has its turn.
    lines: VecDeque<Line>,
    /// Storage of lines that have ended.
    spare: Vec<VecDeque<Copying>>,
}

const fn queue_of(tag: u64) -> u64 {
    tag >> 16
}

impl Copies {
    /// None yet, but room for so many of one queue.
    pub fn new(room: u32) -> Self {
        Self {
            lines: VecDeque::with_capacity(1),
            spare: vec![VecDeque::with_capacity(room as usize)],
        }
    }

    /// # Safety
    /// As for [`super::Engine::push`], until it is done, abandoned, or this is dropped or cleared.
    pub unsafe fn push(&mut self, op: IoOp) {
        // SAFETY: says the caller.
        let progress = Progress::new(unsafe { op.parts() });
        let queue = queue_of(op.tag);
        let copying = Copying { op, progress };
        if let Some(line) = self.lines.iter_mut().find(|line| line.queue == queue) {
            line.list.push_back(copying);
            return;
        }
        let mut list = self.spare.pop().unwrap_or_default();
        list.push_back(copying);
        self.lines.push_back(Line { queue, list, turn: 0 });
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn clear(&mut self) {
        self.lines.clear();
    }

    /// Forgets those of the queue that has this tag, and says how many. None of their buffers is touched any more.
    pub fn abandon(&mut self, tag: u64) -> u16 {
        let place = self.lines.iter().position(|line| line.queue == queue_of(tag));
        let Some(mut line) = place.and_then(|place| self.lines.remove(place)) else {
            return 0;
        };
        // A queue has no more heads.
        let count = u16::try_from(line.list.len()).unwrap_or(u16::MAX);
        line.list.clear();
        self.spare.push(line.list);
        count
    }

    /// Copies as much as is for one round.
    pub fn go_on(&mut self, done: &mut Vec<IoDone>) {
        let mut bytes = 0;
        while bytes < ROUND
            && let Some(line) = self.lines.front_mut()
        {
            if let Some(copying) = line.list.front_mut() {
                // SAFETY: by the contract of `push`.
                let (now, ended) = unsafe { copying.step() };
                bytes += now;
                line.turn += now;
                if let Some(outcome) = ended {
                    line.list.pop_front();
                    done.push(outcome);
                }
            }
            if line.list.is_empty() {
                let line = self.lines.pop_front();
                self.spare.extend(line.map(|line| line.list));
            } else if line.turn >= ROUND {
                line.turn = 0;
                self.lines.rotate_left(1);
            }
        }
    }
}
