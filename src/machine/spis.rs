//! [`SpiSet`]: a set of shared peripheral interrupts.

use super::prop::Cells;
use crate::abi::machine::SPI_BASE;

/// First INTID past the SPIs.
pub const SPI_END: u32 = 1020;

/// A set of SPIs by INTID.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct SpiSet {
    words: [u64; 16],
}

impl SpiSet {
    /// Returns whether `intid` is in the set.
    pub fn contains(&self, intid: u32) -> bool {
        self.words
            .get((intid / 64) as usize)
            .is_some_and(|word| word >> (intid % 64) & 1 == 1)
    }

    /// Inserts an INTID; one that is not an SPI is ignored.
    pub fn insert(&mut self, intid: u32) {
        if (SPI_BASE..SPI_END).contains(&intid)
            && let Some(word) = self.words.get_mut((intid / 64) as usize)
        {
            *word |= 1 << (intid % 64);
        }
    }

    /// Inserts `count` INTIDs from `first`.
    pub fn insert_range(&mut self, first: u32, count: u32) {
        for intid in first..first.saturating_add(count).min(SPI_END) {
            self.insert(intid);
        }
    }

    /// Returns the highest SPI below `limit` that is not in the set.
    pub fn highest_free(&self, limit: u32) -> Option<u32> {
        (SPI_BASE..limit.min(SPI_END))
            .rev()
            .find(|intid| !self.contains(*intid))
    }

    /// Returns the INTID of a GICv3 specifier (type 0, number, flags) if it is an SPI.
    pub(super) fn intid(mut specifier: Cells<'_>) -> Option<u32> {
        (specifier.next_u32()? == 0).then_some(())?;
        specifier
            .next_u32()?
            .checked_add(SPI_BASE)
            .filter(|intid| *intid < SPI_END)
    }

    /// Inserts the SPI of a GICv3 specifier, if it is one.
    pub(super) fn insert_specifier(&mut self, specifier: Cells<'_>) {
        if let Some(intid) = Self::intid(specifier) {
            self.insert(intid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SpiSet;

    #[test]
    fn highest_free_skips_used() {
        let mut set = SpiSet::default();
        set.insert_range(280, 8);
        set.insert(5);
        set.insert(4000);
        assert!(!set.contains(5));
        assert!(set.contains(287) && !set.contains(279));
        assert_eq!(set.highest_free(288), Some(279));
        assert_eq!(set.highest_free(32), None);
        assert_eq!(SpiSet::default().highest_free(u32::MAX), Some(1019));
    }
}
