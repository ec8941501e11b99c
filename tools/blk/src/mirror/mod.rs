//! [`Mirror`]: a disk that moves to another image while its guest uses it.
//!
//! The guest's requests go through the mirror; [`Mirror::copy`] brings over what was there before, chunk by chunk from the
//! beginning; [`Mirror::verify`] compares. Then, while nothing is in flight, the user of the mirror takes the target in its
//! place. What holds meanwhile:
//!
//! 1. *The source is whole.* Every write goes there first, and reads and flushes go nowhere else. So the move can be given up
//!    at any time, by us, by the user, or by SIGKILL.
//! 2. *Of the first [`Progress`] bytes the target has what the source has*, but for writes that are not answered. A write is
//!    answered when both have it. The bytes are copied once from the guest, who could change them between the two.
//! 3. *Nobody works at the same bytes at the same time* ([`Ranges`]): overlapping writes come to both in one order, and none
//!    falls between the reading and the writing of a chunk.
//! 4. *The progress outlives the process*: it is in memory of a file. It grows after the target has a chunk, and is zero before
//!    a write is answered that the target failed. So a daemon that finds it after a SIGKILL goes on from there, having run
//!    again, through a mirror, what the in-flight log has: that is all that the target may lack.
//! 5. *What was lost is missed.* A server that goes takes with it what it had not made durable; that it may have is counted
//!    ([`Remote::losses`]), and all is compared anew ([`compare`]).
//!
//! A mirror is a [`Remote`], because it has an engine of its own.

mod compare;
mod engine;
mod ranges;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::Disk;
use crate::image::bounce::{BOUNCE_MAX, Bounce};
use crate::memory::{GuestRam, Slots};
use crate::remote::{Blocking, Remote, RemoteEngine};
use compare::Pass;
use engine::MirrorEngine;
use ranges::Ranges;

/// Bytes that are copied at once.
const CHUNK: u64 = BOUNCE_MAX as u64;

/// How many bytes the target has: a word of memory that outlives the process.
pub struct Progress {
    words: Arc<Slots<AtomicU64>>,
    index: usize,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.get()).finish()
    }
}

impl Progress {
    /// The word with this number.
    #[must_use]
    pub const fn new(words: Arc<Slots<AtomicU64>>, index: usize) -> Self {
        Self { words, index }
    }

    /// Bytes.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.words
            .get(self.index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// So many from now on.
    pub fn set(&self, bytes: u64) {
        if let Some(word) = self.words.get(self.index) {
            word.store(bytes, Ordering::Release);
        }
    }
}

/// Why a disk does not get to its target.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The target is too small.
    #[error("the target has {found} bytes, expected at least the disk's {expected}")]
    Small {
        /// Its size.
        found: u64,
        /// The disk's.
        expected: u64,
    },
    /// The target cannot take what the guest writes.
    #[error("the target's blocks have {found} bytes, expected up to the {expected} that the guest knows")]
    Blocks {
        /// The target's.
        found: u32,
        /// The source's.
        expected: u32,
    },
    /// The source cannot be read.
    #[error("cannot read the disk at byte {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The target failed.
    #[error("the target failed: {0}")]
    Target(String),
    /// The target has something else than the source.
    #[error("the target differs from the disk in the {CHUNK} bytes from byte {offset} on")]
    Differs {
        /// Where.
        offset: u64,
    },
}

/// What [`Mirror::copy`] and [`Mirror::verify`] have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is more.
    More,
    /// That was all.
    End,
}

/// A disk on its way.
#[derive(Debug)]
pub struct Mirror {
    source: Arc<Disk>,
    target: Arc<Disk>,
    size: u64,
    ranges: Ranges,
    progress: Progress,
    /// Why the target is of no use any more.
    failed: Mutex<Option<String>>,
    pass: Mutex<Pass>,
    /// Bytes that were copied again.
    mended: AtomicU64,
    /// Zeroes that are copied take no blocks.
    sparse: AtomicBool,
}

impl Mirror {
    /// From `source` to `target`, of which the first [`Progress`] bytes are there already.
    ///
    /// # Errors
    /// The target cannot be what the source is.
    pub fn new(source: Arc<Disk>, target: Arc<Disk>, progress: Progress) -> Result<Arc<Self>, MirrorError> {
        let bytes = |disk: &Disk| disk.capacity().saturating_mul(crate::virtio::SECTOR_SIZE);
        let (size, found) = (bytes(&source), bytes(&target));
        if found < size {
            return Err(MirrorError::Small {
                found,
                expected: size,
            });
        }
        let (found, expected) = (target.block_size(), source.block_size());
        if found > expected {
            return Err(MirrorError::Blocks { found, expected });
        }
        let losses = source.losses().wrapping_add(target.losses());
        Ok(Arc::new(Self {
            pass: Mutex::new(Pass::new(losses, progress.get() > 0)),
            mended: AtomicU64::new(0),
            sparse: AtomicBool::new(true),
            source,
            target,
            size,
            ranges: Ranges::default(),
            progress,
            failed: Mutex::default(),
        }))
    }

    /// The target keeps the blocks that it has: zeroes that are copied are no holes.
    pub fn keep_blocks(&self) {
        self.sparse.store(false, Ordering::Relaxed);
    }

    /// Bytes to be moved.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the target has.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.progress.get().min(self.size)
    }

    /// Where it comes from.
    #[must_use]
    pub const fn source(&self) -> &Arc<Disk> {
        &self.source
    }

    /// Where it goes.
    #[must_use]
    pub const fn target(&self) -> &Arc<Disk> {
        &self.target
    }

    /// Why the target is of no use, if it is not.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let failed = self.failed.lock();
        failed.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The target lacks something from now on.
    fn fail(&self, error: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything is answered, and for good: see `copy`.
        self.progress.set(0);
        failed.get_or_insert_with(|| error.to_owned());
    }

    fn check(&self) -> Result<(), MirrorError> {
        self.failure()
            .map_or(Ok(()), |reason| Err(MirrorError::Target(reason)))
    }

    /// Copies the next chunk.
    ///
    /// # Errors
    /// Source or target failed: the move has come to nothing, and the source is whole.
    pub fn copy(&self) -> Result<Step, MirrorError> {
        self.check()?;
        let offset = self.copied();
        let len = CHUNK.min(self.size - offset);
        if len == 0 {
            return Ok(Step::End);
        }
        let mut bounce = Bounce::new(len);
        let bytes = part(&mut bounce, len);
        let _held = self.ranges.hold(offset, len);
        self.read_source(bytes, offset)?;
        self.fill(bytes, offset)?;
        // A write elsewhere may fail at this moment, and set it to zero.
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            self.progress.set(offset + len);
        }
        Ok(Step::More)
    }

    /// Gives the target these bytes of the source. Their range is held.
    fn fill(&self, bytes: &[u8], offset: u64) -> Result<(), MirrorError> {
        let written = if bytes.iter().all(|&byte| byte == 0) {
            let unmap = self.sparse.load(Ordering::Relaxed);
            zero(&self.target, offset, bytes.len() as u64, unmap)
        } else {
            self.target.perform(Blocking::Write(bytes, false), offset)
        };
        if let Err(error) = written {
            self.fail(&error.to_string());
        }
        self.check()
    }

    fn read_source(&self, bytes: &mut [u8], offset: u64) -> Result<(), MirrorError> {
        let read = self.source.perform(Blocking::Read(bytes), offset);
        read.map_err(|source| MirrorError::Read { offset, source })
    }

    /// Of a failed `fdatasync` the kernel tells once: the source has to remember it, which may outlive the mirror.
    fn note_failed_sync(&self, done: io::Result<()>) -> io::Result<()> {
        let transient = [libc::EINTR, libc::EAGAIN];
        if let Err(error) = &done
            && !error.raw_os_error().is_some_and(|code| transient.contains(&code))
        {
            self.source.set_sync_failed();
        }
        done
    }

    /// Does something to the target that the source has done, if these bytes are there already. Their range is held.
    fn follow(&self, offset: u64, act: impl FnOnce(&Disk) -> io::Result<()>) {
        // No chunk is being copied that begins behind `offset` and has it below the new progress: it would be held.
        if offset >= self.copied() || self.failure().is_some() {
            return;
        }
        if let Err(error) = act(&self.target) {
            self.fail(&error.to_string());
        }
    }
}

fn part(bounce: &mut Bounce, len: u64) -> &mut [u8] {
    let len = usize::try_from(len).unwrap_or(BOUNCE_MAX);
    bounce.bytes().get_mut(..len).unwrap_or_default()
}

/// Zeroes, by writing them where there is no other way.
fn zero(disk: &Disk, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let zeroes = Blocking::Zero { len, unmap };
    match disk.perform(zeroes, offset) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        done => return done,
    }
    let mut bounce = Bounce::new(len);
    let (mut offset, mut left) = (offset, len);
    while left > 0 {
        let now = left.min(CHUNK);
        disk.perform(Blocking::Write(part(&mut bounce, now), false), offset)?;
        offset += now;
        left -= now;
    }
    Ok(())
}

impl Remote for Mirror {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.source.block_size()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn has_zeroes(&self) -> bool {
        true
    }

    /// It keeps its size.
    fn on_resize(&self, _tell: Box<dyn Fn() + Send + Sync>) {}

    fn start(&self, _ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        Ok(Box::new(MirrorEngine::new()?))
    }

    fn perform(&self, what: Blocking<'_>, offset: u64) -> io::Result<()> {
        match what {
            Blocking::Read(_) => self.source.perform(what, offset),
            Blocking::Sync => self.note_failed_sync(self.source.perform(what, offset)),
            Blocking::Write(bytes, durable) => {
                let _held = self.ranges.hold(offset, bytes.len() as u64);
                let written = self.source.perform(Blocking::Write(bytes, durable), offset);
                match written {
                    Err(error) if durable && error.raw_os_error() != Some(libc::ENOSPC) => {
                        return self.note_failed_sync(Err(error));
                    }
                    written => written?,
                }
                self.follow(offset, |target| {
                    target.perform(Blocking::Write(bytes, false), offset)
                });
                Ok(())
            }
            Blocking::Zero { len, unmap } => {
                let _held = self.ranges.hold(offset, len);
                self.source.perform(what, offset)?;
                self.follow(offset, |target| zero(target, offset, len, unmap));
                Ok(())
            }
            Blocking::Discard { len } => {
                let _held = self.ranges.hold(offset, len);
                match self.source.perform(what, offset) {
                    // It is no more than advice.
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
                    done => done?,
                }
                // What discarded bytes read is not said: here they read the same on both, zero.
                zero(&self.source, offset, len, true)?;
                self.follow(offset, |target| zero(target, offset, len, true));
                Ok(())
            }
        }
    }
}
