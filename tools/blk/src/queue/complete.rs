//! The second half of a request's life: what the engine reports, what becomes of it, status and used length.

use std::mem;

use super::{Queue, SYNC_TAG, Transfer};
use crate::engine::Engine;
use crate::steps::step;
use crate::virtio::Status;

/// EINTR and EAGAIN in a row before a request fails.
const MAX_RETRIES: u8 = 100;

impl Queue {
    /// Takes the outcome of the operation with this tag.
    pub fn complete(&mut self, tag: u64, result: i32, engine: &mut dyn Engine) {
        match tag as u16 {
            SYNC_TAG => self.complete_sync(result, engine),
            head => self.complete_transfer(head, result, engine),
        }
    }

    fn complete_transfer(&mut self, head: u16, result: i32, engine: &mut dyn Engine) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        let list = match slot.transfer {
            Transfer::Read => &mut slot.writable,
            Transfer::Write => &mut slot.readable,
        };
        let again = match result {
            moved @ 1.. => {
                slot.retries = 0;
                slot.moved += u64::from(moved.unsigned_abs()).min(list.total());
                list.advance(moved.unsigned_abs().into());
                list.total() > 0
            }
            // End of a file that was truncated, or no progress: never OK without the data.
            0 => return self.finish(head, Status::IoErr),
            error if is_transient(error) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                true
            }
            error => {
                if slot.transfer == Transfer::Write && !self.write_back && error != -libc::ENOSPC {
                    // It may have been the sync of this write that failed.
                    self.disk.set_sync_failed();
                }
                tracing::warn!(path = %self.disk.config().path.display(), offset = slot.offset + slot.moved,
                    transfer = ?slot.transfer, error = %std::io::Error::from_raw_os_error(-error), "disk request failed");
                return self.finish(head, Status::IoErr);
            }
        };
        if again {
            self.stats.retries.add(1);
            return self.push_transfer(head, engine);
        }
        match slot.transfer {
            Transfer::Read => {
                self.stats.reads.add(1);
                self.stats.bytes_read.add(slot.moved);
            }
            Transfer::Write => {
                self.stats.writes.add(1);
                self.stats.bytes_written.add(slot.moved);
            }
        }
        self.finish(head, Status::Ok);
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
            Status::IoErr
        } else {
            Status::Ok
        };
        while let Some(head) = self.syncing.pop() {
            if status == Status::Ok {
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

    /// Writes the status; the request is published with the next batch.
    pub(super) fn finish(&mut self, head: u16, status: Status) {
        match status {
            Status::Ok => {}
            Status::IoErr => self.stats.errors.add(1),
            Status::Unsupp => self.stats.unsupported.add(1),
        }
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return;
        };
        slot.writable.store_last(status as u8);
        // 2.7.8.2: all bytes from the first writable one on, up to the used length, were written. What precedes a
        // status byte that does not follow directly is all that counts.
        let filled = match slot.transfer {
            Transfer::Read => slot.moved,
            Transfer::Write => 0,
        };
        let with_status = u64::from(slot.writable.total() == 0);
        let used_len = u32::try_from(filled.saturating_add(with_status)).unwrap_or(u32::MAX);
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
