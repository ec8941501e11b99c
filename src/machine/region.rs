//! [`Region`]: a range of physical addresses, and the arithmetic on lists of them.
//!
//! Used by [`super::Machine`] for RAM and device ranges and by [`super::root_dtb`] to remove EL2's memory
//! from root's.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::Pa;

/// A non-empty range of physical addresses whose end does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    base: Pa,
    size: u64,
}

impl Region {
    /// Returns `size` bytes from `base`, or `None` if that is empty or exceeds 2^64.
    pub const fn new(base: Pa, size: u64) -> Option<Self> {
        match base.0.checked_add(size) {
            Some(_) if size != 0 => Some(Self { base, size }),
            _ => None,
        }
    }

    /// Returns the range from `base` up to, excluding, `end`; `None` if that is empty.
    pub const fn from_bounds(base: Pa, end: Pa) -> Option<Self> {
        match end.0.checked_sub(base.0) {
            Some(size) => Self::new(base, size),
            None => None,
        }
    }

    /// Returns the first address.
    pub const fn base(&self) -> Pa {
        self.base
    }

    /// Returns the size in bytes, never 0.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the address after the last.
    pub const fn end(&self) -> Pa {
        // Does not wrap: checked by `new`.
        Pa(self.base.0.wrapping_add(self.size))
    }

    /// Returns whether the two overlap.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.base.0 < other.end().0 && other.base.0 < self.end().0
    }

    /// Returns the first address and the one past the end.
    pub const fn bounds(&self) -> (u64, u64) {
        (self.base.0, self.end().0)
    }

    /// Returns whether this range contains all of `other`.
    pub const fn contains(&self, other: &Self) -> bool {
        self.base.0 <= other.base.0 && other.end().0 <= self.end().0
    }

    /// Returns this range without `hole`: the part below and the part above.
    pub fn without(&self, hole: &Self) -> [Option<Self>; 2] {
        if !self.overlaps(hole) {
            return [Some(*self), None];
        }
        [
            Self::from_bounds(self.base, hole.base),
            Self::from_bounds(hole.end(), self.end()),
        ]
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Formatted as in `/proc/iomem`: first and last address.
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.base.0, self.end().0.wrapping_sub(1))
    }
}

/// Sorts `regions` and merges those that touch or overlap.
pub fn merge(regions: &mut Vec<Region>) {
    // A heap, because that is less code than the general sort, which matters more than speed for a dozen
    // regions.
    *regions = BinaryHeap::from(core::mem::take(regions)).into_sorted_vec();
    regions.dedup_by(|next, previous| {
        if next.base > previous.end() {
            return false;
        }
        let end = previous.end().max(next.end());
        previous.size = end.0.wrapping_sub(previous.base.0);
        true
    });
}

/// Returns `regions` without any address of `holes`.
pub fn subtract(regions: &[Region], holes: &[Region]) -> Vec<Region> {
    let mut left: Vec<Region> = regions.to_vec();
    for hole in holes {
        left = left
            .iter()
            .flat_map(|region| region.without(hole))
            .flatten()
            .collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::{Region, merge, subtract};
    use crate::addr::Pa;

    fn region(base: u64, end: u64) -> Region {
        Region::from_bounds(Pa(base), Pa(end)).unwrap()
    }

    #[test]
    fn empty_and_wrapping_are_refused() {
        assert_eq!(Region::new(Pa(5), 0), None);
        assert_eq!(Region::new(Pa(u64::MAX), 2), None);
        assert_eq!(Region::from_bounds(Pa(5), Pa(4)), None);
        assert!(Region::new(Pa(u64::MAX - 1), 1).is_some());
    }

    #[test]
    fn subtracting_splits() {
        let ram = [region(0x1000, 0x9000)];
        assert_eq!(
            subtract(&ram, &[region(0x2000, 0x3000), region(0x8000, 0xa000)]),
            [region(0x1000, 0x2000), region(0x3000, 0x8000)]
        );
        assert_eq!(subtract(&ram, &[region(0, 0x10000)]), []);
        assert_eq!(subtract(&ram, &[region(0x9000, 0x9001)]), ram);
    }

    #[test]
    fn merging_joins_neighbours() {
        let mut list = alloc::vec![region(5, 9), region(0, 2), region(2, 4), region(6, 7)];
        merge(&mut list);
        assert_eq!(list, [region(0, 4), region(5, 9)]);
    }
}
