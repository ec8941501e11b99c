//! How a reactor's thread watches a descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;

/// How a watched descriptor is read, and how many bytes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadWidth {
    /// `/dev/uioN`: four bytes.
    Four,
    /// An `eventfd` of this process: eight bytes. It is made blocking.
    Eight,
    /// A descriptor shared with another process is polled, never read: the read could block. Its flags stay
    /// as they are; each time it becomes readable counts once.
    Foreign,
}

impl ReadWidth {
    /// Returns the bytes of a read.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight | Self::Foreign => 8,
        }
    }
}

/// Returns a new blocking `eventfd`.
///
/// # Errors
/// No descriptors are left.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
}
