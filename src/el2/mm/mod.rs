//! EL2's memory: the heap, the page frames, EL2's own stage 1, and which blocks of root's RAM are donated.
//!
//! EL2 owns the [`EL2_SIZE`] bytes from its load address on: hypervisor binary, heap, page frames, and at the
//! end the register frames, which EL2 maps non-cacheable because guests and root map them as Device memory.

pub mod blocks;
pub mod frames;
pub mod heap;
pub mod stage1;

use ringvisor::addr::Pa;

use super::arch::boot::{self, EL2_SIZE};
use super::arch::features;

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

/// Adds the memory behind the hypervisor binary to the heap and the frame pools. Called once, on the boot
/// CPU.
pub fn init() {
    let free = boot::binary_end();
    let end = boot::binary_start() + EL2_SIZE;
    let registers = end - REGISTER_FRAMES_SIZE;
    // SAFETY: the linker script and the Image header reserve this memory for EL2; the three parts are
    // disjoint.
    unsafe {
        heap::init(free, HEAP_SIZE);
        frames::NORMAL.init(free + HEAP_SIZE, registers);
        frames::REGISTERS.init(registers, end);
    }
}

/// Returns the range of the register frames, which EL2 maps non-cacheable.
pub fn register_range() -> (usize, usize) {
    let end = boot::binary_start() + EL2_SIZE;
    (end - REGISTER_FRAMES_SIZE, end)
}
