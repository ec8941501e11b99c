//! Raw images: a file or block device, the operations on it, and what to do where it lacks them.
//!
//! A file is either read and written around the page cache (O_DIRECT) or through it, never both ways: a buffered
//! write of one sector brings its page into the cache, and the page's write-back later undoes what went around it to
//! the next sector. So O_DIRECT is used only where the file takes every request that a guest may make, at any sector;
//! buffers that are not aligned take the way through a [`Bounce`]. A file in memory is [`Mapped`], where that can be.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::bounce::{BOUNCE_MAX, Bounce, gather, scatter};
use super::mapped::Mapped;
use crate::engine::IoKind;
use crate::engine::pieces::{PIECE, Progress};
use crate::memory::IoVec;
use crate::virtio::SECTOR_SIZE;

/// What O_DIRECT may ask of offsets, lengths and addresses so that it is used.
const DIRECT_ALIGN: u64 = SECTOR_SIZE;

/// Bytes of a file in memory that are given back at once.
const PUNCH_MAX: u64 = 16 << 20;

/// An open raw image.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    device: bool,
    memory: bool,
    /// A file in memory that could be mapped.
    mapped: Option<Mapped>,
    direct: bool,
    block_size: u32,
    /// What the file has turned out to lack.
    no_holes: AtomicBool,
    no_zero_range: AtomicBool,
}

impl RawFile {
    /// Finds out what the file can do. `direct`: use O_DIRECT where possible.
    pub fn new(file: File, direct: bool) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let device = file.metadata()?.file_type().is_block_device();
        let block_size = if device {
            logical_block_size(&file)?
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

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Whether it is on a file system that lives in memory.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        self.memory
    }

    /// Whether I/O goes around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Bytes of a logical block of a device; 512 for a file.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes, as they are now.
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Chunks that are mapped, and those to be written; `None` if the file cannot be.
    #[cfg(test)]
    pub(crate) fn mapped(&self) -> Option<[usize; 2]> {
        self.mapped.as_ref().map(Mapped::count)
    }

    /// Makes a file this long.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.forget(0, u64::MAX);
        Ok(())
    }

    /// There may be holes in this range now.
    fn forget(&self, offset: u64, len: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.forget(offset, len);
        }
    }

    /// Whether the file takes a transfer between these buffers and this offset as it is.
    #[must_use]
    pub fn takes(&self, parts: &[IoVec], offset: u64) -> bool {
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
                    mapped.touch(&self.file);
                }
                sync(&self.file).map(|()| 0)
            }
            IoKind::Discard => self.discard(offset, len).map(|()| 0),
            IoKind::WriteZeroes { unmap } => self.zero(offset, len, unmap).map(|()| 0),
            // SAFETY: says the caller.
            _ if self.memory && len > PIECE as u64 => unsafe { self.run_pieces(kind, parts, offset) },
            // SAFETY: says the caller.
            _ if self.memory => unsafe { self.run_piece(kind, parts, offset, len) },
            // SAFETY: says the caller.
            _ if self.takes(parts, offset) => unsafe { transfer(&self.file, kind, parts, offset) },
            // SAFETY: says the caller.
            IoKind::Read => unsafe { self.read_bounced(parts, offset, len) },
            // SAFETY: says the caller.
            IoKind::Write | IoKind::WriteDurable => unsafe { self.write_bounced(kind, parts, offset, len) },
        }
    }

    /// A transfer of a file in memory, which takes any buffers, in pieces.
    ///
    /// # Safety
    /// The buffers are valid.
    unsafe fn run_pieces(&self, kind: IoKind, parts: &[IoVec], offset: u64) -> io::Result<usize> {
        let mut progress = Progress::new(parts);
        loop {
            let (_, ended) = progress.step(|parts, behind, bytes| {
                // SAFETY: says the caller.
                unsafe { self.run_piece(kind, parts, offset.saturating_add(behind), bytes) }
            });
            if let Some(outcome) = ended {
                return outcome;
            }
        }
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn run_piece(&self, kind: IoKind, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        if let Some(mapped) = &self.mapped
            // SAFETY: says the caller.
            && unsafe { mapped.transfer(&self.file, kind, parts, offset, len) }
        {
            // A piece is small.
            return Ok(len as usize);
        }
        // SAFETY: says the caller.
        unsafe { transfer(&self.file, kind, parts, offset) }
    }

    /// # Safety
    /// The buffers are valid.
    unsafe fn read_bounced(&self, parts: &[IoVec], offset: u64, len: u64) -> io::Result<usize> {
        // What is left of a short read may start anywhere.
        let lead = offset % DIRECT_ALIGN;
        let mut bounce = Bounce::new(lead.saturating_add(len));
        let bytes = bounce.bytes();
        // SAFETY: these are our bytes.
        let got = unsafe {
            let own = [IoVec::of(bytes)];
            transfer(&self.file, IoKind::Read, &own, offset - lead)?
        };
        let bytes = bytes.get(lead as usize..got).unwrap_or_default();
        // SAFETY: says the caller.
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
        // SAFETY: says the caller; and then these are our bytes.
        unsafe {
            let count = gather(parts, 0, bytes);
            let own = [IoVec::of(bytes.get_mut(..count).unwrap_or_default())];
            transfer(&self.file, kind, &own, offset)
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.device {
            // Whole blocks only, which is all the effect that a discard needs to have.
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

    /// Gives blocks back; the range reads zero afterwards.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let punch = |offset, len| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE;
            fallocate(&self.file, mode, offset, len, &self.no_holes)
        };
        if !self.memory {
            return punch(offset, len);
        }
        // Whoever touches one of its pages meanwhile waits until it is done, and that may be the reactor.
        let (mut start, end) = (offset, offset.saturating_add(len));
        while start < end {
            // Where a page begins: of one that is punched in two parts nothing is given back.
            let next = (start / PUNCH_MAX + 1).saturating_mul(PUNCH_MAX).min(end);
            self.forget(start, next - start);
            punch(start, next - start)?;
            // One that was mapped meanwhile has a hole now.
            self.forget(start, next - start);
            start = next;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // A device that cannot unmap to zeroes says so; and so does one whose blocks are larger than the range's.
        if unmap && done_by_file(self.punch(offset, len))? {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_ZERO_RANGE;
        if done_by_file(fallocate(&self.file, mode, offset, len, &self.no_zero_range))? {
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
            // SAFETY: these are our bytes.
            match unsafe { transfer(&self.file, IoKind::Write, &own, offset) } {
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
                Ok(moved) => offset += moved as u64,
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
            mapped.touch(&self.file);
        }
    }
}

/// Whether the file did it; `false` if it cannot, so that another way must be taken.
fn done_by_file(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One `preadv`, `pwritev` or `pwritev2`.
///
/// # Safety
/// The buffers are valid.
unsafe fn transfer(file: &File, kind: IoKind, parts: &[IoVec], offset: u64) -> io::Result<usize> {
    let (fd, iov) = (file.as_raw_fd(), parts.as_ptr().cast());
    let count = parts.len() as libc::c_int;
    // A plan keeps offsets inside of signed 64 bits.
    let offset = offset as libc::off_t;
    // SAFETY: says the caller.
    let moved = unsafe {
        match kind {
            IoKind::Read => libc::preadv(fd, iov, count, offset) as libc::c_long,
            // Offset in two halves, of which a 64-bit kernel ignores the second; musl has no wrapper.
            IoKind::WriteDurable => {
                let (count, high): (libc::c_long, libc::c_long) = (count.into(), 0);
                libc::syscall(libc::SYS_pwritev2, fd, iov, count, offset, high, libc::RWF_DSYNC)
            }
            _ => libc::pwritev(fd, iov, count, offset) as libc::c_long,
        }
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

fn sync(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    match unsafe { libc::fdatasync(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `fallocate` that keeps the size; what the file lacks is remembered in `lacking`.
fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64, lacking: &AtomicBool) -> io::Result<()> {
    let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    if lacking.load(Ordering::Relaxed) {
        return Err(unsupported());
    }
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    let result =
        unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    ) {
        lacking.store(true, Ordering::Relaxed);
        return Err(unsupported());
    }
    Err(error)
}

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::c_int = 0x1277;

fn block_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit words.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: no pointers.
    if flags == -1 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the file system asks of O_DIRECT, the larger of memory and offset; `None` if it does not say, or has none.
/// Linux 6.1, ext4, xfs and f2fs say.
fn direct_align(file: &File) -> Option<u64> {
    // `struct statx` as 32-bit words, for the C libraries' own ends at different fields.
    const WORDS: usize = 64;
    const MASK: usize = 0;
    const MEM_ALIGN: usize = 38;
    const OFFSET_ALIGN: usize = 39;
    const STATX_DIOALIGN: u32 = 0x2000;
    let mut words = [0_u32; WORDS];
    // SAFETY: the path is an empty string and `struct statx` has 256 bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            words.as_mut_ptr(),
        )
    };
    let word = |index| words.get(index).copied().unwrap_or(0);
    let (memory, offset) = (word(MEM_ALIGN), word(OFFSET_ALIGN));
    let known = result == 0 && word(MASK) & STATX_DIOALIGN != 0 && memory != 0 && offset != 0;
    known.then_some(u64::from(memory.max(offset)))
}

fn logical_block_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores an `int` where the pointer says.
    match unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::BLKSSZGET as _,
            std::ptr::from_mut(&mut size),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    let mut info = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs fills the structure that the pointer names.
    if unsafe { libc::fstatfs(file.as_raw_fd(), info.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, which is a valid value, then filled.
    let info = unsafe { info.assume_init() };
    // TMPFS_MAGIC and RAMFS_MAGIC of `linux/magic.h`; the field's type differs between C libraries.
    Ok(matches!(info.f_type, 0x0102_1994 | 0x8584_58f6))
}
