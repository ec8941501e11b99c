//! How a request's I/O reaches the file: the [`Engine`] trait and its implementations, siblings under one
//! test suite.
//!
//! [`uring::RingEngine`] submits to the kernel's ring what that can do; [`threads::Threads`] has a pool of
//! threads on which any image runs any operation. An engine knows images, offsets and host memory, and
//! nothing of requests.

use ringvirtio::Completion;
use ringvirtio::memory::IoVec;

use crate::image::Image;
pub use crate::image::IoKind;

mod copies;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod threads;
pub mod uring;

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct IoOp {
    /// Returned in its [`Completion`].
    pub tag: u64,
    /// The image, which lives as [`Engine::push`] says.
    pub image: *const Image,
    /// What to do.
    pub kind: IoKind,
    /// The first of `count` buffers. Only for transfers.
    pub iov: *const IoVec,
    /// Buffers; at most [`MAX_IOV`].
    pub count: u32,
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes: the sum of the buffers of a transfer, 0 for [`IoKind::Sync`].
    pub len: u64,
    /// Whose it is: operations of different owners share the helper threads equally.
    pub owner: usize,
    /// It is a copy in memory that cannot wait for a device: quicker done in place than submitted.
    pub immediate: bool,
}

impl IoOp {
    /// Returns its buffers.
    ///
    /// # Safety
    /// As for [`Engine::push`], and as long as the result is used.
    pub unsafe fn parts<'a>(&self) -> &'a [IoVec] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: `count` entries are there, as the caller guarantees.
        unsafe { std::slice::from_raw_parts(self.iov, self.count as usize) }
    }
}

// SAFETY: the pointers are dereferenced only under the contract of `Engine::push`, which is not bound to a
// thread.
unsafe impl Send for IoOp {}

/// Most buffers of one operation: `UIO_MAXIOV`.
pub const MAX_IOV: usize = 1024;

/// Runs an operation on the calling thread, to its end or as far as it goes at once.
///
/// # Safety
/// As for [`Engine::push`].
#[inline]
unsafe fn perform(op: &IoOp) -> Completion {
    // SAFETY: the image lives, and `count` entries are there, as the caller guarantees.
    let (image, parts) = unsafe { (&*op.image, op.parts()) };
    // SAFETY: the memory is valid, as the caller guarantees.
    Completion::new(op.tag, unsafe { image.run(op.kind, parts, op.offset, op.len) })
}

/// A way to run operations.
pub trait Engine {
    /// Submits an operation; it may start at once or at [`Self::submit`].
    ///
    /// # Safety
    /// Until its [`Completion`] was reaped or the engine was dropped, the buffer list and the memory it names
    /// stay valid, and the image lives.
    unsafe fn push(&mut self, op: IoOp);

    /// Starts all that was pushed.
    fn submit(&mut self);

    /// Appends what has completed to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<Completion>);
}
