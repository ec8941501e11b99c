//! System calls on the descriptors of ports.

use std::io;
use std::os::fd::RawFd;

use ringvirtio::memory::IoVec;

use super::PARTS_MAX;

fn count(transferred: isize) -> io::Result<usize> {
    usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
}

fn len(parts: &[IoVec]) -> libc::c_int {
    parts.len().min(PARTS_MAX) as libc::c_int
}

/// One `readv`.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn read(fd: RawFd, parts: &[IoVec]) -> io::Result<usize> {
    // SAFETY: the caller guarantees valid buffers; an `IoVec` is laid out as an `iovec`.
    count(unsafe { libc::readv(fd, parts.as_ptr().cast(), len(parts)) })
}

/// One `writev`.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn write(fd: RawFd, parts: &[IoVec]) -> io::Result<usize> {
    // SAFETY: as above.
    count(unsafe { libc::writev(fd, parts.as_ptr().cast(), len(parts)) })
}

/// One `sendmsg` without a signal.
///
/// # Safety
/// The buffers are valid.
pub unsafe fn send(fd: RawFd, parts: &[IoVec]) -> io::Result<usize> {
    // SAFETY: a msghdr is integers and pointers, for which zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = len(parts) as _;
    // SAFETY: the caller guarantees valid buffers; nothing else is named.
    count(unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// Copies bytes from the front of a socket's queue, which keeps them.
pub fn peek(fd: RawFd, to: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: room for `to.len()` bytes.
    count(unsafe { libc::recv(fd, to.as_mut_ptr().cast(), to.len(), flags) })
}

/// Returns how many bytes a socket's queue has.
pub fn queued(fd: RawFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel stores an int.
    match unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut bytes) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(usize::try_from(bytes).unwrap_or(0)),
    }
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: no pointers.
    if flags == -1 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
