//! The second half of a request's life: how its operations end, its status and its used length.

use std::mem;

use super::block_queue::BlockQueue;
use super::slot::{SYNC_TAG, Work};
use crate::control::OnError;
use crate::engine::Engine;
use crate::image::bounce::scatter;
use crate::virtio::{RequestStatus, SECTOR_SIZE};

/// EINTR and EAGAIN in a row before a request fails.
const MAX_RETRIES: u8 = 100;

impl BlockQueue {
    /// Handles the completion of the operation with this tag.
    pub fn complete(&mut self, tag: u64, result: i32, engine: &mut dyn Engine) {
        self.queue.begin_complete();
        let head = tag as u16;
        let submitted_at = match head {
            SYNC_TAG => self.sync.submitted_at,
            _ => self.slots.at(head).submitted_at,
        };
        let took = self.queue.now().saturating_sub(submitted_at);
        self.stats.latency.file.record(took);
        if head == SYNC_TAG {
            return self.complete_sync(result, engine);
        }
        let slot = self.slots.at_mut(head);
        match (slot.work, slot.group.take()) {
            (Work::Read | Work::Write, None) => self.complete_transfer(head, result, engine),
            (Work::Read | Work::Write, Some(group)) => self.complete_merged(head, group, result, engine),
            (Work::Discard | Work::Zeroes, _) => self.complete_range(head, result, engine),
            (Work::Flush | Work::Other, _) => {}
        }
    }

    /// Distributes a merged operation's bytes to its requests, in order. Those that got none, or not all,
    /// continue alone, so that an error is reported for the request that it belongs to.
    fn complete_merged(&mut self, leader: u16, group: u16, result: i32, engine: &mut dyn Engine) {
        self.merge.release(group);
        let mut left = u64::try_from(result).unwrap_or(0);
        if result < 0 {
            self.record_failed_write(leader, result);
        }
        let mut member = Some(leader);
        while let Some(head) = member {
            let slot = self.slots.at_mut(head);
            member = slot.next.take();
            let transferred = left.min(slot.data().total());
            left -= transferred;
            slot.transferred += transferred;
            slot.data_mut().advance(transferred);
            if slot.data().total() == 0 {
                self.finish_transfer(head, engine);
            } else {
                self.stats.retries.add(1);
                self.push_transfer(head, engine);
            }
        }
    }

    fn complete_transfer(&mut self, head: u16, result: i32, engine: &mut dyn Engine) {
        let slot = self.slots.at_mut(head);
        let again = match result {
            transferred @ 1.. => {
                slot.retries = 0;
                let transferred = u64::from(transferred.unsigned_abs()).min(slot.data().total());
                slot.transferred += transferred;
                slot.data_mut().advance(transferred);
                slot.data().total() > 0
            }
            0 if slot.work == Work::Read
                && self
                    .disk
                    .is_missing_tail(slot.offset + slot.transferred, slot.data().total()) =>
            {
                let left = slot.data().total();
                // SAFETY: the request's buffers, which are guest RAM.
                unsafe { scatter(&[0; SECTOR_SIZE as usize], slot.data().remaining(), 0) };
                slot.transferred += left;
                slot.data_mut().advance(left);
                false
            }
            // End of a file that was truncated, or no progress: never OK without the data.
            0 => return self.fail_request(head, -libc::EIO),
            error if is_transient(error) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                true
            }
            error => {
                self.record_failed_write(head, error);
                return self.fail_request(head, error);
            }
        };
        if again {
            self.stats.retries.add(1);
            return self.push_transfer(head, engine);
        }
        self.finish_transfer(head, engine);
    }

    /// All bytes of a transfer are transferred.
    fn finish_transfer(&mut self, head: u16, engine: &mut dyn Engine) {
        let slot = self.slots.at(head);
        if slot.work == Work::Read {
            self.stats.reads.add(1);
            self.stats.bytes_read.add(slot.transferred);
            return self.finish(head, RequestStatus::Ok);
        }
        self.stats.writes.add(1);
        self.stats.bytes_written.add(slot.transferred);
        let durable = slot.durable;
        self.written(head, durable, engine);
    }

    /// The image has changed for this request, which completes now, or when that is durable.
    fn written(&mut self, head: u16, durable: bool, engine: &mut dyn Engine) {
        if !durable && !self.cache.is_writeback(&self.disk) {
            return self.start_flush(head, engine);
        }
        self.slots.at_mut(head).cached = !durable;
        self.finish(head, RequestStatus::Ok);
    }

    fn complete_range(&mut self, head: u16, result: i32, engine: &mut dyn Engine) {
        let slot = self.slots.at_mut(head);
        match (result, slot.work) {
            (0.., _) => slot.retries = 0,
            (error, _) if is_transient(error) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                self.stats.retries.add(1);
                return self.push(head, engine);
            }
            // A discard is advice.
            (error, Work::Discard) if error == -libc::EOPNOTSUPP => {}
            // Drivers then write zeroes themselves.
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
        if is_transient(result) && self.sync.retries < MAX_RETRIES {
            self.sync.retries += 1;
            self.stats.retries.add(1);
            return self.push_sync(engine);
        }
        if result < 0 {
            tracing::error!(path = %self.disk.config().path.display(),
                error = %std::io::Error::from_raw_os_error(-result), "fdatasync failed: further flushes of this disk will fail");
            self.disk.set_sync_failed();
        }
        let failed = self.disk.sync_failed();
        if failed {
            // For the next daemon, and for when the device is opened again.
            self.queue.set_lost(true);
        }
        let status = if failed || self.disk.is_loss_unreported() {
            RequestStatus::IoErr
        } else {
            RequestStatus::Ok
        };
        while let Some(head) = self.sync.pop() {
            if status == RequestStatus::Ok && self.slots.at(head).work == Work::Flush {
                self.stats.flushes.add(1);
            }
            self.finish(head, status);
        }
        if !failed {
            // Reported now, or by another queue.
            self.disk.set_loss_unreported(false);
            self.queue.set_lost(false);
        }
        if self.sync.advance() {
            self.push_sync(engine);
        }
    }

    /// If it was the sync of a durable write that failed, the kernel reports that once only.
    fn record_failed_write(&mut self, head: u16, error: i32) {
        let slot = self.slots.at(head);
        let durable = slot.work == Work::Write && slot.durable;
        if durable && error != -libc::ENOSPC && !is_transient(error) {
            self.disk.set_sync_failed();
            self.queue.set_lost(true);
        }
    }

    /// A request's operation failed for good.
    fn fail_request(&mut self, head: u16, error: i32) {
        let on_error = self.disk.control().on_error();
        if self.disk.backing().has_sync_failed() {
            self.disk.set_sync_failed();
            self.queue.set_lost(true);
        }
        let slot = self.slots.at(head);
        tracing::warn!(path = %self.disk.config().path.display(), offset = slot.offset + slot.transferred,
            work = ?slot.work, error = %std::io::Error::from_raw_os_error(-error), ?on_error,
            "disk request failed");
        match on_error {
            OnError::Report => self.finish(head, RequestStatus::IoErr),
            OnError::Stop => self.hold(head),
        }
    }

    /// Holds a failed request: no buffer of it is touched until it is retried.
    fn hold(&mut self, head: u16) {
        if self.held.is_empty() {
            self.stats.stops.add(1);
            self.queue.stopped = true;
            self.disk.control().set_stopped();
        }
        self.held.push(head);
        self.queue.hold();
        self.stats.held.set(self.held.len() as u64);
    }

    /// Retries the held requests. Those that fail again are held again.
    pub(super) fn retry_held(&mut self, engine: &mut dyn Engine) {
        let mut held = mem::take(&mut self.held);
        self.stats.held.set(0);
        self.queue.stopped = false;
        for head in held.drain(..) {
            self.slots.at_mut(head).retries = 0;
            self.queue.start();
            self.push(head, engine);
        }
        // No operation completes while it is submitted, so this is the same list, empty, with its storage.
        self.held = held;
    }

    /// Writes the status; the request is published with the next batch.
    pub(super) fn finish(&mut self, head: u16, status: RequestStatus) {
        match status {
            RequestStatus::Ok => {}
            RequestStatus::IoErr => self.stats.errors.add(1),
            RequestStatus::Unsupp => self.stats.unsupported.add(1),
        }
        let slot = self.slots.at_mut(head);
        slot.writable.store_last(status as u8);
        // 2.7.8.2: all bytes from the first writable one on, up to the used length, were written. What
        // precedes a status byte that does not follow directly is all that counts.
        let filled = match slot.work {
            Work::Read | Work::Other => slot.transferred,
            Work::Write | Work::Flush | Work::Discard | Work::Zeroes => 0,
        };
        let with_status = u64::from(slot.writable.total() == 0);
        let used_len = u32::try_from(filled.saturating_add(with_status)).unwrap_or(u32::MAX);
        let took = self.queue.now().saturating_sub(slot.available_at);
        let latency = &self.stats.latency;
        match slot.work {
            Work::Read => latency.reads.record(took),
            Work::Write | Work::Discard | Work::Zeroes => latency.writes.record(took),
            Work::Flush => {
                latency.flushes.record(took);
                self.queue.set_urgent();
            }
            Work::Other => {}
        }
        self.queue.complete(head, used_len);
    }
}

fn is_transient(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}
