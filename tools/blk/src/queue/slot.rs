//! A request's place in a queue: [`Slot`], by descriptor head, made at the queue's set-up and used again and
//! again.

use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::memory::GuestRam;
use ringvirtio::sabotage;

use crate::engine::IoKind;
use crate::request::Segment;

/// Returns whether nothing is made durable: the negative control.
#[inline]
pub fn skips_fdatasync() -> bool {
    cfg!(feature = "skip-fdatasync") || sabotage::requested("skip-fdatasync")
}

/// The handler's part of the tag of the shared `fdatasync`; that of any other operation is a descriptor head.
pub const SYNC_TAG: u16 = u16::MAX;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
    /// It completes without the image.
    Other,
}

/// A request, in the slot of its head.
pub struct Slot {
    pub readable: Buffers,
    pub writable: Buffers,
    pub work: Work,
    pub offset: u64,
    /// Bytes transferred so far.
    pub transferred: u64,
    pub retries: u8,
    /// The transfer was submitted as a durable write.
    pub durable: bool,
    /// Complete, and in the image's cache only.
    pub cached: bool,
    /// Of the first request of a merged operation: its buffer list. Each names the next one.
    pub group: Option<u16>,
    pub next: Option<u16>,
    /// Of a discard or of zeroes; `segment` is the one in progress.
    pub segments: Vec<Segment>,
    pub segment: usize,
    /// When the driver made it available, as far as is known, and when its operation was submitted.
    pub available_at: u64,
    pub submitted_at: u64,
}

/// The slots of a queue, by descriptor head.
pub struct Slots {
    pub list: Vec<Slot>,
    /// Stands in for a slot that does not exist; heads are checked when they are popped.
    none: Slot,
}

impl Slots {
    pub fn new(size: usize, ram: &Arc<GuestRam>) -> Self {
        Self {
            list: (0..size).map(|_| Slot::new(ram)).collect(),
            none: Slot::new(ram),
        }
    }

    #[inline]
    pub fn at(&self, head: u16) -> &Slot {
        self.list.get(usize::from(head)).unwrap_or(&self.none)
    }

    #[inline]
    pub fn at_mut(&mut self, head: u16) -> &mut Slot {
        self.list.get_mut(usize::from(head)).unwrap_or(&mut self.none)
    }
}

impl Slot {
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        Self {
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram.clone()),
            work: Work::Other,
            offset: 0,
            transferred: 0,
            retries: 0,
            durable: false,
            cached: false,
            group: None,
            next: None,
            segments: Vec::new(),
            segment: 0,
            available_at: 0,
            submitted_at: 0,
        }
    }

    /// Resets the slot for the next request, available since `available_at` and popped `now`. Buffers and
    /// segments keep their storage.
    pub fn clear(&mut self, now: u64, available_at: u64) {
        self.readable.clear();
        self.writable.clear();
        self.segments.clear();
        self.work = Work::Other;
        (self.offset, self.transferred, self.retries, self.segment) = (0, 0, 0, 0);
        (self.durable, self.cached) = (false, false);
        (self.group, self.next) = (None, None);
        (self.available_at, self.submitted_at) = (available_at, now);
    }

    /// Returns what is left of a transfer.
    pub fn data(&self) -> &Buffers {
        match self.work {
            Work::Write => &self.readable,
            _ => &self.writable,
        }
    }

    /// Returns how a transfer is submitted.
    pub fn io_kind(&self) -> IoKind {
        match (self.work, self.durable) {
            (Work::Write, true) if !skips_fdatasync() => IoKind::WriteDurable,
            (Work::Write, _) => IoKind::Write,
            _ => IoKind::Read,
        }
    }

    pub fn data_mut(&mut self) -> &mut Buffers {
        match self.work {
            Work::Write => &mut self.readable,
            _ => &mut self.writable,
        }
    }
}
