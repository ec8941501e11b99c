//! The first instructions: Image header, relocation, the early page table, and the entry of secondary CPUs.
//!
//! Until the early tables are on, all memory is Device memory and atomics must not be used. What runs before
//! that is assembly and [`early_tables`], which accesses nothing but its own tables.

use core::arch::global_asm;

use super::entry;
use super::frame::FRAME_SIZE;

/// MAIR_EL2: attribute 0 Device-nGnRE, 1 normal write-back, 2 normal non-cacheable.
pub const MAIR: u64 = 0x0044_ff04;
/// SCTLR_EL2 with MMU, caches and stack alignment check on; RES1 bits set.
const SCTLR_ON: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12;
/// The same with WXN: writable memory is never executable.
const SCTLR_FINAL: u64 = SCTLR_ON | 1 << 19;
/// SCTLR_EL2 with MMU and caches off.
const SCTLR_OFF: u64 = 0x30c5_0830;

/// What a secondary CPU loads with its MMU off; its address is PSCI's context id.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SecondaryContext {
    /// TTBR0_EL2.
    pub ttbr: u64,
    /// TCR_EL2.
    pub tcr: u64,
    /// Initial stack pointer.
    pub stack: u64,
    /// Passed to `secondary_main` in x0.
    pub argument: u64,
}

global_asm!(
    r#"
    // What decides how this exception level's registers are laid out and its memory is translated: firmware
    // may have left E2H on, under which TCR_EL2 has another format, or SP_EL0 selected. A CPU on which E2H
    // cannot be turned off (without FEAT_E2H0) cannot be used. Clobbers x1.
    .macro own_regime
    msr     spsel, #1
    mov     x1, #(1 << 31)          // HCR_EL2.RW
    msr     hcr_el2, x1
    isb
    mrs     x1, hcr_el2
9999: tbnz  x1, #34, 9999b          // E2H
    .endm

    .section .head.text, "ax"
    .global _start
_start:
    b       1f                      // code0
    .long   0                       // code1
    .quad   0                       // text_offset
    .quad   EL2_SIZE                // image_size
    .quad   0xa                     // flags: little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0                 // reserved
    .ascii  "ARM\x64"               // magic
    .long   0

1:  mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.eq    3f
2:  wfe                             // Not EL2: there is no console yet to say so.
    b       2b

3:  msr     daifset, #15
    mov     x20, x0                 // device tree
    own_regime
    ldr     x1, ={sctlr_off}
    msr     sctlr_el2, x1
    isb

    // Apply our own relocations: R_AARCH64_RELATIVE only, packed as SHT_RELR. An even entry is the offset of
    // a word to relocate; an odd one is a bitmap, from bit 1 on, of the 63 words that follow.
    adrp    x21, __binary_start
    adrp    x2, __relr_start
    add     x2, x2, :lo12:__relr_start
    adrp    x3, __relr_end
    add     x3, x3, :lo12:__relr_end
4:  cmp     x2, x3
    b.hs    5f
    ldr     x4, [x2], #8
    tbnz    x4, #0, 10f
    add     x5, x4, x21
    ldr     x6, [x5]
    add     x6, x6, x21
    str     x6, [x5], #8            // x5: the word that the next bitmap begins with
    b       4b
10: mov     x7, x5
11: lsr     x4, x4, #1
    cbz     x4, 13f
    tbz     x4, #0, 12f
    ldr     x6, [x7]
    add     x6, x6, x21
    str     x6, [x7]
12: add     x7, x7, #8
    b       11b
13: add     x5, x5, #(63 * 8)
    b       4b

    // Zero .bss.
5:  adrp    x2, __bss_start
    adrp    x3, __bss_end
6:  cmp     x2, x3
    b.hs    7f
    stp     xzr, xzr, [x2], #16
    b       6b

    // What was just written bypassed the caches: drop stale lines over all of EL2's memory.
7:  dsb     sy
    mrs     x4, ctr_el0
    ubfx    x4, x4, #16, #4
    mov     x5, #4
    lsl     x5, x5, x4
    mov     x2, x21
    ldr     x3, =EL2_SIZE
    add     x3, x3, x21
8:  dc      ivac, x2
    add     x2, x2, x5
    cmp     x2, x3
    b.lo    8b
    dsb     sy

    adrp    x1, __boot_stack_end
    sub     sp, x1, #{frame}        // the top belongs to the trap frame
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x21
    mov     x1, x20
    bl      {early_tables}          // x0: TTBR0_EL2, x1: TCR_EL2
    ldr     x2, ={sctlr_on}
    bl      enable_mmu
    mov     x0, x21
    mov     x1, x20
    bl      {boot_main}
    b       .

    // x0: TTBR0_EL2, x1: TCR_EL2, x2: SCTLR_EL2. Turns the MMU off, changes tables, turns it on. No memory
    // access.
    .global enable_mmu
enable_mmu:
    ldr     x3, ={sctlr_off}
    ldr     x4, ={mair}
    b       9f
    .ltorg
9:  dsb     sy
    isb
    msr     sctlr_el2, x3
    isb
    msr     mair_el2, x4
    msr     tcr_el2, x1
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    msr     sctlr_el2, x2
    isb
    ret

    .global secondary_start
secondary_start:
    msr     daifset, #15
    mov     x20, x0
    own_regime
    ldp     x0, x1, [x20]
    ldr     x2, ={sctlr_final}
    bl      enable_mmu
    ldp     x1, x0, [x20, #16]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary_main}
    b       .

    .ltorg

    .section .bss.boot_stack, "aw", @nobits
    .balign 65536
    .global __boot_stack
__boot_stack:
    .space 65536
    .global __boot_stack_end
__boot_stack_end:
    "#,
    early_tables = sym early_tables,
    boot_main = sym entry::boot_main,
    secondary_main = sym entry::secondary_main,
    sctlr_off = const SCTLR_OFF,
    sctlr_on = const SCTLR_ON,
    sctlr_final = const SCTLR_FINAL,
    mair = const MAIR,
    frame = const FRAME_SIZE,
);

/// A translation table before the allocator runs.
#[repr(C, align(4096))]
struct Table(core::cell::UnsafeCell<[u64; 512]>);

// SAFETY: written once, by the boot CPU, before any other code runs.
unsafe impl Sync for Table {}

static EARLY: [Table; 4] = [const { Table(core::cell::UnsafeCell::new([0; 512])) }; 4];

/// TTBR0_EL2 and TCR_EL2, as [`early_tables`] returns them in x0 and x1.
#[repr(C)]
pub struct EarlyTables {
    ttbr: u64,
    tcr: u64,
}

/// Returns TCR_EL2 for 48-bit virtual addresses, 4 KiB pages and write-back inner-shareable walks.
pub fn tcr() -> u64 {
    let pa_range = (super::sysreg::read!("id_aa64mmfr0_el1") & 0xf).min(5);
    (1 << 31 | 1 << 23) | pa_range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16
}

/// Identity-maps EL2's own memory and the device tree in 2 MiB blocks of normal memory, executable.
///
/// Runs with the MMU off: no atomics, no calls outside. Both addresses lie below 512 GiB.
extern "C" fn early_tables(image: u64, dtb: u64) -> EarlyTables {
    const BLOCK: u64 = 2 << 20;
    const NORMAL: u64 = 1 << 10 | 3 << 8 | 1 << 6 | 1 << 2 | 1;
    let [level0, level1, image_level2, dtb_level2] = &EARLY;
    let set = |table: &Table, index: u64, value: u64| {
        // SAFETY: the only CPU, before anything else refers to the tables; the index is masked to the table.
        unsafe { (*table.0.get())[(index & 511) as usize] = value };
    };
    let address = |table: &Table| table.0.get() as u64;

    set(level0, 0, address(level1) | 3);
    set(level1, image >> 30, address(image_level2) | 3);
    let dtb_table = if image >> 30 == dtb >> 30 {
        image_level2
    } else {
        set(level1, dtb >> 30, address(dtb_level2) | 3);
        dtb_level2
    };
    for block in 0..=2 {
        let pa = (image & !(BLOCK - 1)) + block * BLOCK;
        if pa >> 30 == image >> 30 {
            set(image_level2, pa >> 21, pa | NORMAL);
        }
    }
    for block in 0..=1 {
        let pa = (dtb & !(BLOCK - 1)) + block * BLOCK;
        if pa >> 30 == dtb >> 30 {
            set(dtb_table, pa >> 21, pa | NORMAL);
        }
    }
    EarlyTables {
        ttbr: address(level0),
        tcr: tcr(),
    }
}

unsafe extern "C" {
    fn enable_mmu(ttbr: u64, tcr: u64, sctlr: u64);
    fn secondary_start();
}

/// Switches EL2 to its final tables, with WXN.
///
/// # Safety
/// The tables must identity-map the hypervisor binary, the current stack and everything in use, and stay in
/// place.
pub unsafe fn use_tables(ttbr: u64) {
    // SAFETY: the assembly touches no memory while the MMU is off; the rest is the caller's promise.
    unsafe { enable_mmu(ttbr, tcr(), SCTLR_FINAL) };
}

/// Returns the physical address where PSCI CPU_ON starts a secondary CPU (EL2 is identity-mapped).
pub fn secondary_entry() -> u64 {
    secondary_start as *const () as u64
}

macro_rules! linker_symbols {
    ($($(#[$doc:meta])* $name:ident => $symbol:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name() -> usize {
                unsafe extern "C" { static $symbol: u8; }
                (&raw const $symbol) as usize
            }
        )*
    };
}

linker_symbols! {
    /// Returns the load address: the first byte of the hypervisor binary.
    binary_start => __binary_start;
    /// Returns the end of code.
    text_end => __text_end;
    /// Returns the end of read-only data.
    rodata_end => __rodata_end;
    /// Returns the end of the hypervisor binary with .bss; free memory of EL2 begins here.
    binary_end => __binary_end;
    /// Returns the boot CPU's stack area, laid out as [`super::frame::STACK_SHIFT`] says.
    boot_stack => __boot_stack;
}

/// Size of EL2's memory from [`binary_start`] on, in bytes; the same as EL2_SIZE in linker.ld.
pub const EL2_SIZE: usize = 4 << 20;
