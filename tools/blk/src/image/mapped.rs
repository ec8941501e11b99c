//! [`Mapped`]: a file in memory as a mapping, so that a transfer is a copy and no system call.
//!
//! The file is mapped when it is opened, and its pages in chunks of 256 KiB, each when it is worth it: at its first large transfer,
//! or after some small ones. To be read they are mapped many with one fault; to be written, each with one of its own, and a
//! page that was mapped to be read has another, with a broadcast TLBI, when it is written. So these are two states. Only a whole chunk without holes is: to touch a hole in a mapping would allocate it, even to read it.
//! Everything else is for the caller to do by system calls, with the same bytes in the same pages: a chunk that has holes,
//! the file's end, what the mapping has no room for, and what was to be copied when a page was gone, for a system call says why.
//!
//! What became of a chunk may change at any time, for others have the file too. A hole that was made after its chunk was
//! mapped is allocated again by the next transfer, unless [`Mapped::forget`] was called; where the file was cut a
//! copy fails, and not the process ([`super::copy`]), up to the end of its last page, which reads zero and keeps nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::copy::Guarded;
use crate::engine::IoKind;
use crate::memory::IoVec;

/// Bytes of a chunk: 64 page faults at once, where pages have 4 KiB.
pub const CHUNK: u64 = 256 << 10;
/// Bytes of a transfer from which on its chunk is worth being mapped. Large ones come in pieces, of which few have all of their
/// 64 KiB where buffers are odd.
const LARGE: u64 = 32 << 10;
/// Smaller transfers of a chunk with which it is to be read; mapping takes about as long as is saved until then.
const SOME: u8 = 8;
/// The same to be written.
const MANY: u8 = 64;
/// The least that is mapped, for a file may grow, and the largest file that is.
const LEAST: u64 = 1 << 30;
const MOST: u64 = 1 << 40;

/// The state of a chunk: whether it is mapped to be read, or to be written and read; the other bits count small transfers that were
/// not copies since it was last changed, or found that it should not be.
const READ: u8 = 0x80;
const WRITE: u8 = 0xff;

/// `cachestat`, of Linux 6.5: how many pages of a range there are. The libc crate has no name for it yet.
pub const SYS_CACHESTAT: libc::c_long = 451;

/// A file's mapping.
#[derive(Debug)]
pub struct Mapped {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    guarded: Guarded,
    chunks: Box<[AtomicU8]>,
    /// Something was written since the file was last told.
    written: AtomicBool,
}

// SAFETY: the mapping is this value's own, and only its copies, which are no data races in Rust's sense, touch it.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps a file of so many bytes, with room to grow.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(file: &File, bytes: u64) -> io::Result<Self> {
        if bytes > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Not known to the kernel, or not to be told to those who may not write the file.
        pages(file, 0, CHUNK)?;
        let guarded = Guarded::new()?;
        let room = (2 * bytes).max(LEAST).next_multiple_of(CHUNK);
        let len = usize::try_from(room).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags == -1 {
            return Err(io::Error::last_os_error());
        }
        let writable = flags & libc::O_ACCMODE == libc::O_RDWR;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        let base = match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => base,
            _ => return Err(io::Error::last_os_error()),
        };
        let mapped = Self {
            base,
            len,
            writable,
            guarded,
            chunks: zeroes((room / CHUNK) as usize),
            written: AtomicBool::new(false),
        };
        // A child would hold the file's lock, and a core dump the disk. Neither is of use, nor its lack a reason to do without.
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            let _ = mapped.advise(0, room, advice);
        }
        Ok(mapped)
    }

    /// Copies between the file and buffers, which have `len` bytes in all. `false`: it is to be done by other means, as a whole.
    ///
    /// # Safety
    /// The buffers are valid.
    pub unsafe fn transfer(&self, file: &File, kind: IoKind, parts: &[IoVec], offset: u64, len: u64) -> bool {
        let writes = kind != IoKind::Read;
        if writes && !self.writable || !self.is_there(file, writes, offset, len) {
            return false;
        }
        // Inside of the mapping, as all chunks are.
        let mut here = self.base.as_ptr().wrapping_add(offset as usize);
        for part in parts {
            let (guest, bytes) = (part.as_ptr(), part.len());
            let (to, from) = if writes { (here, guest) } else { (guest, here) };
            // SAFETY: buffers are valid, says the caller, and the rest is mapped.
            if !unsafe { self.guarded.copy(to, from, bytes) } {
                self.forget(offset, len);
                return false;
            }
            here = here.wrapping_add(bytes);
        }
        if writes && !self.written.load(Ordering::Relaxed) {
            self.written.store(true, Ordering::Relaxed);
        }
        true
    }

    /// What became of these bytes is to be found out again: there may be holes.
    pub fn forget(&self, offset: u64, len: u64) {
        for chunk in self.range(offset, len) {
            chunk.store(0, Ordering::Relaxed);
        }
    }

    /// Has the file's time of modification follow: copies do not change it.
    pub fn touch(&self, file: &File) {
        if self.written.swap(false, Ordering::Relaxed) {
            // The kernel notes the time of a write before it finds that there is nothing at its buffer. Setting the time needs the
            // right to write the file by name, which a daemon that was given it open does not have.
            // SAFETY: the kernel checks the buffer, which is not there.
            unsafe { libc::pwrite(file.as_raw_fd(), std::ptr::null(), 1, 0) };
        }
    }

    fn range(&self, offset: u64, len: u64) -> &[AtomicU8] {
        let last = offset.saturating_add(len.max(1) - 1) / CHUNK;
        let end = usize::try_from(last).map_or(usize::MAX, |last| last.saturating_add(1));
        let first = usize::try_from(offset / CHUNK).unwrap_or(usize::MAX);
        let end = end.min(self.chunks.len());
        self.chunks.get(first..end).unwrap_or_default()
    }

    /// Whether all of these bytes are mapped, or can be now.
    fn is_there(&self, file: &File, writes: bool, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.len as u64) {
            return false;
        }
        (offset / CHUNK..)
            .zip(self.range(offset, len))
            .all(|(number, chunk)| {
                let state = chunk.load(Ordering::Relaxed);
                state >= if writes { WRITE } else { READ }
                    || self.map(file, number * CHUNK, writes, chunk, len >= LARGE)
            })
    }

    /// Maps a chunk if this transfer makes it worth it.
    #[cold]
    fn map(&self, file: &File, start: u64, writes: bool, chunk: &AtomicU8, large: bool) -> bool {
        let before = chunk.load(Ordering::Relaxed);
        let (mapped, count) = (before & READ, (before & !READ) + 1);
        let (enough, wanted) = if writes { (MANY, WRITE) } else { (SOME, READ) };
        if before >= wanted {
            // By another thread, meanwhile.
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

    /// Maps the pages of a chunk, unless it has holes or is not all of it the file's.
    fn populate(&self, file: &File, start: u64, writes: bool, mapped: bool) -> io::Result<bool> {
        if pages(file, start, CHUNK)? * page_size() < CHUNK || file.metadata()?.len() < start + CHUNK {
            return Ok(false);
        }
        if mapped {
            // One TLBI for all of them, instead of one for each.
            self.advise(start, CHUNK, libc::MADV_DONTNEED)?;
        }
        let how = if writes {
            libc::MADV_POPULATE_WRITE
        } else {
            libc::MADV_POPULATE_READ
        };
        self.advise(start, CHUNK, how).map(|()| true)
    }

    fn advise(&self, offset: u64, len: u64, advice: libc::c_int) -> io::Result<()> {
        let at = self.base.as_ptr().wrapping_add(offset as usize);
        // SAFETY: a part of our own mapping, of which none of the advice used here changes the bytes.
        match unsafe { libc::madvise(at.cast(), len as usize, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Chunks that are mapped, to be read at least, and those to be written.
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
        // SAFETY: the mapping is ours, and nobody copies any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Pages of a range of a file that are in memory and no holes.
fn pages(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let range = [offset, len];
    // Of `struct cachestat` the first word is the pages there are; those that were swapped out are in others.
    let mut found = [0_u64; 5];
    // SAFETY: two and five words of 64 bits, as the kernel has them; no flags.
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

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// So many zeroes, of which the system gives pages only when they are changed.
fn zeroes(count: usize) -> Box<[AtomicU8]> {
    let bytes: *mut [u8] = Box::into_raw(vec![0_u8; count].into_boxed_slice());
    // SAFETY: it was a box of as many bytes, and an `AtomicU8` has the size, alignment and values of a `u8`.
    unsafe { Box::from_raw(bytes as *mut [AtomicU8]) }
}
