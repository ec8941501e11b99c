//! Disk images: a file or block device ([`mod@file`]), a qcow2 image ([`qcow2`]), one that another process
//! serves ([`remote`]), or no storage ([`synthetic`]).
//!
//! [`crate::disk`] opens images, [`crate::engine`] runs operations on them. Every image runs every operation
//! to its end on the calling thread ([`Image::run`]); io_uring submits a file's transfers to the kernel
//! instead. [`IoKind`] is what an engine's operation does; [`BlockingIo`] one on the calling thread.

pub(crate) mod bounce;
mod copy;
pub mod file;
pub(crate) mod lock;
pub(crate) mod magic;
pub(crate) mod mapped;
pub(crate) mod pieces;
pub mod qcow2;
pub mod remote;
pub mod synthetic;
mod sys;

use std::io;
use std::sync::Arc;

use ringvirtio::memory::IoVec;

use file::RawFile;
use qcow2::Qcow2Image;
use remote::{KnownGeometry, RemoteImage};
use synthetic::Synthetic;

/// An open image.
pub enum Image {
    /// A file or block device whose bytes are the disk's.
    Raw(RawFile),
    /// A qcow2 image.
    Qcow2(Box<Qcow2Image>),
    /// No storage.
    Synthetic(Synthetic),
    /// A device that is closed until it is opened again; every operation fails with ENXIO.
    Closed(KnownGeometry),
    /// An image with an engine of its own.
    Remote(Arc<dyn RemoteImage>),
}

impl Image {
    /// Returns the current size of the disk in bytes.
    ///
    /// # Errors
    /// The system's error.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::Raw(file) => file.size(),
            Self::Qcow2(image) => Ok(image.size()),
            Self::Synthetic(synthetic) => Ok(synthetic.size()),
            Self::Closed(known) => Ok(known.size),
            Self::Remote(remote) => Ok(remote.size()),
        }
    }

    /// Changes the size of the disk.
    ///
    /// # Errors
    /// The system's error; EOPNOTSUPP if this kind of image cannot be resized.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.set_size(bytes),
            Self::Qcow2(image) => image.grow(bytes),
            Self::Synthetic(_) | Self::Closed(_) | Self::Remote(_) => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
        }
    }

    /// Returns whether a sync of tables has failed, which a write to a qcow2 image waits for. No FLUSH of the
    /// image succeeds any more.
    pub fn has_sync_failed(&self) -> bool {
        match self {
            Self::Qcow2(image) => image.has_sync_failed(),
            Self::Raw(_) | Self::Synthetic(_) | Self::Closed(_) | Self::Remote(_) => false,
        }
    }

    /// Returns the file or device whose bytes are the disk's, if there is one.
    pub fn raw(&self) -> Option<&RawFile> {
        match self {
            Self::Raw(file) => Some(file),
            Self::Qcow2(_) | Self::Synthetic(_) | Self::Closed(_) | Self::Remote(_) => None,
        }
    }

    /// Returns whether an operation is at most a copy in memory and never waits for a device.
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Raw(file) => file.memory,
            // A qcow2 operation may have to read and write tables first.
            Self::Qcow2(_) | Self::Remote(_) => false,
            Self::Synthetic(_) | Self::Closed(_) => true,
        }
    }

    /// Runs an operation on the calling thread; transfers may be short. Returns the bytes transferred.
    ///
    /// # Errors
    /// The system's error.
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
        // SAFETY: the caller guarantees valid buffers.
        unsafe {
            match self {
                Self::Raw(file) => file.run(kind, parts, offset, len),
                Self::Qcow2(image) => image.run(kind, parts, offset, len),
                Self::Synthetic(synthetic) => Ok(synthetic.run(kind, parts)),
                Self::Closed(_) => Err(io::Error::from_raw_os_error(libc::ENXIO)),
                Self::Remote(remote) => remote::run(&**remote, kind, parts, offset, len),
            }
        }
    }
}

/// Kind of an I/O operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoKind {
    /// `preadv`
    Read,
    /// `pwritev`
    Write,
    /// `pwritev2` with `RWF_DSYNC`: durable on completion.
    WriteDurable,
    /// `fdatasync`
    Sync,
    /// Deallocates the range (a hole is punched). What it reads afterwards is unspecified.
    Discard,
    /// The range reads zero afterwards.
    WriteZeroes {
        /// The blocks may be deallocated.
        unmap: bool,
    },
}

impl IoKind {
    /// Returns whether the operation transfers bytes between the image and buffers. The others have no
    /// buffers and complete with 0.
    pub const fn is_transfer(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::WriteDurable)
    }
}

/// An operation that the calling thread carries out to its end.
#[derive(Debug)]
pub enum BlockingIo<'a> {
    /// Fills the buffer.
    Read(&'a mut [u8]),
    /// Writes the bytes; if `true`, they are durable on return.
    Write(&'a [u8], bool),
    /// Makes completed writes durable.
    Sync,
    /// Makes a range read zero.
    Zero {
        /// Bytes.
        len: u64,
        /// The blocks may be deallocated.
        unmap: bool,
    },
    /// Deallocates a range; what it reads afterwards is unspecified.
    Discard {
        /// Bytes.
        len: u64,
    },
}
