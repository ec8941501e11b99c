//! The first half of a request's life, after it was parsed: what needs no I/O completes, transfers are staged
//! and merged ([`super::batch`]), and operations are submitted to the engine.

use std::ops::Range;
use std::sync::Arc;

use ringvirtio::steps::step;
use ringvirtio::trace::Kind;

use super::batch::Staged;
use super::block_queue::BlockQueue;
use super::slot::{SYNC_TAG, Work, skips_fdatasync};
use crate::engine::{Engine, IoKind, IoOp, MAX_IOV};
use crate::request::{Plan, RangeKind, Segment};
use crate::virtio::RequestStatus;

/// Bytes up to which a transfer from or to memory is done in place; a larger one yields to others.
const IMMEDIATE_MAX: u64 = 64 << 10;
/// Bytes up to which transfers are merged: what devices take at once, more or less.
const MERGE_MAX: u64 = 1 << 20;

impl BlockQueue {
    pub(super) fn start(&mut self, head: u16, plan: Plan, engine: &mut dyn Engine) {
        self.queue.start();
        let slot = self.slots.at_mut(head);
        match plan {
            Plan::Read(offset) => self.stage(head, Work::Read, offset, engine),
            Plan::Write(offset) => self.stage(head, Work::Write, offset, engine),
            Plan::Flush => {
                slot.work = Work::Flush;
                self.start_flush(head, engine);
            }
            Plan::GetId => {
                slot.transferred = slot.writable.write_front(&self.disk.serial()) as u64;
                self.stats.others.add(1);
                self.finish(head, RequestStatus::Ok);
            }
            Plan::Ranges(kind, count) => self.start_ranges(head, kind, count, engine),
            Plan::Complete(status) => {
                if status == RequestStatus::Ok {
                    self.stats.others.add(1);
                }
                self.finish(head, status);
            }
        }
    }

    /// Completes the request after an `fdatasync` that starts from now on.
    pub(super) fn start_flush(&mut self, head: u16, engine: &mut dyn Engine) {
        if self.sync.add(head) {
            self.push_sync(engine);
        }
    }

    /// All segments are read and checked before the first is carried out.
    fn start_ranges(&mut self, head: u16, kind: RangeKind, count: u32, engine: &mut dyn Engine) {
        let capacity = self.disk.capacity();
        let slot = self.slots.at_mut(head);
        for _ in 0..count {
            let mut bytes = [0; Segment::SIZE];
            let segment = if slot.readable.take_front(&mut bytes) {
                Segment::parse(bytes, kind, capacity)
            } else {
                Err(RequestStatus::IoErr)
            };
            match segment {
                // A segment of no sectors needs nothing.
                Ok(segment) if segment.len == 0 => {}
                Ok(segment) => slot.segments.push(segment),
                Err(status) => return self.finish(head, status),
            }
        }
        slot.work = match kind {
            RangeKind::Discard => Work::Discard,
            RangeKind::Zeroes => Work::Zeroes,
        };
        if slot.segments.is_empty() {
            self.stats.others.add(1);
            return self.finish(head, RequestStatus::Ok);
        }
        if kind == RangeKind::Zeroes {
            // They may have to be written.
            let bytes = slot.segments.iter().map(|segment| segment.len).sum();
            self.disk.control().throttle.take_bytes(self.queue.now(), bytes);
        }
        // Segments may overlap the transfers that came before them, which go first.
        self.submit_batch(engine);
        self.push_range(head, engine);
    }

    /// Stages a transfer until the batch is complete: it may be merged with others.
    fn stage(&mut self, head: u16, work: Work, offset: u64, engine: &mut dyn Engine) {
        let slot = self.slots.at_mut(head);
        (slot.work, slot.offset) = (work, offset);
        let list = slot.data();
        let new = Staged {
            head,
            work,
            start: offset,
            // A plan keeps them inside of 63 bits.
            end: offset.saturating_add(list.total()),
            parts: u32::try_from(list.remaining().len()).unwrap_or(u32::MAX),
        };
        if self.batch.conflicts(&new) {
            self.submit_batch(engine);
        }
        self.batch.push(new);
        step("staged");
    }

    /// Submits all that is staged, neighbours as one.
    pub(super) fn submit_batch(&mut self, engine: &mut dyn Engine) {
        if self.batch.is_empty() {
            return;
        }
        self.batch.sort();
        let most = if self.disk.is_memory() {
            IMMEDIATE_MAX
        } else {
            MERGE_MAX
        };
        let mut first = 0;
        loop {
            let run = self.batch.run(first, most, MAX_IOV);
            if run.is_empty() {
                break;
            }
            first = run.end;
            if run.len() > 1 {
                self.push_merged(run, engine);
                continue;
            }
            let single = self.batch.heads(run).next();
            if let Some(head) = single {
                self.push_transfer(head, engine);
            }
        }
        self.batch.clear();
    }

    /// Submits one operation for neighbours; its tag is that of the first, from which the others are linked.
    fn push_merged(&mut self, run: Range<usize>, engine: &mut dyn Engine) {
        let Some((index, list)) = self.merge.acquire() else {
            return;
        };
        let durable = !self.cache.is_writeback(&self.disk);
        let count = run.len() as u64;
        let (mut leader, mut last, mut len) = (None, None::<u16>, 0);
        for head in self.batch.heads(run) {
            self.queue.trace(Kind::Submitted, head);
            let slot = self.slots.at_mut(head);
            list.append(slot.data());
            len += slot.data().total();
            slot.durable = durable;
            if let Some(last) = last.replace(head) {
                self.slots.at_mut(last).next = Some(head);
            }
            leader = leader.or(Some(head));
        }
        let Some(head) = leader else {
            return;
        };
        let (iov, parts) = (list.parts().as_ptr(), list.parts().len() as u32);
        let slot = self.slots.at_mut(head);
        slot.group = Some(index);
        slot.submitted_at = self.queue.now();
        let (kind, offset) = (slot.io_kind(), slot.offset);
        let op = IoOp {
            iov,
            count: parts,
            ..self.operation(head, kind, offset, len)
        };
        self.stats.merges.add(1);
        self.stats.merged.add(count);
        step("merged");
        // SAFETY: the list is not touched before `complete` for this tag releases it, nor are the slots'; the
        // rest as in `push_transfer`.
        unsafe { engine.push(op) };
    }

    /// Submits what is left of a request.
    pub(super) fn push(&mut self, head: u16, engine: &mut dyn Engine) {
        match self.slots.at(head).work {
            Work::Read | Work::Write => self.push_transfer(head, engine),
            Work::Discard | Work::Zeroes => self.push_range(head, engine),
            Work::Flush | Work::Other => {}
        }
    }

    pub(super) fn push_transfer(&mut self, head: u16, engine: &mut dyn Engine) {
        let durable = !self.cache.is_writeback(&self.disk);
        let slot = self.slots.at_mut(head);
        slot.durable = durable;
        slot.submitted_at = self.queue.now();
        let kind = slot.io_kind();
        let parts = slot.data().remaining();
        let len = if parts.len() <= MAX_IOV {
            slot.data().total()
        } else {
            parts.iter().take(MAX_IOV).map(|part| part.len() as u64).sum()
        };
        let (iov, count) = (parts.as_ptr(), parts.len().min(MAX_IOV) as u32);
        let offset = slot.offset + slot.transferred;
        let op = IoOp {
            iov,
            count,
            ..self.operation(head, kind, offset, len)
        };
        self.queue.trace(Kind::Submitted, head);
        // SAFETY: the slot's list is not touched before `complete` for this tag; the list keeps the RAM
        // mapped and `self.disk` the image. Should the queue be dropped first, `drop` leaks all three.
        unsafe { engine.push(op) };
    }

    /// Counts an operation and returns it, without buffers.
    #[inline]
    fn operation(&self, tag: u16, kind: IoKind, offset: u64, len: u64) -> IoOp {
        self.stats.operations.add(1);
        if kind == IoKind::WriteDurable {
            self.stats.durable.add(1);
        }
        IoOp {
            tag: self.queue.tag_base | u64::from(tag),
            image: self.disk.image(),
            kind,
            iov: std::ptr::null(),
            count: 0,
            offset,
            len,
            owner: Arc::as_ptr(self.queue.ram()).addr(),
            immediate: self.disk.is_memory() && len <= IMMEDIATE_MAX,
        }
    }

    /// Submits the first of the segments that are left.
    fn push_range(&mut self, head: u16, engine: &mut dyn Engine) {
        let slot = self.slots.at_mut(head);
        slot.submitted_at = self.queue.now();
        let Some(&segment) = slot.segments.get(slot.segment) else {
            return;
        };
        let kind = match slot.work {
            Work::Zeroes => IoKind::WriteZeroes { unmap: segment.unmap },
            _ => IoKind::Discard,
        };
        let op = IoOp {
            immediate: false,
            ..self.operation(head, kind, segment.offset, segment.len)
        };
        self.queue.trace(Kind::Submitted, head);
        // SAFETY: no buffers; the image stays as above.
        unsafe { engine.push(op) };
    }

    pub(super) fn push_sync(&mut self, engine: &mut dyn Engine) {
        self.sync.submitted_at = self.queue.now();
        for &head in self.sync.current() {
            self.queue.trace(Kind::Submitted, head);
        }
        // In the negative control a read of no bytes, which succeeds.
        let kind = if skips_fdatasync() {
            IoKind::Read
        } else {
            IoKind::Sync
        };
        let op = self.operation(SYNC_TAG, kind, 0, 0);
        // SAFETY: no buffers; the image stays as above.
        unsafe { engine.push(op) };
    }

    /// The driver has turned the write cache off: what was written to it, and is not published yet, must be
    /// durable first (5.2.6.2). Requests in flight check the mode when they complete.
    pub(super) fn make_durable(&mut self, engine: &mut dyn Engine) {
        while let Some(head) = self.queue.take_back(|head| self.slots.at(head).cached) {
            self.start_flush(head, engine);
        }
    }
}
