//! INTIDs, and masks of 32 of them.

/// SGIs are interrupts 0 to 15, always edge-triggered.
pub(super) const SGIS: u32 = 0xffff;

/// The first SPI.
pub const FIRST_SPI: u32 = 32;

/// One past the last SPI (without extended SPIs).
pub const SPI_LIMIT: u32 = 1020;

/// Returns the bank of an interrupt and its bit there as a mask.
pub(super) const fn split(intid: u32) -> (usize, u32) {
    (intid as usize / 32, 1 << (intid % 32))
}

/// Returns the positions of the bits set in `mask`, in ascending order.
pub(super) fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let bit = mask.trailing_zeros();
        mask &= mask - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::bits;

    #[test]
    fn bits_are_listed_once_each() {
        assert_eq!(bits(0x8000_0101).collect::<Vec<_>>(), [0, 8, 31]);
        assert_eq!(bits(0).count(), 0);
    }
}
