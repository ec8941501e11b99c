//! [`SavedState`]: what a driver has set by commands and never sets again, in memory that outlives the
//! process.
//!
//! The tables of the filter are not in it: a device may let more packets pass than the driver asked for
//! (5.1.6.5.2), and after a take-over it lets all pass until the driver sets the filter again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringvirtio::memory::Slots;

use crate::mac::MacAddress;

/// Words of a device.
pub const WORDS: usize = 4;
/// The epoch of the other words, plus 1; 0: they say nothing.
const EPOCH: usize = 0;
/// The address in the low 48 bits, then the pairs in use.
const ADDRESS: usize = 1;
/// Offloads of received packets, as feature bits.
const OFFLOADS: usize = 2;
/// Whether an announcement is wanted. Not of the epoch alone.
const ANNOUNCE: usize = 3;

/// What is saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The device's address.
    pub mac: MacAddress,
    /// Pairs in use.
    pub pairs: u16,
    /// Offloads of received packets.
    pub guest_offloads: u64,
    /// The driver shall announce its addresses.
    pub announce: bool,
}

/// Where it is saved: [`WORDS`] words, zeroed before their first use ever.
#[derive(Clone)]
pub struct SavedState {
    words: Arc<Slots<AtomicU64>>,
    first: usize,
}

impl SavedState {
    /// Takes the words from `first` on.
    #[must_use]
    pub const fn new(words: Arc<Slots<AtomicU64>>, first: usize) -> Self {
        Self { words, first }
    }

    fn get(&self, index: usize) -> u64 {
        let word = self.words.get(self.first + index);
        word.map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.words.get(self.first + index) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Returns what was saved in `epoch`.
    #[must_use]
    pub fn load(&self, epoch: u64) -> Option<Saved> {
        if self.get(EPOCH) != epoch.wrapping_add(1) {
            return None;
        }
        let [a, b, c, d, e, f, pairs, _] = self.get(ADDRESS).to_le_bytes();
        Some(Saved {
            mac: MacAddress([a, b, c, d, e, f]),
            pairs: pairs.into(),
            guest_offloads: self.get(OFFLOADS),
            announce: self.get(ANNOUNCE) != 0,
        })
    }

    /// Saves everything. Each word is a whole by itself, so that a kill in here loses a part of the change at
    /// most; in another epoch than before, all of it.
    pub fn store(&self, epoch: u64, saved: &Saved) {
        let epoch = epoch.wrapping_add(1);
        if self.get(EPOCH) != epoch {
            self.set(EPOCH, 0);
        }
        let [a, b, c, d, e, f] = saved.mac.0;
        let pairs = u8::try_from(saved.pairs).unwrap_or(u8::MAX);
        self.set(ADDRESS, u64::from_le_bytes([a, b, c, d, e, f, pairs, 0]));
        self.set(OFFLOADS, saved.guest_offloads);
        self.set(ANNOUNCE, saved.announce.into());
        self.set(EPOCH, epoch);
    }
}
