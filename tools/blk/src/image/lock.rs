//! Locks on images: open-file-description locks, released with the last reference to the open file. Requests
//! that the kernel still runs for a dead process hold a reference, as do its threads in the middle of a
//! system call and an io_uring with the file registered. So a granted lock proves that all of them have
//! ended.
//!
//! QEMU (`block/file-posix.c`) locks single bytes: with a shared lock on 100 + n it has permission n, with
//! one on 200 + n no other user may have it. A writer's lock here covers them all. A reader takes those of a
//! user that reads and lets others read.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Offset of the owners' lock bytes; below is the image.
const OWNER_BASE: i64 = 1 << 62;

/// What a QEMU that has the permission locks: to read consistent data, to write, and to resize.
const QEMU_READS: i64 = 100;
const QEMU_WRITES: i64 = 101;
const QEMU_RESIZES: i64 = 103;
/// What a QEMU locks if no other user may have these.
const QEMU_ALONE_READS: i64 = 200;
const QEMU_NONE_WRITES: i64 = 201;
const QEMU_NONE_RESIZES: i64 = 203;

/// Locks an image. Writers lock the whole range; readers share what a QEMU that reads locks, and their
/// owner's byte.
///
/// # Errors
/// EAGAIN if there is a conflicting lock.
pub(crate) fn lock(file: &File, readonly: bool, owner: Option<u64>) -> io::Result<()> {
    if !readonly {
        return set_lock(file, libc::F_WRLCK, 0, 0);
    }
    for byte in [QEMU_READS, QEMU_NONE_WRITES, QEMU_NONE_RESIZES] {
        set_lock(file, libc::F_RDLCK, byte, 1)?;
    }
    for byte in [QEMU_WRITES, QEMU_RESIZES, QEMU_ALONE_READS] {
        check_unlocked(file, byte)?;
    }
    let Some(owner) = owner else { return Ok(()) };
    let byte = OWNER_BASE + (owner & (u64::MAX >> 3)) as i64;
    check_unlocked(file, byte)?;
    set_lock(file, libc::F_RDLCK, byte, 1)
}

/// Checks that no other user holds a lock on a byte. A reader cannot hold a write lock, but can query whether
/// one would be granted.
fn check_unlocked(file: &File, byte: i64) -> io::Result<()> {
    let mut query = flock(libc::F_WRLCK, byte, 1);
    fcntl(file, libc::F_OFD_GETLK, &mut query)?;
    if i32::from(query.l_type) != i32::from(libc::F_UNLCK as i16) {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    Ok(())
}

/// Returns whether a user of the image holds a lock on any byte of it.
#[cfg(test)]
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut query = flock(libc::F_WRLCK, 0, 0);
    fcntl(file, libc::F_OFD_GETLK, &mut query)?;
    Ok(i32::from(query.l_type) != libc::F_UNLCK)
}

fn set_lock(file: &File, kind: libc::c_int, start: i64, len: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut flock(kind, start, len))
}

fn flock(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a pointer to a `struct flock`, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
