//! What a reactor's thread waits for beside completions: watched descriptors, and time.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

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

/// How long to wait for something to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// Polls once.
    Zero,
    /// Waits no longer than this.
    AtMost(Duration),
    /// Waits without a limit.
    Never,
}

impl Timeout {
    /// Returns the longest time, if there is one.
    #[must_use]
    pub const fn at_most(self) -> Option<Duration> {
        match self {
            Self::Zero => Some(Duration::ZERO),
            Self::AtMost(time) => Some(time),
            Self::Never => None,
        }
    }
}

/// A watched descriptor became readable, and was read unless it is foreign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// The number that `watch` returned.
    pub watch: usize,
}

/// Returns a new blocking `eventfd`.
///
/// # Errors
/// No descriptors are left.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked and has no other owner.
    match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}
