//! EL2's memory: the heap, the page frames and EL2's own stage 1.
//!
//! Everything lies in the [`EL2_SIZE`] bytes from the image on: image, heap, page frames, and at the end the
//! register frames, which EL2 maps non-cacheable because guests and root map them as Device memory.

pub mod blocks;
pub mod frames;
pub mod heap;
pub mod stage1;

use super::arch::boot::{self, EL2_SIZE};
use ringvisor::addr::Pa;

/// Bytes of heap.
pub const HEAP_SIZE: usize = 256 << 10;
/// Bytes of register frames.
pub const REGISTER_FRAMES_SIZE: usize = 640 << 10;

/// EL2's memory: first byte and first byte beyond.
pub fn el2_range() -> (Pa, Pa) {
    let start = boot::image_start();
    (Pa(start as u64), Pa((start + EL2_SIZE) as u64))
}

/// Hands the memory behind the image to heap and frames. Once, on the boot CPU.
pub fn init() {
    let free = boot::image_end();
    let end = boot::image_start() + EL2_SIZE;
    let registers = end - REGISTER_FRAMES_SIZE;
    // SAFETY: the linker script and the Image header reserve this memory for EL2; each part is handed out once.
    unsafe {
        heap::init(free, HEAP_SIZE);
        frames::NORMAL.init(free + HEAP_SIZE, registers);
        frames::REGISTERS.init(registers, end);
    }
}

/// The range of register frames, mapped non-cacheable.
pub fn register_range() -> (usize, usize) {
    let end = boot::image_start() + EL2_SIZE;
    (end - REGISTER_FRAMES_SIZE, end)
}
