//! The second half of a request's life: what the engine reports, what becomes of it, status and used length.

use std::mem;

use super::{Queue, SYNC_TAG, Work};
use crate::control::OnError;
use crate::engine::Engine;
use crate::steps::step;
use crate::trace::{self, Kind};
use crate::virtio::RequestStatus;

/// EINTR and EAGAIN in a row before a request fails.
const MAX_RETRIES: u8 = 100;

impl Queue {
    /// Takes the outcome of the operation with this tag.
    pub fn complete(&mut self, tag: u64, result: i32, engine: &mut dyn Engine) {
        self.now = self.clock.now();
        let head = tag as u16;
        let pushed_at = if head == SYNC_TAG {
            self.sync_pushed_at
        } else {
            let Some(slot) = self.slots.get(usize::from(head)) else {
                return;
            };
            slot.pushed_at
        };
        self.stats.latency.file.record(self.now.saturating_sub(pushed_at));
        if head == SYNC_TAG {
            return self.complete_sync(result, engine);
        }
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        match (slot.work, slot.group.take()) {
            (Work::Read | Work::Write, None) => self.complete_transfer(head, result, engine),
            (Work::Read | Work::Write, Some(group)) => self.complete_merged(head, group, result, engine),
            (Work::Discard | Work::Zeroes, _) => self.complete_range(head, result, engine),
            (Work::Flush | Work::Other, _) => {}
        }
    }

    /// Hands a merged operation's bytes to its requests, in their order. Those that got none, or not all, go on alone:
    /// so an error meets the one that it belongs to.
    fn complete_merged(&mut self, leader: u16, group: u16, result: i32, engine: &mut dyn Engine) {
        self.merge.give_back(group);
        let mut left = u64::try_from(result).unwrap_or(0);
        if result < 0 {
            self.note_failed_write(leader, result);
        }
        let mut member = Some(leader);
        while let Some(head) = member {
            let Some(slot) = self.slots.get_mut(usize::from(head)) else {
                return;
            };
            member = slot.next.take();
            let moved = left.min(slot.data().total());
            left -= moved;
            slot.moved += moved;
            slot.data_mut().advance(moved);
            if slot.data().total() == 0 {
                self.transferred(head, engine);
            } else {
                self.stats.retries.add(1);
                self.push_transfer(head, engine);
            }
        }
    }

    fn complete_transfer(&mut self, head: u16, result: i32, engine: &mut dyn Engine) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        let again = match result {
            moved @ 1.. => {
                slot.retries = 0;
                let moved = u64::from(moved.unsigned_abs()).min(slot.data().total());
                slot.moved += moved;
                slot.data_mut().advance(moved);
                slot.data().total() > 0
            }
            // End of a file that was truncated, or no progress: never OK without the data.
            0 => return self.fail_request(head, -libc::EIO),
            error if is_transient(error) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                true
            }
            error => {
                self.note_failed_write(head, error);
                return self.fail_request(head, error);
            }
        };
        if again {
            self.stats.retries.add(1);
            return self.push_transfer(head, engine);
        }
        self.transferred(head, engine);
    }

    /// All bytes of a transfer are where they belong.
    fn transferred(&mut self, head: u16, engine: &mut dyn Engine) {
        let Some(slot) = self.slots.get(usize::from(head)) else {
            return;
        };
        if slot.work == Work::Read {
            self.stats.reads.add(1);
            self.stats.bytes_read.add(slot.moved);
            return self.finish(head, RequestStatus::Ok);
        }
        self.stats.writes.add(1);
        self.stats.bytes_written.add(slot.moved);
        let durable = slot.durable;
        self.written(head, durable, engine);
    }

    /// The image has changed for this request: it is done, or done when that is durable.
    fn written(&mut self, head: u16, durable: bool, engine: &mut dyn Engine) {
        if !durable && !self.cache.is_back(&self.disk) {
            return self.start_flush(head, engine);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.cached = !durable;
        }
        self.finish(head, RequestStatus::Ok);
    }

    fn complete_range(&mut self, head: u16, result: i32, engine: &mut dyn Engine) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        match (result, slot.work) {
            (0.., _) => slot.retries = 0,
            (error, _) if is_transient(error) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                self.stats.retries.add(1);
                return self.push(head, engine);
            }
            // It is no more than advice.
            (error, Work::Discard) if error == -libc::EOPNOTSUPP => {}
            // Drivers write zeroes themselves then.
            (error, Work::Zeroes) if error == -libc::EOPNOTSUPP => {
                return self.finish(head, RequestStatus::Unsupp);
            }
            (error, _) => return self.fail_request(head, error),
        }
        let len = slot.segments.get(slot.segment).map_or(0, |segment| segment.len);
        slot.segment += 1;
        let (work, more) = (slot.work, slot.segment < slot.segments.len());
        match work {
            Work::Discard => self.stats.bytes_discarded.add(len),
            _ => self.stats.bytes_zeroed.add(len),
        }
        if more {
            return self.push(head, engine);
        }
        if work == Work::Discard {
            self.stats.discards.add(1);
            return self.finish(head, RequestStatus::Ok);
        }
        self.stats.zeroes.add(1);
        self.written(head, false, engine);
    }

    fn complete_sync(&mut self, result: i32, engine: &mut dyn Engine) {
        if is_transient(result) && self.sync_retries < MAX_RETRIES {
            self.sync_retries += 1;
            self.stats.retries.add(1);
            return self.push_sync(engine);
        }
        if result < 0 {
            tracing::error!(path = %self.disk.config().path.display(),
                error = %std::io::Error::from_raw_os_error(-result), "fdatasync failed: no flush succeeds any more");
            self.disk.set_sync_failed();
        }
        let status = if self.disk.sync_failed() {
            RequestStatus::IoErr
        } else {
            RequestStatus::Ok
        };
        while let Some(head) = self.syncing.pop() {
            let flush = self
                .slots
                .get(usize::from(head))
                .is_some_and(|slot| slot.work == Work::Flush);
            if status == RequestStatus::Ok && flush {
                self.stats.flushes.add(1);
            }
            self.finish(head, status);
        }
        // One `fdatasync` answers all that came meanwhile: it starts after every write completed before them.
        mem::swap(&mut self.syncing, &mut self.sync_next);
        if !self.syncing.is_empty() {
            self.sync_retries = 0;
            self.push_sync(engine);
        }
    }

    /// It may have been the sync of a durable write that failed, of which the kernel tells once.
    fn note_failed_write(&self, head: u16, error: i32) {
        let durable = self
            .slots
            .get(usize::from(head))
            .is_some_and(|slot| slot.work == Work::Write && slot.durable);
        if durable && error != -libc::ENOSPC && !is_transient(error) {
            self.disk.set_sync_failed();
        }
    }

    /// The image does not do what a request asks for.
    fn fail_request(&mut self, head: u16, error: i32) {
        let on_error = self.disk.control().on_error();
        if let Some(slot) = self.slots.get(usize::from(head)) {
            tracing::warn!(path = %self.disk.config().path.display(), offset = slot.offset + slot.moved,
                work = ?slot.work, error = %std::io::Error::from_raw_os_error(-error), ?on_error,
                "disk request failed");
        }
        match on_error {
            OnError::Report => self.finish(head, RequestStatus::IoErr),
            OnError::Stop => self.hold(head),
        }
    }

    /// Keeps a failed request in flight: no buffer of it is touched until it is tried again.
    fn hold(&mut self, head: u16) {
        if self.held.is_empty() {
            self.stats.stops.add(1);
            self.disk.control().set_stopped();
        }
        self.held.push(head);
        self.running = self.running.saturating_sub(1);
        self.stats.held.set(self.held.len() as u64);
    }

    /// Tries the held requests again. Those that fail again are held again.
    pub(super) fn try_held(&mut self, engine: &mut dyn Engine) {
        let mut held = mem::take(&mut self.held);
        self.stats.held.set(0);
        for head in held.drain(..) {
            if let Some(slot) = self.slots.get_mut(usize::from(head)) {
                slot.retries = 0;
            }
            self.running += 1;
            self.push(head, engine);
        }
        // Nothing completes while it is pushed, so this is the same list, empty, with its storage.
        self.held = held;
    }

    /// Writes the status; the request is published with the next batch.
    pub(super) fn finish(&mut self, head: u16, status: RequestStatus) {
        match status {
            RequestStatus::Ok => {}
            RequestStatus::IoErr => self.stats.errors.add(1),
            RequestStatus::Unsupp => self.stats.unsupported.add(1),
        }
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        slot.writable.store_last(status as u8);
        // 2.7.8.2: all bytes from the first writable one on, up to the used length, were written. What precedes a
        // status byte that does not follow directly is all that counts.
        let filled = match slot.work {
            Work::Read | Work::Other => slot.moved,
            Work::Write | Work::Flush | Work::Discard | Work::Zeroes => 0,
        };
        let with_status = u64::from(slot.writable.total() == 0);
        let used_len = u32::try_from(filled.saturating_add(with_status)).unwrap_or(u32::MAX);
        let took = self.now.saturating_sub(slot.made_at);
        let latency = &self.stats.latency;
        match slot.work {
            Work::Read => latency.reads.record(took),
            Work::Write | Work::Discard | Work::Zeroes => latency.writes.record(took),
            Work::Flush => {
                latency.flushes.record(took);
                self.signals.set_flushed();
            }
            Work::Other => {}
        }
        trace::event(Kind::Completed, self.trace, head.into());
        step("status written");
        self.log.finish(head, used_len);
        self.running = self.running.saturating_sub(1);
        self.done.push((head, used_len));
        step("done logged");
    }
}

fn is_transient(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}
