//! What can be done with an image: the kinds of I/O of an engine's operation ([`IoKind`]), and an operation
//! on the calling thread ([`BlockingIo`]).

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
    #[must_use]
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
