//! [`Completion`]: how an operation that was submitted for a queue has ended.

use std::io;

/// The end of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The tag it was submitted with: a queue's tag base and 16 bits of the queue's own.
    pub tag: u64,
    /// Bytes transferred, maybe fewer than asked for; 0 for what is no transfer; or `-errno`.
    pub result: i32,
}

impl Completion {
    /// Returns the completion of an operation that was carried out by system calls.
    #[inline]
    #[must_use]
    pub fn new(tag: u64, outcome: io::Result<usize>) -> Self {
        let result = match outcome {
            // The kernel transfers at most 0x7ffff000 bytes at once, devices less; the rest follows.
            Ok(transferred) => i32::try_from(transferred).unwrap_or(i32::MAX),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        Self { tag, result }
    }
}
