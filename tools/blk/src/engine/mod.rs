//! How a request's I/O reaches the file: the [`Engine`] trait and its implementations, siblings under one test suite.
//!
//! [`uring::Uring`] submits to the kernel's ring what that can do; [`threads::Threads`] has a pool of threads on which
//! any image runs any operation. An engine knows images, offsets and host memory; it knows nothing of virtio.

use std::io;
use std::sync::Arc;

pub use crate::image::operation::IoKind;
use crate::image::{Image, ImageRef};
use crate::memory::{GuestRam, IoVec};

mod copies;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod registry;
pub mod threads;
pub mod uring;

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct IoOp {
    /// Comes back in [`IoDone`].
    pub tag: u64,
    /// The image.
    pub image: ImageRef,
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

impl IoOp {
    /// Its buffers.
    ///
    /// # Safety
    /// As for [`Engine::push`], and as long as the result is used.
    pub unsafe fn parts<'a>(&self) -> &'a [IoVec] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: `count` entries are there, says the caller.
        unsafe { std::slice::from_raw_parts(self.iov, self.count as usize) }
    }
}

// SAFETY: the pointers are not dereferenced but under the contract of `Engine::push`, which is not bound to a thread.
unsafe impl Send for IoOp {}

/// Most buffers of one operation: `UIO_MAXIOV`.
pub const MAX_IOV: usize = 1024;

/// Runs an operation on the calling thread, to its end or as far as it goes at once.
///
/// # Safety
/// As for [`Engine::push`].
unsafe fn perform(op: &IoOp) -> IoDone {
    // SAFETY: the image lives, and `count` entries are there, says the caller.
    let (image, parts) = unsafe { (op.image.get(), op.parts()) };
    // SAFETY: the memory is valid, says the caller.
    IoDone::new(op.tag, unsafe { image.run(op.kind, parts, op.offset, op.len) })
}

/// The outcome of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoDone {
    /// From [`IoOp`].
    pub tag: u64,
    /// Bytes transferred, maybe fewer than asked for; 0 for what is no transfer; or `-errno`.
    pub result: i32,
}

impl IoDone {
    fn new(tag: u64, outcome: io::Result<usize>) -> Self {
        let result = match outcome {
            // The kernel transfers at most 0x7ffff000 bytes at once, we ourselves less; the rest follows.
            Ok(moved) => i32::try_from(moved).unwrap_or(i32::MAX),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        Self { tag, result }
    }
}

/// A way to run operations.
pub trait Engine {
    /// Operations between this image and this memory will follow; the engine may make them quicker. As many
    /// [`Self::detach`] follow, each when none of its operations are left.
    fn attach(&mut self, _image: &Image, _ram: &Arc<GuestRam>) {}

    /// The opposite: nothing of the image or the memory is held afterwards, if this was the last.
    fn detach(&mut self, _image: &Image, _ram: &Arc<GuestRam>) {}

    /// Takes an operation; it may start at once or at [`Self::submit`].
    ///
    /// # Safety
    /// Until its [`IoDone`] was reaped or the engine was dropped, the buffer list and the memory it names stay valid,
    /// and the image lives.
    unsafe fn push(&mut self, op: IoOp);

    /// Starts all that was pushed.
    fn submit(&mut self);

    /// Appends what has completed to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<IoDone>);
}
