//! What is behind a disk: a file or block device ([`file`]), a qcow2 image ([`qcow2`]), or nothing ([`synthetic`]).
//!
//! [`crate::disk`] opens and describes images, [`crate::engine`] runs operations on them. Whatever kind it is, an
//! image runs any operation to its end on the calling thread ([`Image::run`]); io_uring takes a shorter way to files.

pub(crate) mod bounce;
mod copy;
pub mod file;
pub(crate) mod lock;
pub(crate) mod mapped;
pub mod qcow2;
pub mod synthetic;

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::engine::IoKind;
use crate::memory::IoVec;
use crate::remote::{self, Remembered, Remote};
use file::RawFile;
use qcow2::Qcow2Image;
use synthetic::Synthetic;

/// An open image.
#[derive(Debug)]
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawFile),
    /// A qcow2 image.
    Qcow2(Box<Qcow2Image>),
    /// No storage at all.
    Synthetic(Synthetic),
    /// A device that is closed until somebody has it opened again.
    Released(Remembered),
    /// Another process's, with an engine of its own.
    Remote(Arc<dyn Remote>),
}

impl Image {
    /// Bytes of the disk, as the image says now.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::Raw(file) => file.size(),
            Self::Qcow2(image) => Ok(image.size()),
            Self::Synthetic(synthetic) => Ok(synthetic.size()),
            Self::Released(released) => Ok(released.size),
            Self::Remote(remote) => Ok(remote.size()),
        }
    }

    /// Makes it this long, where that can be.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.set_size(bytes),
            Self::Qcow2(image) => image.grow(bytes),
            Self::Synthetic(_) | Self::Released(_) | Self::Remote(_) => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
        }
    }

    /// The file whose bytes are the disk's, if there is one.
    #[must_use]
    pub fn raw(&self) -> Option<&RawFile> {
        match self {
            Self::Raw(file) => Some(file),
            Self::Qcow2(_) | Self::Synthetic(_) | Self::Released(_) | Self::Remote(_) => None,
        }
    }

    /// Whether I/O is a copy in memory at most, and waits for no device.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Raw(file) => file.is_memory(),
            // Its tables may have to be read first, and written.
            Self::Qcow2(_) | Self::Remote(_) => false,
            Self::Synthetic(_) | Self::Released(_) => true,
        }
    }

    /// Runs an operation to its end, or as far as it goes at once. Returns the bytes transferred.
    ///
    /// # Safety
    /// The buffers are valid.
    pub(crate) unsafe fn run(
        &self,
        kind: IoKind,
        parts: &[IoVec],
        offset: u64,
        len: u64,
    ) -> io::Result<usize> {
        // SAFETY: says the caller.
        unsafe {
            match self {
                Self::Raw(file) => file.run(kind, parts, offset, len),
                Self::Qcow2(image) => image.run(kind, parts, offset, len),
                Self::Synthetic(synthetic) => Ok(synthetic.run(kind, parts)),
                Self::Released(_) => Err(io::Error::from_raw_os_error(libc::ENXIO)),
                Self::Remote(remote) => remote::run(&**remote, kind, parts, offset, len),
            }
        }
    }
}

/// Names the image of an operation. Whoever pushes the operation keeps the image, see
/// [`crate::engine::Engine::push`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageRef(NonNull<Image>);

impl ImageRef {
    /// A name for this image.
    #[must_use]
    pub fn new(image: &Image) -> Self {
        Self(NonNull::from(image))
    }

    /// # Safety
    /// The image lives at least as long as the result is used.
    pub(crate) unsafe fn get<'a>(self) -> &'a Image {
        // SAFETY: it was made from a reference, and lives, says the caller. `Image` is `Sync`.
        unsafe { self.0.as_ref() }
    }
}
