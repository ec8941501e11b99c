//! The system registers of the CPU that executes, as the portable code of [`ringvisor::cpu_state`] accesses
//! them.

use core::arch::{asm, global_asm};

use ringvisor::cpu_state::Registers;

/// The CPU that executes.
pub struct ThisCpu;

global_asm!(
    r#"
    .text
    // x0: position of an identification register, 8 to 63. Returns its value; reserved ones read as zero.
    .global read_id_register
read_id_register:
    adr     x1, 1f - 64
    add     x1, x1, x0, lsl #3
    br      x1
1:  .irp    m, 1,2,3,4,5,6,7
    .irp    n, 0,1,2,3,4,5,6,7
    mrs     x0, S3_0_C0_C\m\()_\n
    ret
    .endr
    .endr

    // x0: number of the last breakpoint, x1: of the last watchpoint, 0 to 15.
    .global zero_breakpoints
zero_breakpoints:
    adr     x2, 1f
    sub     x0, x2, x0, lsl #3
    adr     x2, 2f
    sub     x1, x2, x1, lsl #3
    br      x0
    .irp    n, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1
    msr     dbgbcr\n\()_el1, xzr
    msr     dbgbvr\n\()_el1, xzr
    .endr
1:  msr     dbgbcr0_el1, xzr
    msr     dbgbvr0_el1, xzr
    br      x1
    .irp    n, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1
    msr     dbgwcr\n\()_el1, xzr
    msr     dbgwvr\n\()_el1, xzr
    .endr
2:  msr     dbgwcr0_el1, xzr
    msr     dbgwvr0_el1, xzr
    ret

    .arch_extension simd
    .arch_extension sve
    .global zero_fp_registers
zero_fp_registers:                  // x0: 1 if there are SVE registers
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movi    v\n\().2d, #0
    .endr
    cbz     x0, 1f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    pfalse  p\n\().b
    .endr
    wrffr   p0.b
1:  ret
    .arch_extension nosve
    .arch_extension nosimd
    "#
);

unsafe extern "C" {
    fn read_id_register(position: usize) -> u64;
    fn zero_breakpoints(breakpoints: u64, watchpoints: u64);
}

impl Registers for ThisCpu {
    #[inline(always)]
    fn read<const REGISTER: u16>(&self) -> u64 {
        let value: u64;
        // SAFETY: the caller has asked the identification registers whether the register exists; reads of
        // those that are accessed have no side effects on memory.
        unsafe {
            asm!(
                "mrs {}, S{}_{}_C{}_C{}_{}",
                out(reg) value,
                const REGISTER >> 14,
                const REGISTER >> 11 & 7,
                const REGISTER >> 7 & 15,
                const REGISTER >> 3 & 15,
                const REGISTER & 7,
                options(nostack, preserves_flags)
            );
        }
        value
    }

    #[inline(always)]
    fn write<const REGISTER: u16>(&mut self, value: u64) {
        // SAFETY: as above; `cpu_state` writes registers that configure lower exception levels or are their
        // own, and none that changes how EL2's memory is translated.
        unsafe {
            asm!(
                "msr S{}_{}_C{}_C{}_{}, {}",
                const REGISTER >> 14,
                const REGISTER >> 11 & 7,
                const REGISTER >> 7 & 15,
                const REGISTER >> 3 & 15,
                const REGISTER & 7,
                in(reg) value,
                options(nostack, preserves_flags)
            );
        }
    }

    fn id(&self, register: usize) -> u64 {
        // SAFETY: the position is limited to the table of instructions; each reads a register.
        unsafe { read_id_register(register.clamp(8, 63)) }
    }

    #[inline(always)]
    fn isb(&mut self) {
        super::isb();
    }

    fn drain_profiling_buffer(&mut self) {
        // SAFETY: barriers. PSB CSYNC.
        unsafe { asm!("hint #17", "dsb nsh", options(nostack, preserves_flags)) }
    }

    fn drain_trace_buffer(&mut self) {
        // SAFETY: barriers. TSB CSYNC twice, for Cortex-A710 erratum 2054223 and Neoverse N2 erratum 2067961.
        unsafe {
            asm!(
                "hint #18",
                "hint #18",
                "dsb nsh",
                options(nostack, preserves_flags)
            )
        }
    }

    fn invalidate_branch_records(&mut self) {
        // SAFETY: changes branch records only. BRB IALL.
        unsafe { asm!("sys #1, c7, c2, #4", options(nostack, preserves_flags)) }
    }

    fn zero_breakpoints(&mut self, breakpoints: u64, watchpoints: u64) {
        // SAFETY: both are limited to the instructions there are, of which each writes a register that the
        // CPU has.
        unsafe { zero_breakpoints(breakpoints & 15, watchpoints & 15) }
    }

    fn zero_vectors(&mut self, sve: bool) {
        // SAFETY: EL2 is compiled without floating point, so these registers hold nothing of its own;
        // CPTR_EL2 lets EL2 use them (`cpu_state::initialise` ran on this CPU).
        unsafe {
            asm!("bl zero_fp_registers", inout("x0") u64::from(sve) => _, out("x30") _, options(nostack));
        }
    }
}
