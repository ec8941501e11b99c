//! [`Mapped`]: a file in memory as a mapping, so that a transfer is a copy and no system call.
//!
//! The file is mapped when it is opened, and its pages in chunks of 256 KiB, each when it is worth it: at its first large transfer,
//! or after a few small ones. Only a chunk without holes is: to touch a hole in a mapping would allocate it, even to read it.
//! Everything else is for the caller to do by system calls, with the same bytes in the same pages: a chunk that has holes,
//! one that the mapping has no room for, and one where a copy has failed, for the system call says why.
//!
//! What became of a chunk may change at any time, for others have the file too. A hole that was made after its chunk was
//! mapped is allocated again by the next transfer, unless [`Mapped::forget`] was called; a file that was cut makes a
//! copy fail, and not the process end ([`super::copy`]).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::copy::Guarded;
use crate::engine::IoKind;
use crate::memory::IoVec;

/// Bytes of a chunk: 64 page faults at once, where pages have 4 KiB.
const CHUNK: u64 = 256 << 10;
/// Bytes of a transfer from which on its chunk is worth being mapped.
const LARGE: u64 = 64 << 10;
/// Smaller transfers of a chunk with which it is.
const SEVERAL: u8 = 4;
/// The least that is mapped: a file may grow.
const ROOM: u64 = 1 << 30;

/// The most that is searched for a hole at a time: some 50 ms.
const SEARCHED: u64 = 16 << 30;

/// A chunk's state. Below [`FULL`] it may have holes, as far as is known; either way the rest counts small transfers.
const FULL: u8 = 0x80;
const REFUSED: u8 = 254;
const MAPPED: u8 = 255;

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
        let guarded = Guarded::new()?;
        let room = bytes.saturating_mul(2).max(ROOM).next_multiple_of(CHUNK);
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
            chunks: (0..room / CHUNK).map(|_| AtomicU8::new(0)).collect(),
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
        if writes && !self.writable || !self.is_there(file, offset, len) {
            return false;
        }
        // Inside of the mapping, as all chunks are.
        let mut here = self.base.as_ptr().wrapping_add(offset as usize);
        for part in parts {
            let (guest, bytes) = (part.as_ptr(), part.len());
            let (to, from) = if writes { (here, guest) } else { (guest, here) };
            // SAFETY: buffers are valid, says the caller, the rest is mapped, and guest RAM is no part of it.
            if !unsafe { self.guarded.copy(to, from, bytes) } {
                self.set(offset, len, REFUSED);
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
        self.set(offset, len, 0);
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

    fn set(&self, offset: u64, len: u64, state: u8) {
        for chunk in self.range(offset, len) {
            chunk.store(state, Ordering::Relaxed);
        }
    }

    /// Whether all of these bytes are mapped, or can be now.
    fn is_there(&self, file: &File, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.len as u64) {
            return false;
        }
        let mut number = offset / CHUNK;
        for chunk in self.range(offset, len) {
            let state = chunk.load(Ordering::Relaxed);
            if state != MAPPED && !self.map(file, number, chunk, state, len) {
                return false;
            }
            number += 1;
        }
        true
    }

    /// Maps a chunk if this transfer makes it worth it.
    #[cold]
    fn map(&self, file: &File, number: u64, chunk: &AtomicU8, state: u8, len: u64) -> bool {
        if state == REFUSED {
            return false;
        }
        let count = (state & !FULL) + 1;
        if len < LARGE && count < SEVERAL {
            chunk.store(state & FULL | count, Ordering::Relaxed);
            return false;
        }
        let mapped = self.try_to_map(file, number * CHUNK, state & FULL != 0);
        let next = match mapped {
            Ok(true) => MAPPED,
            Ok(false) => 0,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => 0,
            Err(error) => {
                tracing::debug!(%error, number, "a chunk of a file in memory cannot be mapped");
                REFUSED
            }
        };
        chunk.store(next, Ordering::Relaxed);
        next == MAPPED
    }

    fn try_to_map(&self, file: &File, start: u64, full: bool) -> io::Result<bool> {
        let size = file.metadata()?.len();
        if !full && !self.is_full(file, start, size)? {
            return Ok(false);
        }
        self.populate(start, size).map(|()| true)
    }

    /// Whether a chunk of a file of that size has no holes. What else has none is remembered.
    fn is_full(&self, file: &File, start: u64, size: u64) -> io::Result<bool> {
        if start >= size || size > SEARCHED {
            return Ok(false);
        }
        // SAFETY: no pointers.
        let hole = unsafe { libc::lseek(file.as_raw_fd(), start as libc::off_t, libc::SEEK_HOLE) };
        let Ok(hole) = u64::try_from(hole) else {
            return Err(io::Error::last_os_error());
        };
        // The end of a file counts as one.
        let end = if hole >= size { size.next_multiple_of(CHUNK) } else { hole };
        let bytes = end.saturating_sub(start) / CHUNK * CHUNK;
        if bytes == 0 {
            return Ok(false);
        }
        for chunk in self.range(start, bytes) {
            let full = |state| (state < FULL).then_some(state | FULL);
            // Who has found out more meanwhile is right.
            let _ = chunk.try_update(Ordering::Relaxed, Ordering::Relaxed, full);
        }
        Ok(true)
    }

    /// Maps the pages of a chunk, as far as the file has them.
    fn populate(&self, start: u64, size: u64) -> io::Result<()> {
        // Ready to be written if they can be: a page that is mapped to be read costs a fault at its first write.
        let how = if self.writable {
            libc::MADV_POPULATE_WRITE
        } else {
            libc::MADV_POPULATE_READ
        };
        let len = size.saturating_sub(start).min(CHUNK);
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.advise(start, len, how)
    }

    fn advise(&self, offset: u64, len: u64, advice: libc::c_int) -> io::Result<()> {
        let at = self.base.as_ptr().wrapping_add(offset as usize);
        // SAFETY: a part of our own mapping, of which none of the advice used here changes the bytes.
        match unsafe { libc::madvise(at.cast(), len as usize, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Chunks that are mapped.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        let mapped = |chunk: &&AtomicU8| chunk.load(Ordering::Relaxed) == MAPPED;
        self.chunks.iter().filter(mapped).count()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody copies any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
