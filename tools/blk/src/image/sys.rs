//! System calls on image files and block devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use ringvirtio::memory::IoVec;

use super::operation::IoKind;

/// One `preadv`, `pwritev` or `pwritev2`. Returns the bytes transferred.
///
/// # Safety
/// The buffers are valid.
pub(super) unsafe fn transfer(file: &File, kind: IoKind, parts: &[IoVec], offset: u64) -> io::Result<usize> {
    let (fd, iov) = (file.as_raw_fd(), parts.as_ptr().cast());
    let count = parts.len() as libc::c_int;
    // A request's plan keeps offsets inside of signed 64 bits.
    let offset = offset as libc::off_t;
    // SAFETY: the caller guarantees valid buffers.
    let transferred = unsafe {
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
    usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
}

/// Makes completed writes durable.
pub(super) fn sync(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    match unsafe { libc::fdatasync(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `fallocate` that keeps the size. An unsupported mode is recorded in `unsupported` and fails with
/// EOPNOTSUPP from then on, without a system call.
pub(super) fn fallocate(
    file: &File,
    mode: libc::c_int,
    offset: u64,
    len: u64,
    unsupported: &AtomicBool,
) -> io::Result<()> {
    let refused = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    if unsupported.load(Ordering::Relaxed) {
        return Err(refused());
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
        unsupported.store(true, Ordering::Relaxed);
        return Err(refused());
    }
    Err(error)
}

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::c_int = 0x1277;

/// Discards a range of a block device, in whole logical blocks.
pub(super) fn block_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit words.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets O_DIRECT.
pub(super) fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: no pointers.
    if flags == -1 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns the alignment that the file system requires for O_DIRECT, the larger of memory and offset; `None`
/// if it does not report any, or has no O_DIRECT. ext4, xfs and f2fs report it since Linux 6.1.
pub(super) fn direct_align(file: &File) -> Option<u64> {
    // `struct statx` as 32-bit words, because the C libraries' own definitions end at different fields.
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

/// Returns the size of a block device's logical block in bytes.
pub(super) fn logical_block_size(file: &File) -> io::Result<u32> {
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

/// Returns whether the file is on tmpfs or ramfs.
pub(super) fn is_in_memory(file: &File) -> io::Result<bool> {
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
