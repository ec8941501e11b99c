//! How a request's I/O reaches the file: the [`Engine`] trait and its implementations, siblings under one test suite.
//!
//! [`uring::Uring`] submits to the kernel's ring; [`threads::Threads`] has a pool that calls `preadv` and `pwritev`.
//! An engine knows files, offsets and host memory; it knows nothing of virtio.

use std::io;
use std::os::fd::RawFd;

use crate::memory::IoVec;

#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod threads;
pub mod uring;

/// What to do with the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoKind {
    /// `preadv`
    Read,
    /// `pwritev`
    Write,
    /// `pwritev2` with `RWF_DSYNC`: durable when complete.
    WriteDurable,
    /// `fdatasync`
    Sync,
    /// The bytes need not be kept: a hole is punched. What they read afterwards is not said.
    Discard,
    /// The bytes read zero afterwards.
    WriteZeroes {
        /// Their blocks may be given back to the file system.
        unmap: bool,
    },
}

impl IoKind {
    /// Whether the operation moves bytes between the image and buffers. The others have none, and succeed with 0.
    #[must_use]
    pub const fn is_transfer(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::WriteDurable)
    }
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct IoOp {
    /// Comes back in [`IoDone`].
    pub tag: u64,
    /// The image.
    pub fd: RawFd,
    /// What to do.
    pub kind: IoKind,
    /// First buffer; `count` of them follow each other. Only for transfers.
    pub iov: *const IoVec,
    /// Buffers; at most [`MAX_IOV`].
    pub count: u32,
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes that it is about: the sum of the buffers of a transfer, nothing for [`IoKind::Sync`].
    pub len: u64,
    /// It is a copy in memory that cannot wait for a device: quicker done on the spot than handed over.
    pub immediate: bool,
}

// SAFETY: the pointer is not dereferenced but under the contract of `Engine::push`, which is not bound to a thread.
unsafe impl Send for IoOp {}

/// Most buffers of one operation: `UIO_MAXIOV`.
pub const MAX_IOV: usize = 1024;

/// Runs an operation on the calling thread, to its end.
///
/// # Safety
/// The buffer list and the memory it names are valid and the descriptor is open.
unsafe fn perform(op: &IoOp) -> IoDone {
    let count = op.count as libc::c_int;
    // A plan keeps offsets inside of signed 64 bits.
    let offset = op.offset as libc::off_t;
    let iov = op.iov.cast();
    // SAFETY: by this function's own contract.
    let result = unsafe {
        match op.kind {
            IoKind::Read => libc::preadv(op.fd, iov, count, offset) as libc::c_long,
            IoKind::Write => libc::pwritev(op.fd, iov, count, offset) as libc::c_long,
            // Offset in two halves, of which a 64-bit kernel ignores the second; musl has no wrapper.
            IoKind::WriteDurable => {
                let (count, high): (libc::c_long, libc::c_long) = (op.count.into(), 0);
                libc::syscall(
                    libc::SYS_pwritev2,
                    op.fd,
                    iov,
                    count,
                    offset,
                    high,
                    libc::RWF_DSYNC,
                )
            }
            IoKind::Sync => libc::c_long::from(libc::fdatasync(op.fd)),
            IoKind::Discard | IoKind::WriteZeroes { .. } => {
                let mode = fallocate_mode(op.kind);
                libc::c_long::from(libc::fallocate(op.fd, mode, offset, op.len as libc::off_t))
            }
        }
    };
    let result = if result < 0 {
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        // The kernel transfers at most 0x7ffff000 bytes at once.
        i32::try_from(result).unwrap_or(i32::MAX)
    };
    IoDone { tag: op.tag, result }
}

/// What `fallocate` is asked for by a discard or by zeroes; the size of the file stays.
fn fallocate_mode(kind: IoKind) -> libc::c_int {
    let what = match kind {
        IoKind::WriteZeroes { unmap: false } => libc::FALLOC_FL_ZERO_RANGE,
        _ => libc::FALLOC_FL_PUNCH_HOLE,
    };
    what | libc::FALLOC_FL_KEEP_SIZE
}

/// The outcome of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoDone {
    /// From [`IoOp`].
    pub tag: u64,
    /// Bytes transferred, maybe fewer than asked for; 0 for what is no transfer; or `-errno`.
    pub result: i32,
}

/// A way to run operations.
pub trait Engine {
    /// Takes an operation; it may start at once or at [`Self::submit`].
    ///
    /// # Safety
    /// Until its [`IoDone`] was reaped or the engine was dropped, the buffer list and the memory it names stay valid
    /// and the descriptor open.
    unsafe fn push(&mut self, op: IoOp);

    /// Starts all that was pushed.
    fn submit(&mut self);

    /// Appends what has completed to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<IoDone>);
}
