//! [`Migration`]: its state, [`Progress`] and errors, and the copy of the bytes that the guest does not write
//! meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringvirtio::memory::Slots;

use super::ranges::RangeLocks;
use crate::disk::Disk;
use crate::image::BlockingIo;
use crate::image::bounce::{BOUNCE_MAX, Bounce};
use crate::virtio::SECTOR_SIZE;

/// Bytes that are copied and compared at once.
pub(super) const CHUNK: u64 = BOUNCE_MAX as u64;

/// Why a disk cannot be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The target is too small.
    #[error("the target has {found} bytes, expected at least the disk's {expected}")]
    Small {
        /// Its size.
        found: u64,
        /// The disk's.
        expected: u64,
    },
    /// The target's blocks are larger than the guest's writes may be.
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
        /// Byte offset.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The target failed.
    #[error("the target failed: {0}")]
    Target(String),
    /// The target's contents differ from the source's.
    #[error("the target differs from the disk in the {CHUNK} bytes from byte {offset} on")]
    Differs {
        /// Byte offset.
        offset: u64,
    },
}

/// How many bytes the target has, in a word of memory that outlives the process.
pub struct Progress {
    words: Arc<Slots<AtomicU64>>,
    index: usize,
}

impl Progress {
    /// Uses the word with this index.
    pub const fn new(words: Arc<Slots<AtomicU64>>, index: usize) -> Self {
        Self { words, index }
    }

    /// Returns the bytes.
    pub fn get(&self) -> u64 {
        self.words
            .get(self.index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets the bytes.
    pub fn set(&self, bytes: u64) {
        if let Some(word) = self.words.get(self.index) {
            word.store(bytes, Ordering::Release);
        }
    }
}

/// Result of [`Migration::copy`], [`Migration::verify`] and [`Migration::seal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is more to do.
    More,
    /// That was all.
    End,
}

/// A pass of [`Migration::verify`] over both disks.
pub(super) struct Pass {
    /// Losses of both disks ([`Disk::write_losses`]) when it began.
    pub losses: u64,
    /// Differences are explained by what happened before it.
    pub explained: bool,
    /// Something was copied again.
    pub recopied: bool,
}

/// A disk that is being migrated.
pub struct Migration {
    source: Arc<Disk>,
    target: Arc<Disk>,
    size: u64,
    pub(super) ranges: RangeLocks,
    progress: Progress,
    /// Why the target cannot be used any more.
    failure: Mutex<Option<String>>,
    pass: Mutex<Pass>,
    /// Bytes that were copied again.
    pub(super) recopied: AtomicU64,
    /// Copied zeroes take no blocks.
    sparse: AtomicBool,
}

impl Migration {
    /// Begins a migration from `source` to `target`, whose first [`Progress`] bytes an earlier daemon has
    /// copied.
    ///
    /// # Errors
    /// The target is too small, or its blocks are too large.
    pub fn new(
        source: Arc<Disk>,
        target: Arc<Disk>,
        progress: Progress,
    ) -> Result<Arc<Self>, MigrationError> {
        let bytes = |disk: &Disk| disk.capacity().saturating_mul(SECTOR_SIZE);
        let (size, found) = (bytes(&source), bytes(&target));
        if found < size {
            return Err(MigrationError::Small {
                found,
                expected: size,
            });
        }
        let (found, expected) = (target.block_size(), source.block_size());
        if found > expected {
            return Err(MigrationError::Blocks { found, expected });
        }
        let pass = Pass {
            losses: source.write_losses().wrapping_add(target.write_losses()),
            // The earlier daemon has left writes half done.
            explained: progress.get() > 0,
            recopied: false,
        };
        Ok(Arc::new(Self {
            pass: Mutex::new(pass),
            recopied: AtomicU64::new(0),
            sparse: AtomicBool::new(true),
            source,
            target,
            size,
            ranges: RangeLocks::default(),
            progress,
            failure: Mutex::default(),
        }))
    }

    /// Keeps the target's blocks allocated: zeroes are written and not punched as holes.
    pub fn keep_blocks(&self) {
        self.sparse.store(false, Ordering::Relaxed);
    }

    /// Returns the bytes to be migrated.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the bytes that the target has.
    pub fn copied(&self) -> u64 {
        self.progress.get().min(self.size)
    }

    /// Returns the source.
    pub const fn source(&self) -> &Arc<Disk> {
        &self.source
    }

    /// Returns the target.
    pub const fn target(&self) -> &Arc<Disk> {
        &self.target
    }

    /// Returns why the target cannot be used any more, if it has failed.
    pub fn failure(&self) -> Option<String> {
        self.lock_failure().clone()
    }

    fn lock_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pass(&self) -> MutexGuard<'_, Pass> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the target lacks something from now on.
    pub(super) fn fail(&self, error: &str) {
        let mut failure = self.lock_failure();
        // Before the guest's request completes, and for good: see `copy`.
        self.progress.set(0);
        failure.get_or_insert_with(|| error.to_owned());
    }

    /// # Errors
    /// The target has failed.
    pub(super) fn check(&self) -> Result<(), MigrationError> {
        self.failure()
            .map_or(Ok(()), |reason| Err(MigrationError::Target(reason)))
    }

    /// Copies the next chunk.
    ///
    /// # Errors
    /// Source or target failed: the migration has failed, and the source is complete.
    pub fn copy(&self) -> Result<Step, MigrationError> {
        self.check()?;
        let offset = self.copied();
        let len = CHUNK.min(self.size - offset);
        if len == 0 {
            return Ok(Step::End);
        }
        let mut bounce = Bounce::new(len);
        let bytes = part(&mut bounce, len);
        let _guard = self.ranges.lock(offset, len);
        self.read_source(bytes, offset)?;
        self.write_target(bytes, offset)?;
        // Under the lock: a write elsewhere may fail at this moment and set the progress to zero.
        let failure = self.lock_failure();
        if failure.is_none() {
            self.progress.set(offset + len);
        }
        Ok(Step::More)
    }

    /// Writes bytes of the source to the target. The caller has locked their range.
    pub(super) fn write_target(&self, bytes: &[u8], offset: u64) -> Result<(), MigrationError> {
        let written = if bytes.iter().all(|&byte| byte == 0) {
            let unmap = self.sparse.load(Ordering::Relaxed);
            zero(&self.target, offset, bytes.len() as u64, unmap)
        } else {
            self.target.run_blocking(BlockingIo::Write(bytes, false), offset)
        };
        if let Err(error) = written {
            self.fail(&error.to_string());
        }
        self.check()
    }

    pub(super) fn read_source(&self, bytes: &mut [u8], offset: u64) -> Result<(), MigrationError> {
        let read = self.source.run_blocking(BlockingIo::Read(bytes), offset);
        read.map_err(|source| MigrationError::Read { offset, source })
    }
}

/// Returns the first `len` bytes of the buffer.
pub(super) fn part(bounce: &mut Bounce, len: u64) -> &mut [u8] {
    let len = usize::try_from(len).unwrap_or(BOUNCE_MAX);
    bounce.bytes().get_mut(..len).unwrap_or_default()
}

/// Makes a range read zero, by writing zeroes where the disk has no other way.
pub(super) fn zero(disk: &Disk, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    match disk.run_blocking(BlockingIo::Zero { len, unmap }, offset) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        done => return done,
    }
    let mut bounce = Bounce::new(len);
    let (mut offset, mut left) = (offset, len);
    while left > 0 {
        let now = left.min(CHUNK);
        disk.run_blocking(BlockingIo::Write(part(&mut bounce, now), false), offset)?;
        offset += now;
        left -= now;
    }
    Ok(())
}
