//! A register page and guest RAM for tests.
#![allow(clippy::indexing_slicing, reason = "a test that leaves the page is to fail")]

use core::cell::Cell;

use super::queue::{GuestRam, RegisterPage};
use super::registers::END;
use crate::addr::Ipa;

/// The page as a guest reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FakePage {
    words: [Cell<u32>; END as usize / 4],
}

impl Default for FakePage {
    /// Filled with a value that no register has, so that a word that was never written is noticed.
    fn default() -> Self {
        Self {
            words: [const { Cell::new(0xdead_beef) }; END as usize / 4],
        }
    }
}

impl FakePage {
    /// Returns a 32-bit load from `offset`.
    ///
    /// # Panics
    /// If `offset` is not within the page.
    pub fn read32(&self, offset: u16) -> u32 {
        assert_eq!(offset % 4, 0);
        self.words[usize::from(offset) / 4].get()
    }

    /// Returns all words.
    pub fn dump(&self) -> [u32; END as usize / 4] {
        core::array::from_fn(|index| self.words[index].get())
    }
}

impl RegisterPage for FakePage {
    fn set32(&self, offset: u16, value: u32) {
        assert_eq!(offset % 4, 0);
        self.words[usize::from(offset) / 4].set(value);
    }
}

/// RAM in ranges `(start, length)`; ranges that touch are not joined.
#[derive(Clone, Copy, Debug)]
pub struct FakeRam<'a>(pub &'a [(u64, u64)]);

impl GuestRam for FakeRam<'_> {
    fn contains(&self, start: Ipa, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        self.0
            .iter()
            .any(|&(base, size)| start.0 >= base && end.0 <= base + size)
    }
}
