//! An engine over an image in memory that a test controls: it holds operations back, reorders them, transfers
//! too little, fails, and loses what was not synced in a power cut.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ringvirtio::Completion;

use super::{Engine, IoKind, IoOp};

/// The scripted result of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scripted {
    /// It succeeds in full.
    Whole,
    /// At most so many bytes are transferred.
    Short(usize),
    /// It fails with this error number.
    Fail(i32),
}

/// An operation that the engine was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requested {
    /// Its kind.
    pub kind: IoKind,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

#[derive(Default)]
struct State {
    /// What reads see.
    cached: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    script: VecDeque<Scripted>,
    requested: Vec<Requested>,
    pending: Vec<IoOp>,
    done: Vec<Completion>,
    hold: bool,
    lie: bool,
}

/// A handle to the engine; clones share it.
#[derive(Clone, Default)]
pub struct FakeEngine(Rc<RefCell<State>>);

impl FakeEngine {
    /// Makes an engine over `image`, all of it durable.
    pub fn new(image: Vec<u8>) -> Self {
        let state = State {
            cached: image.clone(),
            durable: image,
            ..State::default()
        };
        Self(Rc::new(RefCell::new(state)))
    }

    /// Sets the results of the next operations; after those, all are [`Scripted::Whole`].
    pub fn script(&self, results: impl IntoIterator<Item = Scripted>) {
        self.0.borrow_mut().script.extend(results);
    }

    /// Sets whether operations wait for [`Self::run_one`].
    pub fn hold(&self, hold: bool) {
        self.0.borrow_mut().hold = hold;
    }

    /// From now on syncs and durable writes complete, but nothing becomes durable: tests of durability must
    /// notice it.
    pub fn lie(&self) {
        self.0.borrow_mut().lie = true;
    }

    /// Returns the number of operations that wait.
    pub fn pending(&self) -> usize {
        self.0.borrow().pending.len()
    }

    /// Runs the waiting operation with this index in the order of arrival.
    pub fn run_one(&self, index: usize) {
        let op = self.0.borrow_mut().pending.remove(index);
        self.0.borrow_mut().run(&op);
    }

    /// Simulates the daemon's death: each waiting operation still happens or does not, and none completes.
    pub fn orphan(&self, mut happens: impl FnMut() -> bool) {
        let mut state = self.0.borrow_mut();
        for op in std::mem::take(&mut state.pending) {
            if happens() {
                state.run(&op);
            }
        }
        state.done.clear();
        state.script.clear();
        state.hold = false;
    }

    /// Simulates a power cut.
    pub fn power_cut(&self) {
        let mut state = self.0.borrow_mut();
        state.cached = state.durable.clone();
        state.pending.clear();
        state.done.clear();
    }

    /// Returns the image as reads see it.
    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().cached.clone()
    }

    /// Returns all operations so far.
    pub fn requested(&self) -> Vec<Requested> {
        self.0.borrow().requested.clone()
    }
}

impl State {
    fn run(&mut self, op: &IoOp) {
        let result = match self.script.pop_front().unwrap_or(Scripted::Whole) {
            Scripted::Fail(error) => -error,
            Scripted::Short(limit) => self.transfer(op, limit),
            Scripted::Whole => self.transfer(op, usize::MAX),
        };
        self.done.push(Completion { tag: op.tag, result });
    }

    fn transfer(&mut self, op: &IoOp, limit: usize) -> i32 {
        if op.kind == IoKind::Sync {
            if !self.lie {
                self.durable.clone_from(&self.cached);
            }
            return 0;
        }
        if !op.kind.is_transfer() {
            // A discard reads zero here, as a hole does.
            let end = (op.offset + op.len) as usize;
            let end = end.min(self.cached.len());
            if let Some(range) = self.cached.get_mut(op.offset as usize..end) {
                range.fill(0);
            }
            return 0;
        }
        let mut offset = op.offset as usize;
        let mut left = limit;
        let mut transferred = 0;
        for part in parts(op) {
            for index in 0..part.len().min(left) {
                let Some(byte) = self.cached.get_mut(offset) else {
                    return transferred;
                };
                // SAFETY: by the contract of `Engine::push`, the buffers are valid.
                unsafe {
                    let guest = part.as_ptr().add(index);
                    match op.kind {
                        IoKind::Read => guest.write_volatile(*byte),
                        _ => *byte = guest.read_volatile(),
                    }
                }
                if let (IoKind::WriteDurable, false, Some(durable)) =
                    (op.kind, self.lie, self.durable.get_mut(offset))
                {
                    *durable = *byte;
                }
                offset += 1;
                transferred += 1;
            }
            left = left.saturating_sub(part.len());
        }
        transferred
    }
}

fn parts(op: &IoOp) -> &[ringvirtio::memory::IoVec] {
    if op.count == 0 {
        return &[];
    }
    // SAFETY: by the contract of `Engine::push`, `count` entries are there until the operation has completed.
    unsafe { std::slice::from_raw_parts(op.iov, op.count as usize) }
}

impl Engine for FakeEngine {
    unsafe fn push(&mut self, op: IoOp) {
        let mut state = self.0.borrow_mut();
        state.requested.push(Requested {
            kind: op.kind,
            offset: op.offset,
            len: op.len,
        });
        state.pending.push(op);
    }

    fn submit(&mut self) {
        let mut state = self.0.borrow_mut();
        if !state.hold {
            for op in std::mem::take(&mut state.pending) {
                state.run(&op);
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.0.borrow_mut().done);
    }
}
