//! [`QueueId`]: names a queue of a reactor, to its owner and in the tags of its operations.

use std::hash::Hasher;

/// Names a queue of a reactor, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(u64);

impl QueueId {
    /// Returns the id with this number. Simulations number queues themselves; else only the reactor does.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the tag base of its operations: 16 bits are the handler's, the top bit is the waiter's.
    #[must_use]
    pub const fn tag(self) -> u64 {
        self.0 << 16
    }

    /// Returns the id of the queue that an operation belongs to.
    #[must_use]
    pub const fn from_tag(tag: u64) -> Self {
        Self(tag >> 16)
    }
}

/// Hashes a number by one multiplication: numbers are unique.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table takes its bits from both ends.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
