//! What the transport needs of guest memory: RAM, to check queue addresses, and the page that shows the
//! registers.

use crate::addr::Ipa;

/// The guest's RAM.
pub trait GuestRam {
    /// Returns whether the `len` bytes from `start` are all RAM. False if the range wraps.
    fn contains(&self, start: Ipa, len: u64) -> bool;
}

/// The page of registers that the guest loads from.
pub trait RegisterPage {
    /// Stores `value` (little-endian) at `offset`, a multiple of 4 below 0x200. The store must be complete
    /// before the vCPU that trapped continues.
    fn set32(&self, offset: u16, value: u32);
}
