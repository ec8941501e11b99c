//! Large transfers from and to files in memory, which the reactor's thread copies itself, a limited amount in
//! each round.
//!
//! Such a transfer is a copy whichever thread does it; waking a kernel thread for it takes as long as copying
//! some hundred KiB. Between rounds the reactor serves the other queues. The transfers of one queue run one
//! after the other, so that each completes as early as it can; queues take turns.

use std::collections::VecDeque;

use ringvirtio::Completion;

use super::IoOp;
use crate::image::pieces::PieceTransfer;

/// Bytes that are copied in one round of the reactor, and in a queue's turn.
const ROUND: u64 = 256 << 10;

struct Copying {
    op: IoOp,
    transfer: PieceTransfer<'static>,
}

impl Copying {
    /// Copies one piece. Returns its bytes, and the completion if it was the last one.
    ///
    /// # Safety
    /// As for [`super::Engine::push`].
    unsafe fn step(&mut self) -> (u64, Option<Completion>) {
        let op = &self.op;
        let (bytes, result) = self.transfer.step(|parts, transferred, bytes| {
            let offset = op.offset.saturating_add(transferred);
            // SAFETY: the caller guarantees that image and buffers are valid.
            unsafe { (*op.image).run(op.kind, parts, offset, bytes) }
        });
        (bytes, result.map(|result| Completion::new(op.tag, result)))
    }
}

/// A queue's transfers, in order.
struct QueueCopies {
    /// The queue's part of its tags.
    queue: u64,
    list: VecDeque<Copying>,
    /// Bytes since its turn began.
    turn: u64,
}

/// Transfers in progress.
pub(super) struct Copies {
    /// Queues that have some; it is the first one's turn.
    queues: VecDeque<QueueCopies>,
    /// Empty lists for reuse.
    spare: Vec<VecDeque<Copying>>,
}

const fn queue_of(tag: u64) -> u64 {
    tag >> 16
}

impl Copies {
    /// Allocates room for `room` transfers of one queue.
    pub fn new(room: u32) -> Self {
        Self {
            queues: VecDeque::with_capacity(1),
            spare: vec![VecDeque::with_capacity(room as usize)],
        }
    }

    /// Adds a transfer.
    ///
    /// # Safety
    /// As for [`super::Engine::push`], until it has completed or is abandoned, or this is cleared or dropped.
    pub unsafe fn push(&mut self, op: IoOp) {
        // SAFETY: the caller guarantees valid buffers.
        let transfer = PieceTransfer::new(unsafe { op.parts() });
        let number = queue_of(op.tag);
        let copying = Copying { op, transfer };
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.queue == number) {
            queue.list.push_back(copying);
            return;
        }
        let mut list = self.spare.pop().unwrap_or_default();
        list.push_back(copying);
        self.queues.push_back(QueueCopies {
            queue: number,
            list,
            turn: 0,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn clear(&mut self) {
        self.queues.clear();
    }

    /// Drops the transfers of the queue that has this tag, and returns how many. Their buffers are not
    /// touched any more.
    pub fn abandon(&mut self, tag: u64) -> u16 {
        let index = self.queues.iter().position(|queue| queue.queue == queue_of(tag));
        let Some(mut queue) = index.and_then(|index| self.queues.remove(index)) else {
            return 0;
        };
        // A queue has at most that many heads.
        let count = u16::try_from(queue.list.len()).unwrap_or(u16::MAX);
        queue.list.clear();
        self.spare.push(queue.list);
        count
    }

    /// Copies one round's amount.
    pub fn run_round(&mut self, done: &mut Vec<Completion>) {
        let mut bytes = 0;
        while bytes < ROUND
            && let Some(queue) = self.queues.front_mut()
        {
            if let Some(copying) = queue.list.front_mut() {
                // SAFETY: by the contract of `push`.
                let (copied, completion) = unsafe { copying.step() };
                bytes += copied;
                queue.turn += copied;
                if let Some(completion) = completion {
                    queue.list.pop_front();
                    done.push(completion);
                }
            }
            if queue.list.is_empty() {
                let queue = self.queues.pop_front();
                self.spare.extend(queue.map(|queue| queue.list));
            } else if queue.turn >= ROUND {
                queue.turn = 0;
                self.queues.rotate_left(1);
            }
        }
    }
}
