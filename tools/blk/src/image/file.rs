//! Raw images: a file or block device, the operations on it, and fallbacks where it lacks one.
//!
//! A file is either read and written around the page cache (O_DIRECT) or through it, never both: a buffered
//! write of one sector brings its page into the cache, and the page's write-back later undoes direct writes
//! to the sectors next to it. So O_DIRECT is used only where the file takes every request that a guest can
//! make, at any sector; buffers that are not aligned are copied through a [`Bounce`]. A file in memory is
//! [`Mapped`] where possible.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::AtomicBool;

use ringvirtio::memory::IoVec;
use rustix::fs::{FallocateFlags, ioctl_blksszget};

use super::IoKind;
use super::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use super::mapped::Mapped;
use super::pieces::{PIECE, PieceTransfer};
use super::sys::{block_discard, direct_align, fallocate, is_in_memory, set_direct, transfer};
use crate::virtio::SECTOR_SIZE;

/// Largest alignment that O_DIRECT may require of offsets, lengths and addresses to be used.
const DIRECT_ALIGN: u64 = SECTOR_SIZE;

/// Most bytes of a file in memory that are deallocated by one system call.
const PUNCH_MAX: u64 = 16 << 20;

/// An open raw image.
pub struct RawFile {
    file: File,
    /// Whether it is a block device.
    pub(crate) device: bool,
    /// Whether it is on a file system in memory.
    pub(crate) memory: bool,
    /// The mapping of a file in memory, if it could be mapped.
    mapped: Option<Mapped>,
    /// Whether I/O bypasses the page cache.
    pub(crate) direct: bool,
    /// The size of a device's logical block in bytes; 512 for a file.
    pub(crate) block_size: u32,
    /// Set when the file turns out not to support the operation.
    no_holes: AtomicBool,
    no_zero_range: AtomicBool,
}

impl RawFile {
    /// Finds out what the file supports. `direct`: use O_DIRECT where possible.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(file: File, direct: bool) -> io::Result<Self> {
        let device = file.metadata()?.file_type().is_block_device();
        let block_size = if device {
            ioctl_blksszget(&file)?
        } else {
            SECTOR_SIZE as u32
        };
        let memory = !device && is_in_memory(&file)?;
        let align = match () {
            () if !direct || memory => None,
            () if device => Some(u64::from(block_size)),
            () => direct_align(&file),
        };
        let direct = align.is_some_and(|align| align <= DIRECT_ALIGN) && set_direct(&file).is_ok();
        let mapped = match memory.then(|| Mapped::new(&file, file.metadata()?.len())) {
            Some(Ok(mapped)) => Some(mapped),
            Some(Err(error)) => {
                tracing::debug!(%error, "a file in memory cannot be mapped: it is read and written by system calls");
                None
            }
            None => None,
        };
        Ok(Self {
            file,
            device,
            memory,
            mapped,
            direct,
            block_size,
            no_holes: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
        })
    }

    /// Returns its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Returns the current size in bytes.
    ///
    /// # Errors
    /// The system's error.
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Returns how many chunks are mapped, and how many of them for writing; `None` if the file is not
    /// mapped.
    #[cfg(test)]
    pub(crate) fn mapped(&self) -> Option<[usize; 2]> {
        self.mapped.as_ref().map(Mapped::count)
    }

    /// Changes the size of a file.
    ///
    /// # Errors
    /// The system's error.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.invalidate(0, u64::MAX);
        Ok(())
    }

    /// Extends a file that ends inside of a sector to the end of it, so that the sector can be written.
    ///
    /// # Errors
    /// The system's error.
    pub fn complete_sector(&self) -> io::Result<()> {
        let size = self.size()?;
        match size.is_multiple_of(SECTOR_SIZE) {
            true => Ok(()),
            false => self.set_size(size.next_multiple_of(SECTOR_SIZE)),
        }
    }

    /// Invalidates the mapping of a range that may have holes now.
    fn invalidate(&self, offset: u64, len: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.invalidate(offset, len);
        }
    }

    /// Returns whether the file accepts a transfer between these buffers and this offset without a bounce
    /// buffer.
    pub fn accepts(&self, parts: &[IoVec], offset: u64) -> bool {
        let aligned = |value: u64| value.is_multiple_of(DIRECT_ALIGN);
        let fits = |part: &IoVec| aligned(part.as_ptr().addr() as u64) && aligned(part.len() as u64);
        !self.direct || (aligned(offset) && parts.iter().all(fits))
    }

    /// # Safety
    /// The buffers are valid.
    pub(super) unsafe fn run(
        &self,
        kind: IoKind,
        parts: &[IoVec],
        offset: u64,
        len: u64,
    ) -> io::Result<usize> {
        match kind {
            IoKind::Sync => {
                if let Some(mapped) = &self.mapped {
                    mapped.update_mtime(&self.file);
                }
                self.file.sync_data().map(|()| 0)
            }
            IoKind::Discard => self.discard(offset, len).map(|()| 0),
            IoKind::WriteZeroes { unmap } => self.zero(offset, len, unmap).map(|()| 0),
            // SAFETY: the caller guarantees valid buffers.
            _ if self.memory && len > PIECE as u64 => unsafe { self.run_pieces(kind, parts, offset) },
            // SAFETY: as above.
            _ if self.memory => unsafe { self.run_piece(kind, parts, offset, len) },
            // SAFETY: as above.
            _ if self.accepts(parts, offset) => unsafe { transfer(&self.file, kind, parts, offset) },
            // SAFETY: as above.
            IoKind::Read => unsafe { self.read_bounced(parts, offset, len) },
            // SAFETY: as above.
            IoKind::Write | IoKind::WriteDurable => unsafe { self.write_bounced(kind, parts, offset, len) },
        }
    }

    /// Transfers from or to a file in memory, which accepts any buffers, in pieces.
    ///
    /// # Safety
    /// The buffers are valid.
    unsafe fn run_pieces(&self, kind: IoKind, parts: &[IoVec], offset: u64) -> io::Result<usize> {
        let mut pieces = PieceTransfer::new(parts);
        loop {
            let (_, result) = pieces.step(|parts, transferred, bytes| {
                // SAFETY: the caller guarantees valid buffers.
                unsafe { self.run_piece(kind, parts, offset.saturating_add(transferred), bytes) }
            });
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn run_piece(&self, kind: IoKind, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        if let Some(mapped) = &self.mapped
            // SAFETY: the caller guarantees valid buffers.
            && unsafe { mapped.transfer(&self.file, kind, parts, offset, len) }
        {
            // At most `PIECE`.
            return Ok(len as usize);
        }
        // SAFETY: the caller guarantees valid buffers.
        unsafe { transfer(&self.file, kind, parts, offset) }
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn read_bounced(&self, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        // The rest of a short read may start at any byte.
        let lead = offset % DIRECT_ALIGN;
        let mut bounce = Bounce::new(lead.saturating_add(len));
        let bytes = bounce.bytes();
        // SAFETY: the buffer is `bounce`.
        let count = unsafe {
            let own = [IoVec::of(bytes)];
            transfer(&self.file, IoKind::Read, &own, offset - lead)?
        };
        let bytes = bytes.get(lead as usize..count).unwrap_or_default();
        // SAFETY: the caller guarantees valid buffers.
        Ok(unsafe { scatter(bytes, parts, 0) })
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn write_bounced(
        &self,
        kind: IoKind,
        parts: &[IoVec],
        offset: u64,
        len: u64,
    ) -> io::Result<usize> {
        let mut bounce = Bounce::new(len);
        let bytes = bounce.bytes();
        // SAFETY: the caller guarantees valid buffers; the buffer of the transfer is `bounce`.
        unsafe {
            let count = gather(parts, 0, bytes);
            let own = [IoVec::of(bytes.get_mut(..count).unwrap_or_default())];
            transfer(&self.file, kind, &own, offset)
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.device {
            // Whole blocks only: a discard need not have any effect on the rest.
            let block = u64::from(self.block_size);
            let start = offset.next_multiple_of(block);
            let end = (offset + len) / block * block;
            if start >= end {
                return Ok(());
            }
            return block_discard(&self.file, start, end - start);
        }
        self.punch(offset, len)
    }

    /// Deallocates a range, which reads zero afterwards.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let punch = |offset, len| {
            let mode = FallocateFlags::PUNCH_HOLE;
            fallocate(&self.file, mode, offset, len, &self.no_holes)
        };
        if !self.memory {
            return punch(offset, len);
        }
        // A thread that touches one of the pages meanwhile waits for the system call, and that may be the
        // reactor.
        let (mut start, end) = (offset, offset.saturating_add(len));
        while start < end {
            // At a page boundary: a page that is punched in two parts is not deallocated.
            let next = (start / PUNCH_MAX + 1).saturating_mul(PUNCH_MAX).min(end);
            self.invalidate(start, next - start);
            punch(start, next - start)?;
            // A chunk that was mapped meanwhile has a hole now.
            self.invalidate(start, next - start);
            start = next;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // A device that cannot unmap to zeroes refuses, and so does one whose blocks are larger than the
        // range's.
        if unmap && is_supported(self.punch(offset, len))? {
            return Ok(());
        }
        let mode = FallocateFlags::ZERO_RANGE;
        if is_supported(fallocate(&self.file, mode, offset, len, &self.no_zero_range))? {
            return Ok(());
        }
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let mut bounce = Bounce::new(len);
        let end = offset.saturating_add(len);
        while offset < end {
            let now = (end - offset).min(BOUNCE_MAX as u64) as usize;
            let own = [IoVec::of(bounce.bytes().get_mut(..now).unwrap_or_default())];
            // SAFETY: the buffer is `bounce`.
            match unsafe { transfer(&self.file, IoKind::Write, &own, offset) } {
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
                Ok(transferred) => offset += transferred as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        if let Some(mapped) = &self.mapped {
            mapped.update_mtime(&self.file);
        }
    }
}

/// Returns whether the operation was done; `false` if it is not supported, so that the caller falls back to
/// another.
fn is_supported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}
