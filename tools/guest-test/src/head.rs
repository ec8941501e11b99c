//! The first instructions: arm64 Image header and relocation, before aarch64-rt's entry code runs.
//!
//! The MMU is enabled before anything is written, so that no store bypasses the caches.

use core::arch::global_asm;

use aarch64_rt::{InitialPagetable, initial_pagetable};

// Linux's Documentation/arch/arm64/booting.rst, section 4.
global_asm!(
    r#"
    .section .head, "ax"
    .global image_header
image_header:
    b       image_start
    .long   0
    .quad   0                           // text_offset
    .quad   image_size                  // by the linker script
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

image_start:
    bl      enable_mmu
    adr     x11, image_header           // linked at 0: the address is the offset
    adrp    x9, rela_begin
    add     x9, x9, :lo12:rela_begin
    adrp    x10, rela_end
    add     x10, x10, :lo12:rela_end
1:  cmp     x9, x10
    b.hs    2f
    ldp     x12, x13, [x9], #16         // r_offset, r_info
    ldr     x14, [x9], #8               // r_addend
    cmp     w13, #1027                  // R_AARCH64_RELATIVE
    b.ne    1b
    add     x14, x14, x11
    str     x14, [x12, x11]
    b       1b
2:  dsb     ish
    b       entry
"#
);

unsafe extern "C" {
    static image_header: u8;
}

/// Returns the address at which this program was loaded.
pub fn address() -> usize {
    (&raw const image_header).addr()
}

/// Level 1 block, accessed, MAIR index 0 (Device-nGnRE). Executable at EL1: a fetch from a device is a test.
const DEVICE: usize = 0x1 | 1 << 10 | 1 << 54;
/// Level 1 block, accessed, inner shareable, MAIR index 1 (write-back).
const MEMORY: usize = 0x1 | 1 << 10 | 3 << 8 | 1 << 2;
/// Bytes in a level 1 block.
const GIB: usize = 1 << 30;

// Identity: the second GiB is RAM, all else is device, so that an access anywhere reaches the bus.
initial_pagetable!({
    let mut table = [0; 512];
    let mut index = 0;
    while index < 512 {
        table[index] = (index * GIB) | if index == 1 { MEMORY } else { DEVICE };
        index += 1;
    }
    InitialPagetable(table)
});
