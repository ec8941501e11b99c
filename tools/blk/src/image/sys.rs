//! System calls on image files and block devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use ringvirtio::memory::IoVec;
use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, fstatfs, statx};
use rustix::io::Errno;

use super::IoKind;

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

/// `fallocate` that keeps the size. An unsupported mode is recorded in `unsupported` and fails with
/// EOPNOTSUPP from then on, without a system call.
pub(super) fn fallocate(
    file: &File,
    mode: FallocateFlags,
    offset: u64,
    len: u64,
    unsupported: &AtomicBool,
) -> io::Result<()> {
    if !unsupported.load(Ordering::Relaxed) {
        match rustix::fs::fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => unsupported.store(true, Ordering::Relaxed),
            done => return Ok(done?),
        }
    }
    Err(Errno::OPNOTSUPP.into())
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
    Ok(fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)?)
}

/// Returns the alignment that the file system requires for O_DIRECT, the larger of memory and offset; `None`
/// if it does not report any, or has no O_DIRECT. ext4, xfs and f2fs report it since Linux 6.1.
pub(super) fn direct_align(file: &File) -> Option<u64> {
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    let known = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && memory != 0 && offset != 0;
    known.then_some(u64::from(memory.max(offset)))
}

/// Returns whether the file is on tmpfs or ramfs.
pub(super) fn is_in_memory(file: &File) -> io::Result<bool> {
    // TMPFS_MAGIC and RAMFS_MAGIC of `linux/magic.h`.
    Ok(matches!(fstatfs(file)?.f_type, 0x0102_1994 | 0x8584_58f6))
}
