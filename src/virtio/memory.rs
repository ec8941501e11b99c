//! What the transport needs of a guest's memory: its RAM and the page that shows the registers.

use crate::addr::Ipa;

/// The guest's RAM.
pub trait GuestRam {
    /// Whether `len` bytes from `start` are all RAM without a hole. False if the range wraps.
    fn contains(&self, start: Ipa, len: u64) -> bool;
}

/// The page that the guest reads.
pub trait RegisterPage {
    /// Shows `value` (little-endian) at `offset`, a multiple of 4 below 0x200. The store must be complete before
    /// the vCPU that trapped goes on.
    fn set32(&self, offset: u16, value: u32);
}
