//! [`Mapped`]: a mapping of a file in memory, so that a transfer is a copy and not a system call.
//!
//! The address range is mapped when the file is opened; pages are populated in chunks of 256 KiB, each when
//! it pays: at its first large transfer, or after some small ones. For reading, one fault maps many pages;
//! for writing, each page takes a fault, and a page that was mapped for reading takes a second one, with a
//! broadcast TLBI, when it is first written. So these are two states. Only a whole chunk without holes is
//! populated: touching a hole in a mapping allocates it, even for a read. For the rest the caller uses system
//! calls, which see the same pages: chunks with holes, the file's end, what lies outside of the mapping, and
//! copies that failed, because the system call reports why.
//!
//! A chunk can change at any time, because other processes can open the file. A hole punched after its chunk
//! was populated is allocated again by the next transfer, unless [`Mapped::invalidate`] was called. Where the
//! file was truncated a copy fails ([`super::copy`]), except up to the end of the last page, which reads zero
//! and keeps nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use ringvirtio::memory::IoVec;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::IoKind;
use super::copy::Guarded;

/// Bytes of a chunk: 64 pages of 4 KiB, populated by one system call.
pub const CHUNK: u64 = 256 << 10;
/// Bytes of a transfer that makes its chunk worth populating at once. It is less than the 64 KiB of a piece,
/// because few pieces are full where the buffers have odd sizes.
const LARGE: u64 = 32 << 10;
/// Smaller reads after which a chunk is populated for reading: they cost about what populating does.
const READS_BEFORE_MAP: u8 = 8;
/// Smaller writes after which a chunk is populated for writing.
const WRITES_BEFORE_MAP: u8 = 64;
/// Least size of a mapping, since a file may grow, and size of the largest file that is mapped.
const MAPPING_MIN: u64 = 1 << 30;
const FILE_MAX: u64 = 1 << 40;

/// State of a chunk: populated for reading, or for reading and writing. The other bits count the small
/// transfers by system call since the state last changed or the chunk was found to have holes.
const READ: u8 = 0x80;
const WRITE: u8 = 0xff;

/// `cachestat` (Linux 6.5), which counts the pages of a range. The libc crate does not name it yet.
pub const SYS_CACHESTAT: libc::c_long = 451;

/// A file's mapping.
pub struct Mapped {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    guarded: Guarded,
    chunks: Box<[AtomicU8]>,
    /// Written since the file's time of modification was last updated.
    written: AtomicBool,
}

// SAFETY: the mapping is owned by this value, and accessed only by guarded copies, in assembly.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps a file of `bytes` bytes, with room to grow.
    ///
    /// # Errors
    /// The system's error, or the file is too large.
    pub fn new(file: &File, bytes: u64) -> io::Result<Self> {
        if bytes > FILE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Fails where the kernel has no `cachestat`, or refuses it for a file that the process may not write.
        pages(file, 0, CHUNK)?;
        let guarded = Guarded::new()?;
        let room = (2 * bytes).max(MAPPING_MIN).next_multiple_of(CHUNK);
        let len = usize::try_from(room).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let writable = fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDWR;
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)? };
        let mapped = Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            writable,
            guarded,
            chunks: zeroes((room / CHUNK) as usize),
            written: AtomicBool::new(false),
        };
        // A child would hold the file's lock, and a core dump would contain the disk. Neither is worth a
        // failure.
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            let _ = mapped.advise(0, room, advice);
        }
        Ok(mapped)
    }

    /// Copies between the file and buffers, which have `len` bytes in all. Returns `false` if the caller has
    /// to do the whole transfer by system calls.
    ///
    /// # Safety
    /// The buffers are valid.
    pub unsafe fn transfer(&self, file: &File, kind: IoKind, parts: &[IoVec], offset: u64, len: u64) -> bool {
        let writes = kind != IoKind::Read;
        if writes && !self.writable || !self.is_populated(file, writes, offset, len) {
            return false;
        }
        // Inside of the mapping: `is_populated` has checked.
        let mut here = self.base.as_ptr().wrapping_add(offset as usize);
        for part in parts {
            let (guest, bytes) = (part.as_ptr(), part.len());
            let (to, from) = if writes { (here, guest) } else { (guest, here) };
            // SAFETY: the caller guarantees valid buffers, and the rest is mapped.
            if !unsafe { self.guarded.copy(to, from, bytes) } {
                self.invalidate(offset, len);
                return false;
            }
            here = here.wrapping_add(bytes);
        }
        if writes && !self.written.load(Ordering::Relaxed) {
            self.written.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Marks the chunks of a range as not populated: there may be holes now.
    pub fn invalidate(&self, offset: u64, len: u64) {
        for chunk in self.range(offset, len) {
            chunk.store(0, Ordering::Relaxed);
        }
    }

    /// Updates the file's time of modification if copies have written: they do not change it.
    pub fn update_mtime(&self, file: &File) {
        if self.written.swap(false, Ordering::Relaxed) {
            // The kernel updates the time before it finds that the buffer is invalid. Setting the time
            // directly needs write permission on the file, which a daemon that was given the descriptor does
            // not have.
            // SAFETY: the kernel checks the buffer, which is null.
            unsafe { libc::pwrite(file.as_raw_fd(), std::ptr::null(), 1, 0) };
        }
    }

    /// Returns the chunks of a range.
    fn range(&self, offset: u64, len: u64) -> &[AtomicU8] {
        let last = offset.saturating_add(len.max(1) - 1) / CHUNK;
        let end = usize::try_from(last).map_or(usize::MAX, |last| last.saturating_add(1));
        let first = usize::try_from(offset / CHUNK).unwrap_or(usize::MAX);
        let end = end.min(self.chunks.len());
        self.chunks.get(first..end).unwrap_or_default()
    }

    /// Returns whether all of the range is populated, or could be populated now.
    fn is_populated(&self, file: &File, writes: bool, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.len as u64) {
            return false;
        }
        (offset / CHUNK..)
            .zip(self.range(offset, len))
            .all(|(number, chunk)| {
                let state = chunk.load(Ordering::Relaxed);
                state >= if writes { WRITE } else { READ }
                    || self.map_if_worth(file, number * CHUNK, writes, chunk, len >= LARGE)
            })
    }

    /// Counts this transfer of a chunk, and populates the chunk if that pays now. Returns whether it is
    /// populated.
    #[cold]
    fn map_if_worth(&self, file: &File, start: u64, writes: bool, chunk: &AtomicU8, large: bool) -> bool {
        let before = chunk.load(Ordering::Relaxed);
        let (mapped, count) = (before & READ, (before & !READ) + 1);
        let (enough, wanted) = if writes {
            (WRITES_BEFORE_MAP, WRITE)
        } else {
            (READS_BEFORE_MAP, READ)
        };
        if before >= wanted {
            // Another thread has populated it.
            return true;
        }
        let next = if !large && count < enough {
            mapped | count
        } else {
            match self.populate(file, start, writes, mapped != 0) {
                Ok(true) => wanted,
                Ok(false) => 0,
                Err(error) => {
                    tracing::debug!(%error, start, "a chunk of a file in memory cannot be mapped");
                    0
                }
            }
        };
        chunk.store(next, Ordering::Relaxed);
        next >= wanted
    }

    /// Populates a chunk, unless it has holes or extends beyond the file's end.
    fn populate(&self, file: &File, start: u64, writes: bool, mapped: bool) -> io::Result<bool> {
        let present = pages(file, start, CHUNK)? * rustix::param::page_size() as u64;
        if present < CHUNK || file.metadata()?.len() < start + CHUNK {
            return Ok(false);
        }
        if mapped {
            // One TLBI for all pages instead of one for each.
            self.advise(start, CHUNK, Advice::LinuxDontNeed)?;
        }
        let how = if writes {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        self.advise(start, CHUNK, how).map(|()| true)
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) -> io::Result<()> {
        let at = self.base.as_ptr().wrapping_add(offset as usize);
        // SAFETY: a part of this value's mapping; none of the advice used here changes its bytes.
        Ok(unsafe { madvise(at.cast(), len as usize, advice) }?)
    }

    /// Returns how many chunks are populated, and how many of them for writing.
    #[cfg(test)]
    pub fn count(&self) -> [usize; 2] {
        [READ, WRITE].map(|least| {
            let mapped = |chunk: &&AtomicU8| chunk.load(Ordering::Relaxed) >= least;
            self.chunks.iter().filter(mapped).count()
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: owned by this value, and not used any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Returns how many pages of a range are in memory and not holes.
fn pages(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let range = [offset, len];
    // The first word of `struct cachestat` counts the cached pages; pages that were swapped out are in other
    // words.
    let mut found = [0_u64; 5];
    // SAFETY: two and five words of 64 bits, as the kernel defines them; no flags.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            found.as_mut_ptr(),
            0_u32,
        )
    };
    match result {
        0 => Ok(found[0]),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns zeroes that take no pages until they are written.
fn zeroes(count: usize) -> Box<[AtomicU8]> {
    let bytes: *mut [u8] = Box::into_raw(vec![0_u8; count].into_boxed_slice());
    // SAFETY: the box has as many bytes, and an `AtomicU8` has the size, alignment and values of a `u8`.
    unsafe { Box::from_raw(bytes as *mut [AtomicU8]) }
}
