//! A request's place in a queue: [`Slot`], by descriptor head, made at the queue's set-up and used again and again.

use std::sync::Arc;

use crate::buffers::Buffers;
use crate::disk::Disk;
use crate::engine::IoKind;
use crate::memory::GuestRam;
use crate::request::Segment;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
    /// It is answered without the image.
    Other,
}

/// A request, in the slot of its head.
pub(super) struct Slot {
    pub readable: Buffers,
    pub writable: Buffers,
    pub work: Work,
    pub offset: u64,
    /// Bytes transferred so far.
    pub moved: u64,
    pub retries: u8,
    /// The transfer was submitted as a durable write.
    pub durable: bool,
    /// Done, and in the image's cache only.
    pub cached: bool,
    /// Of the first of a merged operation: its buffer list. It and the others name the one behind them.
    pub group: Option<u16>,
    pub next: Option<u16>,
    /// Of a discard or of zeroes; `segment` is the one being carried out.
    pub segments: Vec<Segment>,
    pub segment: usize,
    /// Times: made by the driver as far as is known, given to the engine.
    pub made_at: u64,
    pub pushed_at: u64,
}

impl Slot {
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        Self {
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram.clone()),
            work: Work::Other,
            offset: 0,
            moved: 0,
            retries: 0,
            durable: false,
            cached: false,
            group: None,
            next: None,
            segments: Vec::new(),
            segment: 0,
            made_at: 0,
            pushed_at: 0,
        }
    }

    /// For the next request, made at `since` and taken `now`. Buffers and segments keep their storage.
    pub fn clear(&mut self, now: u64, since: u64) {
        self.readable.clear();
        self.writable.clear();
        self.segments.clear();
        self.work = Work::Other;
        (self.offset, self.moved, self.retries, self.segment) = (0, 0, 0, 0);
        (self.durable, self.cached) = (false, false);
        (self.group, self.next) = (None, None);
        (self.made_at, self.pushed_at) = (since, now);
    }

    /// What is left of a transfer.
    pub fn data(&self) -> &Buffers {
        match self.work {
            Work::Write => &self.readable,
            _ => &self.writable,
        }
    }

    /// How a transfer is submitted.
    pub fn io_kind(&self) -> IoKind {
        match (self.work, self.durable) {
            (Work::Write, true) if !cfg!(feature = "skip-fdatasync") => IoKind::WriteDurable,
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

/// Whether a completed write may still be in a cache, by what was negotiated (5.2.6.2).
#[derive(Clone, Copy)]
pub(super) enum Cache {
    /// No FLUSH: each write is durable before it completes.
    Through,
    /// FLUSH.
    Back,
    /// FLUSH and CONFIG_WCE: as the driver chooses from time to time.
    Chosen,
}

impl Cache {
    pub fn new(flush: bool, config_wce: bool) -> Self {
        match (flush, config_wce) {
            (false, _) => Self::Through,
            (true, false) => Self::Back,
            (true, true) => Self::Chosen,
        }
    }

    pub fn is_back(self, disk: &Disk) -> bool {
        match self {
            Self::Through => false,
            Self::Back => true,
            Self::Chosen => disk.control().writeback(),
        }
    }
}
