//! EL2's memory: the heap, the page frames, EL2's own stage 1, and which blocks of root's RAM are donated.
//!
//! EL2 owns the [`EL2_SIZE`] bytes from its load address on: hypervisor binary, heap, page frames, and at the
//! end the register frames and the log, which EL2 maps non-cacheable because guests and root map them as
//! Device memory.
//!
//! Nothing is written to such memory before that mapping is in use: a dirty cache line of an earlier,
//! cacheable mapping would be written over what came later (Arm ARM B2, "Mismatched memory attributes").

pub mod blocks;
pub mod frames;
pub mod heap;
pub mod stage1;

use ringvisor::abi::log;
use ringvisor::addr::Pa;

use super::arch::boot::{self, EL2_SIZE};
use super::arch::{self, features};

/// The widest intermediate physical address that stage-2 tables of three levels translate, in bits.
const MAX_IPA_BITS: u32 = 40;

/// Bytes of heap.
pub const HEAP_SIZE: usize = 256 << 10;
/// Bytes of register frames.
pub const REGISTER_FRAMES_SIZE: usize = 640 << 10;

/// Returns the width of intermediate physical addresses on this machine, in bits.
pub fn ipa_bits() -> u32 {
    features::pa_bits().min(MAX_IPA_BITS)
}

/// Returns EL2's memory: its first byte and the first one behind it.
pub fn el2_range() -> (Pa, Pa) {
    let start = boot::binary_start();
    (Pa(start as u64), Pa((start + EL2_SIZE) as u64))
}

/// Adds the memory behind the hypervisor binary to the heap and the pool of ordinary frames. Called once, on
/// the boot CPU.
pub fn init() {
    let free = boot::binary_end();
    let (uncached, _) = uncached_range();
    // SAFETY: the linker script and the Image header reserve this memory for EL2; the parts are disjoint.
    unsafe {
        heap::init(free, HEAP_SIZE);
        frames::NORMAL.init(free + HEAP_SIZE, uncached);
    }
}

/// Adds the register frames to their pool. Called once, after the final tables have made them non-cacheable.
pub fn init_registers() {
    let (start, end) = uncached_range();
    let (log, _) = log_range();
    // SAFETY: the range is mapped; it is EL2's, and only the pool uses what lies before the log. Lines that
    // were loaded through the early, cacheable mapping are dropped; none is dirty.
    unsafe {
        arch::clean_invalidate_data_cache(start, end - start);
        frames::REGISTERS.init(start, log);
    }
}

/// Returns the range that EL2 maps non-cacheable: register frames and log.
pub fn uncached_range() -> (usize, usize) {
    let (log, end) = log_range();
    (log - REGISTER_FRAMES_SIZE, end)
}

/// Returns the range of the log. It ends where EL2's memory ends, so the next start of EL2 finds it.
pub fn log_range() -> (usize, usize) {
    let end = boot::binary_start() + EL2_SIZE;
    (end - log::SIZE, end)
}
