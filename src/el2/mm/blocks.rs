//! Which 2 MiB blocks of root's RAM are donated: one bit each, so that no block is donated twice.

use alloc::vec::Vec;

use ringvisor::abi::command::CommandStatus;
use ringvisor::addr::{BLOCK_SIZE, Pa};

use super::el2_range;
use crate::el2::sync::Mutex;

/// Root's RAM and its donated blocks.
struct Blocks {
    /// Ranges of RAM: first byte and the first one behind them.
    ram: Vec<(u64, u64)>,
    /// Address of the block that bit 0 of `donated` stands for.
    base: u64,
    donated: Vec<u64>,
}

static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks {
    ram: Vec::new(),
    base: 0,
    donated: Vec::new(),
});

/// Registers root's RAM, given as ranges `(start, end)` in bytes. Called once, at boot.
pub fn init(ram: Vec<(u64, u64)>) {
    let start = ram.iter().map(|range| range.0).min().unwrap_or(0) & !(BLOCK_SIZE - 1);
    let end = ram.iter().map(|range| range.1).max().unwrap_or(0);
    let count = end.saturating_sub(start).div_ceil(BLOCK_SIZE);
    let mut blocks = BLOCKS.lock();
    blocks.ram = ram;
    blocks.base = start;
    blocks.donated.resize(count.div_ceil(64) as usize, 0);
}

impl Blocks {
    /// Returns the word of `donated` and the bit in it that stand for `block`.
    fn bit(&mut self, block: Pa) -> Option<(&mut u64, u64)> {
        let index = block.0.checked_sub(self.base)? / BLOCK_SIZE;
        Some((self.donated.get_mut((index / 64) as usize)?, 1 << (index % 64)))
    }

    /// Returns whether all of `block` is RAM that root may donate.
    fn is_root_ram(&self, block: Pa) -> bool {
        let (el2_start, el2_end) = el2_range();
        let Some(end) = block.0.checked_add(BLOCK_SIZE) else {
            return false;
        };
        let in_ram = self.ram.iter().any(|&(from, to)| block.0 >= from && end <= to);
        in_ram && (end <= el2_start.0 || block >= el2_end)
    }

    fn donate(&mut self, block: Pa) -> Result<(), (CommandStatus, u64)> {
        if !block.is_aligned(BLOCK_SIZE) {
            return Err((CommandStatus::Misaligned, block.0));
        }
        if !self.is_root_ram(block) {
            return Err((CommandStatus::NotRootRam, block.0));
        }
        match self.bit(block) {
            Some((word, mask)) if *word & mask == 0 => {
                *word |= mask;
                Ok(())
            }
            Some(_) => Err((CommandStatus::BlockInUse, block.0)),
            None => Err((CommandStatus::NotRootRam, block.0)),
        }
    }

    fn reclaim(&mut self, block: Pa) {
        if let Some((word, mask)) = self.bit(block) {
            *word &= !mask;
        }
    }
}

/// Donates all blocks of `list`, or none.
///
/// # Errors
/// The status and the address of the first block that cannot be donated.
pub fn donate(list: &[Pa]) -> Result<(), (CommandStatus, u64)> {
    let mut blocks = BLOCKS.lock();
    for (done, &block) in list.iter().enumerate() {
        if let Err(refusal) = blocks.donate(block) {
            list.iter().take(done).for_each(|&block| blocks.reclaim(block));
            return Err(refusal);
        }
    }
    Ok(())
}

/// Returns blocks to root.
pub fn reclaim_all(list: &[Pa]) {
    let mut blocks = BLOCKS.lock();
    list.iter().for_each(|&block| blocks.reclaim(block));
}

/// Returns a block to root.
pub fn reclaim(block: Pa) {
    BLOCKS.lock().reclaim(block);
}
