//! Which 2 MiB blocks of root's RAM are donated: one bit each, so that no block is given twice.

use alloc::vec::Vec;

use ringvisor::abi::command::CommandStatus;
use ringvisor::addr::{BLOCK_SIZE, Pa};

use crate::el2::root;

use super::super::sync::Mutex;

struct Bits {
    base: u64,
    words: Vec<u64>,
}

static TAKEN: Mutex<Bits> = Mutex::new(Bits {
    base: 0,
    words: Vec::new(),
});

/// Makes room for all RAM. Once, at boot.
pub fn init(ram: &[(u64, u64)]) {
    let start = ram.iter().map(|range| range.0).min().unwrap_or(0) & !(BLOCK_SIZE - 1);
    let end = ram.iter().map(|range| range.1).max().unwrap_or(0);
    let blocks = end.saturating_sub(start).div_ceil(BLOCK_SIZE);
    let mut bits = TAKEN.lock();
    bits.base = start;
    bits.words.resize(blocks.div_ceil(64) as usize, 0);
}

impl Bits {
    fn word(&mut self, block: Pa) -> Option<(&mut u64, u64)> {
        let index = block.0.checked_sub(self.base)? / BLOCK_SIZE;
        Some((self.words.get_mut((index / 64) as usize)?, 1 << (index % 64)))
    }

    fn take(&mut self, block: Pa) -> Result<(), (CommandStatus, u64)> {
        if !block.is_aligned(BLOCK_SIZE) {
            return Err((CommandStatus::Misaligned, block.0));
        }
        if !root::owns_ram(block, BLOCK_SIZE) {
            return Err((CommandStatus::NotRootRam, block.0));
        }
        match self.word(block) {
            Some((word, mask)) if *word & mask == 0 => {
                *word |= mask;
                Ok(())
            }
            Some(_) => Err((CommandStatus::BlockInUse, block.0)),
            None => Err((CommandStatus::NotRootRam, block.0)),
        }
    }

    fn give_back(&mut self, block: Pa) {
        if let Some((word, mask)) = self.word(block) {
            *word &= !mask;
        }
    }
}

/// Takes all of `blocks`, or none and says which was not to be had.
pub fn take(blocks: &[Pa]) -> Result<(), (CommandStatus, u64)> {
    let mut bits = TAKEN.lock();
    for (done, &block) in blocks.iter().enumerate() {
        if let Err(refusal) = bits.take(block) {
            blocks.iter().take(done).for_each(|&block| bits.give_back(block));
            return Err(refusal);
        }
    }
    Ok(())
}

/// Root's again.
pub fn give_back(block: Pa) {
    TAKEN.lock().give_back(block);
}
