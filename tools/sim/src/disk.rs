//! The simulated image: a page cache over a durable copy, and operations that are queued until the scheduler
//! runs them. Operations run in any order, in part, or fail. Dirty sectors become durable at any time, each
//! as a whole. A sync covers the writes that completed before it was submitted, and no others.

use std::cell::RefCell;
use std::rc::Rc;

use ringblk::engine::{Engine, IoKind, IoOp};
use ringvirtio::Completion;

use crate::memory;
use crate::options::{Profile, Sabotage};
use crate::rng::Rng;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A submitted operation.
struct Op {
    tag: u64,
    kind: IoKind,
    offset: usize,
    /// Bytes of the image that it reads or changes.
    extent: usize,
    /// Host address and length of each buffer.
    parts: Vec<(usize, usize)>,
    /// For a sync: the sectors that were dirty when it was pushed, with their content.
    covered: Vec<(usize, Vec<u8>)>,
    /// Its result was reported before it runs: a built-in mistake.
    reported: bool,
    /// The daemon that pushed it is dead.
    orphan: bool,
}

impl Op {
    /// Returns whether it deallocates or zeroes a range: the file system may not support it.
    fn is_range(&self) -> bool {
        matches!(self.kind, IoKind::Discard | IoKind::WriteZeroes { .. })
    }
}

struct State {
    cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<bool>,
    ops: Vec<Op>,
    done: Vec<Completion>,
    sabotage: Sabotage,
    /// Why a pushed operation is invalid.
    fault: Option<String>,
    /// A sync has failed since the image was opened.
    sync_failed: bool,
}

/// A handle; clones share the disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<State>>);

impl SimDisk {
    /// Returns a disk with this content, all of it durable.
    pub fn new(image: Vec<u8>, sabotage: Sabotage) -> Self {
        let sectors = image.len() / SECTOR;
        Self(Rc::new(RefCell::new(State {
            durable: image.clone(),
            cached: image,
            dirty: vec![false; sectors],
            ops: Vec::new(),
            done: Vec::new(),
            sabotage,
            fault: None,
            sync_failed: false,
        })))
    }

    /// Returns the number of operations that have not run.
    pub fn waiting(&self) -> usize {
        self.0.borrow().ops.len()
    }

    /// Returns whether there are completions to reap.
    pub fn has_results(&self) -> bool {
        !self.0.borrow().done.is_empty()
    }

    /// Returns why a pushed operation is invalid, if one was.
    pub fn fault(&self) -> Option<String> {
        self.0.borrow().fault.clone()
    }

    /// Returns whether a sync has failed since the last [`Self::reopened`].
    pub fn sync_failed(&self) -> bool {
        self.0.borrow().sync_failed
    }

    /// Records that a new daemon has opened the image.
    pub fn reopened(&self) {
        self.0.borrow_mut().sync_failed = false;
    }

    /// Runs one of the operations, in full, in part, or not at all, and describes the result.
    pub fn run_one(&self, profile: &Profile, rng: &mut Rng) -> Option<String> {
        let mut state = self.0.borrow_mut();
        if state.ops.is_empty() {
            return None;
        }
        let index = rng.index(state.ops.len());
        let op = state.ops.swap_remove(index);
        let result = if op.reported || op.orphan {
            state.perform(&op, usize::MAX, rng)
        } else if rng.chance(profile.transient) {
            if rng.chance(500) { -4 } else { -11 }
        } else if op.kind == IoKind::Sync && rng.chance(profile.fail_sync) {
            state.lose_dirty(rng);
            state.sync_failed = true;
            -5
        } else if op.kind != IoKind::Sync && rng.chance(profile.fail) {
            // A failed operation may have transferred a part.
            let part = rng.below(op.extent as u64 + 1) as usize;
            if rng.chance(700) {
                state.perform(&op, part, rng);
            }
            if rng.chance(500) { -5 } else { -28 }
        } else if op.kind.is_transfer() && rng.chance(profile.short) {
            let part = rng.range(1, op.extent.max(1) as u64) as usize;
            state.perform(&op, part, rng)
        } else if op.is_range() && rng.chance(profile.unsupported) {
            -95
        } else {
            state.perform(&op, usize::MAX, rng)
        };
        let text = format!("io {:?} at {} is {result}", op.kind, op.offset);
        if !op.reported && !op.orphan {
            state.done.push(Completion { tag: op.tag, result });
        }
        Some(text)
    }

    /// Writes back a sector, if the one drawn is dirty.
    pub fn write_back(&self, rng: &mut Rng) {
        let mut state = self.0.borrow_mut();
        let sector = rng.index(state.dirty.len());
        if state.dirty[sector] {
            state.make_durable(sector);
        }
    }

    /// Ends the I/O of a killed daemon: each operation runs in full, in part or not at all. None is left when
    /// the next daemon is granted the image's lock. With `linger` they stay submitted.
    pub fn orphan(&self, linger: bool, rng: &mut Rng) {
        let mut state = self.0.borrow_mut();
        state.done.clear();
        if linger {
            state.ops.iter_mut().for_each(|op| op.orphan = true);
            return;
        }
        let mut ops = std::mem::take(&mut state.ops);
        while !ops.is_empty() {
            let op = ops.swap_remove(rng.index(ops.len()));
            let part = match rng.below(3) {
                0 => continue,
                1 => rng.below(op.extent as u64 + 1) as usize,
                _ => usize::MAX,
            };
            state.perform(&op, part, rng);
        }
    }

    /// Cuts the power and returns the durable content. Each dirty sector may or may not have been written
    /// back.
    #[must_use]
    pub fn cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut state = self.0.borrow_mut();
        for sector in 0..state.dirty.len() {
            if state.dirty[sector] && rng.chance(400) {
                state.make_durable(sector);
            }
        }
        state.durable.clone()
    }

    /// Returns the image as reads see it.
    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().cached.clone()
    }
}

impl State {
    fn make_durable(&mut self, sector: usize) {
        let bytes = sector * SECTOR..(sector + 1) * SECTOR;
        self.durable[bytes.clone()].copy_from_slice(&self.cached[bytes]);
        self.dirty[sector] = false;
    }

    /// Fails a sync: the kernel clears the dirty flag whether or not the sector was written.
    fn lose_dirty(&mut self, rng: &mut Rng) {
        for sector in 0..self.dirty.len() {
            if self.dirty[sector] && rng.chance(500) {
                self.make_durable(sector);
            }
            self.dirty[sector] = false;
        }
    }

    /// Transfers up to `limit` bytes and returns the kernel's result.
    fn perform(&mut self, op: &Op, limit: usize, rng: &mut Rng) -> i32 {
        match op.kind {
            IoKind::Sync => {
                if self.sabotage != Sabotage::NoSync {
                    self.sync(op, rng);
                }
                0
            }
            IoKind::Read | IoKind::Write | IoKind::WriteDurable => self.transfer(op, limit),
            // Whole sectors; a discard may skip any of them.
            IoKind::Discard | IoKind::WriteZeroes { .. } => {
                let first = op.offset / SECTOR;
                for sector in first..first + op.extent.min(limit) / SECTOR {
                    let discards = op.kind == IoKind::Discard;
                    if discards && rng.chance(300) || self.sabotage == Sabotage::NoZeroes && !discards {
                        continue;
                    }
                    self.cached[sector * SECTOR..][..SECTOR].fill(0);
                    self.dirty[sector] = true;
                }
                0
            }
        }
    }

    fn sync(&mut self, op: &Op, rng: &mut Rng) {
        for (sector, bytes) in &op.covered {
            let at = sector * SECTOR;
            // A later write may have become durable or not.
            if self.cached[at..at + SECTOR] == bytes[..] || rng.chance(500) {
                self.make_durable(*sector);
            } else if self.dirty[*sector] {
                self.durable[at..at + SECTOR].copy_from_slice(bytes);
            }
        }
    }

    fn transfer(&mut self, op: &Op, limit: usize) -> i32 {
        let mut offset = op.offset;
        let mut left = limit;
        let mut moved = 0;
        for &(host, len) in &op.parts {
            let len = len.min(left).min(self.cached.len().saturating_sub(offset));
            if op.kind == IoKind::Read {
                // SAFETY: `push` checked that the range is in the arena, which lives as long as the thread.
                unsafe { (host as *mut u8).copy_from(self.cached.as_ptr().wrapping_add(offset), len) };
            } else if len > 0 {
                let target = &mut self.cached[offset..offset + len];
                // SAFETY: as above.
                unsafe { target.as_mut_ptr().copy_from(host as *const u8, len) };
                for sector in offset / SECTOR..=(offset + len - 1) / SECTOR {
                    self.dirty[sector] = true;
                    if op.kind == IoKind::WriteDurable && self.sabotage != Sabotage::NoSync {
                        self.make_durable(sector);
                    }
                }
            }
            offset += len;
            left -= len;
            moved += len;
        }
        moved as i32
    }
}

/// The engine that the daemon's queues submit to.
pub struct SimEngine(pub SimDisk);

impl Engine for SimEngine {
    unsafe fn push(&mut self, op: IoOp) {
        let mut state = self.0.0.borrow_mut();
        let mut parts = Vec::new();
        if op.count > 0 {
            // SAFETY: by the contract of `Engine::push` there are `count` entries.
            let list = unsafe { std::slice::from_raw_parts(op.iov, op.count as usize) };
            parts.extend(list.iter().map(|part| (part.as_ptr() as usize, part.len())));
        }
        // The invariant: no guest makes the daemon touch anything but guest RAM and the image.
        let (first, behind) = memory::host_range();
        let inside = |&(host, len): &(usize, usize)| host >= first && host + len <= behind;
        let bytes = match op.kind {
            IoKind::Discard | IoKind::WriteZeroes { .. } => op.len as usize,
            _ => parts.iter().map(|part| part.1).sum(),
        };
        let offset = op.offset as usize;
        if !parts.iter().all(inside) || offset + bytes > state.cached.len() {
            state.fault = Some(format!(
                "{:?} at {offset} of {bytes} bytes is out of bounds",
                op.kind
            ));
            state.done.push(Completion {
                tag: op.tag,
                result: -14,
            });
            return;
        }
        let dirty = |sector: &usize| state.dirty[*sector];
        let covered = if op.kind == IoKind::Sync {
            let sectors = (0..state.dirty.len()).filter(dirty);
            sectors
                .map(|sector| (sector, state.cached[sector * SECTOR..][..SECTOR].to_vec()))
                .collect()
        } else {
            Vec::new()
        };
        let reported = state.sabotage == Sabotage::EarlyPublish && op.kind == IoKind::Read;
        if reported {
            state.done.push(Completion {
                tag: op.tag,
                result: bytes as i32,
            });
        }
        state.ops.push(Op {
            tag: op.tag,
            kind: op.kind,
            offset,
            extent: bytes,
            parts,
            covered,
            reported,
            orphan: false,
        });
    }

    fn submit(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.0.0.borrow_mut().done);
    }
}
