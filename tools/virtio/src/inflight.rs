//! The in-flight log of a queue: which requests were started, in memory that outlives the process.
//!
//! As vhost-user's inflight region it has an entry per descriptor head, a counter for the order, and the used
//! index. It differs in that recovery never reads the guest's used ring, which a guest may rewrite: a
//! publication is recorded in the log first ([`InflightLog::begin_publish`]), so that it can be repeated from
//! the log alone.
//!
//! A killed process leaves memory as of some instruction, so the order of stores is all that matters. The
//! protocol:
//! 1. a head is popped: its entry becomes *started* with the next count; from there on it is "in flight";
//! 2. its I/O and status byte are done: the entry becomes *done*, with the used length;
//! 3. used entries of all done heads are written to the ring; `publish_idx` is set: the batch is committed;
//! 4. the ring's `used.idx` is set; the entries become *free*; `used_idx` is set: the publication has ended.
//!
//! After a kill: if `publish_idx` differs from `used_idx`, step 4 is repeated. What is *done* then is
//! published, what is *started* is run again in the order of its counts. The next available index needs no
//! field of its own: it is the used index plus the number of entries that are not free.
//!
//! The header also remembers that what completed may be lost ([`InflightLog::set_lost`]), until the driver
//! has heard of it.
//!
//! Layout, all words little-endian `u64`: [`HEADER_WORDS`] of header, then two words per head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::MmapRegion;

use crate::memory::{MemoryError, Slots};
use crate::sabotage;
use crate::steps::step;

/// Returns whether nothing is logged: the negative control.
#[inline]
fn skipped() -> bool {
    cfg!(feature = "skip-inflight-log") || sabotage::requested("skip-inflight-log")
}

const MAGIC: u64 = 0x4642_4952; // "RIBF"
/// Version of the layout; a log of another version is refused.
pub const VERSION: u16 = 1;

/// Words before the entries.
pub const HEADER_WORDS: usize = 8;
const IDENTITY: usize = 0; // magic: 32 bits, version: 16, queue size: 16
const EPOCH: usize = 1;
const USED_IDX: usize = 2;
const PUBLISH_IDX: usize = 3;
const BROKEN: usize = 4;
const LOST: usize = 5;

/// How many of an epoch's low bits count resets of the device; the others say which start of the guest it is.
pub const RESET_BITS: u32 = 40;

// Entry, first word: state in the low 32 bits, used length in the high ones. Second word: the count.
const FREE: u64 = 0;
const STARTED: u64 = 1;
const DONE: u64 = 2;

/// Where a log is. The caller reserves these bytes for the queue alone, zeroed before their first use ever.
#[derive(Clone)]
pub struct InflightArea {
    /// Shared mapping of memory that outlives the process.
    pub mapping: Arc<MmapRegion>,
    /// Offset of the log in it: a multiple of 8.
    pub offset: usize,
}

impl InflightArea {
    /// Returns the bytes of the log of a queue of `size` entries.
    pub const fn bytes(size: u16) -> usize {
        (HEADER_WORDS + 2 * size as usize) * size_of::<u64>()
    }
}

/// Why a log cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// The area is bad.
    #[error("in-flight log: {0}")]
    Area(#[from] MemoryError),
    /// Not a log, nor zeroed memory.
    #[error("in-flight log: magic {0:#x}, expected {MAGIC:#x} or zero")]
    Magic(u64),
    /// Written by another version of the daemon.
    #[error("in-flight log: layout version {0}, expected {VERSION}")]
    Version(u16),
    /// Same epoch, but another queue size.
    #[error("in-flight log: for a queue of {found} entries, expected {expected}")]
    Size {
        /// In the log.
        found: u16,
        /// Of the queue.
        expected: u16,
    },
    /// There is no room for the log of such a queue.
    #[error("in-flight log: the queue has {size} entries, expected at most {most}")]
    TooLarge {
        /// Of the queue.
        size: u16,
        /// Largest queue that there is room for.
        most: u16,
    },
    /// An entry has an unknown state.
    #[error("in-flight log: entry {head} has state {state:#x}")]
    State {
        /// The entry's descriptor head.
        head: u16,
        /// What it holds.
        state: u64,
    },
}

/// Checks the first word of a log: zero, or magic and version of this layout.
///
/// # Errors
/// It is no log, or one of another version.
pub fn check_identity(identity: u64) -> Result<(), InflightError> {
    let (magic, version) = (identity & 0xffff_ffff, (identity >> 32) as u16);
    match identity {
        0 => Ok(()),
        _ if magic != MAGIC => Err(InflightError::Magic(magic)),
        _ if version != VERSION => Err(InflightError::Version(version)),
        _ => Ok(()),
    }
}

/// What a log says about its queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The log was empty: the queue was just set up.
    pub fresh: bool,
    /// First entry of the available ring that was not popped yet.
    pub next_avail: u16,
    /// Used entries published.
    pub used_idx: u16,
    /// A publication to be repeated: [`InflightLog::end_publish`] after `used.idx` is stored.
    pub republish: Option<u16>,
    /// Started, not done: to be run again, in this order.
    pub restart: Vec<u16>,
    /// Done, not published, with used lengths.
    pub done: Vec<(u16, u32)>,
    /// The queue was broken.
    pub broken: bool,
}

/// A queue's log.
pub struct InflightLog {
    words: Slots<AtomicU64>,
    size: u16,
    count: u64,
}

impl InflightLog {
    /// Opens the log of a queue of `size` entries set up in `epoch`. A log of another epoch belongs to a
    /// queue that has been reset: it is emptied.
    ///
    /// # Errors
    /// The area is bad, or the log is damaged or of another version or size.
    pub fn open(area: &InflightArea, size: u16, epoch: u64) -> Result<(Self, Recovery), InflightError> {
        let mut log = Self::at(area, size)?;
        let identity = log.get(IDENTITY);
        check_identity(identity)?;
        let found = (identity >> 48) as u16;
        if identity == 0 || log.get(EPOCH) != epoch {
            log.format(epoch, 0);
            let fresh = true;
            return Ok((
                log,
                Recovery {
                    fresh,
                    ..Recovery::default()
                },
            ));
        }
        if found != size {
            return Err(InflightError::Size {
                found,
                expected: size,
            });
        }
        let recovery = log.recover()?;
        Ok((log, recovery))
    }

    /// Empties the log of a queue whose next available and next used entry are both `idx`.
    ///
    /// # Errors
    /// The area is bad.
    pub fn begin_at(area: &InflightArea, size: u16, epoch: u64, idx: u16) -> Result<(), InflightError> {
        Self::at(area, size)?.format(epoch, idx);
        Ok(())
    }

    fn at(area: &InflightArea, size: u16) -> Result<Self, MemoryError> {
        let count = HEADER_WORDS + 2 * usize::from(size);
        let words = Slots::in_mapping(&area.mapping, area.offset, count)?;
        Ok(Self {
            words,
            size,
            count: 0,
        })
    }

    /// Without its identity the log counts as empty when it is opened next, so a kill in here does no harm.
    fn format(&self, epoch: u64, idx: u16) {
        let identity = self.get(IDENTITY);
        self.set(IDENTITY, 0);
        step("format begun");
        // A reset does not bring back what was lost. Without its identity, it is new memory or the rest of a
        // log that was being emptied.
        let same_start = identity == 0 || self.get(EPOCH) >> RESET_BITS == epoch >> RESET_BITS;
        let kept = if same_start { LOST } else { 0 };
        for index in (USED_IDX..HEADER_WORDS + 2 * usize::from(self.size)).filter(|index| *index != kept) {
            self.set(index, 0);
        }
        self.set(USED_IDX, idx.into());
        self.set(PUBLISH_IDX, idx.into());
        self.set(EPOCH, epoch);
        self.set(
            IDENTITY,
            MAGIC | u64::from(VERSION) << 32 | u64::from(self.size) << 48,
        );
    }

    fn recover(&mut self) -> Result<Recovery, InflightError> {
        let (used, publish) = (self.get(USED_IDX) as u16, self.get(PUBLISH_IDX) as u16);
        let republish = (used != publish).then_some(publish);
        let mut recovery = Recovery {
            used_idx: publish,
            republish,
            broken: self.get(BROKEN) != 0,
            ..Recovery::default()
        };
        let (mut started, mut done) = (Vec::new(), Vec::new());
        for head in 0..self.size {
            let entry = self.get(Self::entry(head));
            let count = self.get(Self::entry(head) + 1);
            match entry & 0xffff_ffff {
                FREE => continue,
                STARTED => started.push((count, head)),
                // Of a committed batch: freed when the publication is repeated.
                DONE if republish.is_some() => continue,
                DONE => done.push((count, head, (entry >> 32) as u32)),
                state => return Err(InflightError::State { head, state }),
            }
            self.count = self.count.max(count.wrapping_add(1));
        }
        started.sort_unstable();
        // In a stream, what was completed first comes first, too.
        done.sort_unstable();
        recovery.done = done.into_iter().map(|(_, head, len)| (head, len)).collect();
        recovery.restart = started.into_iter().map(|(_, head)| head).collect();
        // At most `size` entries, which is at most 32768.
        let popped = (recovery.restart.len() + recovery.done.len()) as u16;
        recovery.next_avail = recovery.used_idx.wrapping_add(popped);
        Ok(recovery)
    }

    #[inline]
    const fn entry(head: u16) -> usize {
        HEADER_WORDS + 2 * head as usize
    }

    #[inline]
    fn get(&self, index: usize) -> u64 {
        self.words
            .get(index)
            .map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Stores with release ordering: all stores before it, to guest memory too, are visible before it.
    #[inline]
    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.words.get(index) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Returns whether no request with this head is in flight.
    #[inline]
    pub fn is_free(&self, head: u16) -> bool {
        self.get(Self::entry(head)) & 0xffff_ffff == FREE
    }

    /// Step 1: the head was popped.
    #[inline]
    pub fn start(&mut self, head: u16) {
        if skipped() {
            return;
        }
        self.set(Self::entry(head) + 1, self.count);
        step("counted");
        self.count = self.count.wrapping_add(1);
        self.set(Self::entry(head), STARTED);
    }

    /// Step 2: data and status are in guest memory.
    #[inline]
    pub fn finish(&mut self, head: u16, used_len: u32) {
        if skipped() {
            return;
        }
        self.set(Self::entry(head), DONE | u64::from(used_len) << 32);
    }

    /// Step 3: the used entries of all done heads are in the ring, up to `idx`.
    #[inline]
    pub fn begin_publish(&mut self, idx: u16) {
        self.set(PUBLISH_IDX, idx.into());
    }

    /// Part of step 4: the driver may use the head again.
    #[inline]
    pub fn free(&mut self, head: u16) {
        self.set(Self::entry(head), FREE);
    }

    /// The end of step 4.
    #[inline]
    pub fn end_publish(&mut self, idx: u16) {
        self.set(USED_IDX, idx.into());
    }

    /// Frees all that is done: the rest of a publication that a kill interrupted.
    pub fn free_done(&mut self) {
        for head in 0..self.size {
            if self.get(Self::entry(head)) & 0xffff_ffff == DONE {
                self.free(head);
                step("freed late");
            }
        }
    }

    /// Returns whether completed requests may be lost and the driver has not heard of it.
    pub fn is_lost(&self) -> bool {
        self.get(LOST) != 0
    }

    /// Records whether completed requests may be lost and the driver has not heard of it. Outlives resets of
    /// the device, not the guest's next start.
    pub fn set_lost(&self, lost: bool) {
        self.set(LOST, lost.into());
    }

    /// The driver broke the queue: it stays broken until it is set up again.
    pub fn set_broken(&mut self) {
        self.set(BROKEN, 1);
    }
}
