//! The exception vectors: save the interrupted context's general registers, call Rust, restore, return.
//!
//! An exception taken at EL2 itself is fatal for the CPU. If the stack overflowed into its guard page (bit
//! [`STACK_SHIFT`] of SP is clear), the report runs on the emergency stack at the bottom of the same area.

use core::arch::global_asm;

use super::entry;
use super::frame::{FRAME_SIZE, STACK_SHIFT, TrapFrame};

global_asm!(
    r#"
    .macro save_registers
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x0, elr_el2
    mrs     x1, spsr_el2
    stp     x30, x0, [sp, #240]
    str     x1, [sp, #256]
    mov     x0, sp
    .endm

    .macro from_lower handler
    .balign 128
    sub     sp, sp, #{frame}
    save_registers
    mov     x29, xzr
    bl      \handler
    b       return_to_lower
    .endm

    .macro from_el2 kind
    .balign 128
    sub     sp, sp, #{frame}
    // Is the stack still valid? No register is free: compute in SP itself.
    add     sp, sp, x0
    sub     x0, sp, x0
    tbz     x0, #{shift}, 1f
    sub     x0, sp, x0
    sub     sp, sp, x0
    b       el2_exception_\kind
1:  sub     x0, sp, x0
    sub     sp, sp, x0
    b       el2_stack_overflow
    .endm

    .section .vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    .rept   4                       // EL2 with SP_EL0: never used
    .balign 128
    b       el2_stack_overflow
    .endr
    from_el2 sync
    from_el2 irq
    from_el2 fiq
    from_el2 serror
    from_lower {sync}
    from_lower {irq}
    from_lower {irq}
    from_lower {serror}
    from_lower {sync}               // AArch32 at EL0; HCR_EL2.RW keeps EL1 in AArch64
    from_lower {irq}
    from_lower {irq}
    from_lower {serror}

    .text

    .macro el2_report kind, number
el2_exception_\kind:
    save_registers
    mov     x1, #\number
    bl      {el2}
    b       .
    .endm
    el2_report sync, 0
    el2_report irq, 1
    el2_report fiq, 2
    el2_report serror_fatal, 3

    // Returns ESR_EL2 of an SError that was pending in x0, or 0. Only while it is executed are SErrors of EL2
    // not masked.
    .global take_pending_serror
take_pending_serror:
    mov     x0, xzr
    msr     daifclr, #4
    isb                             // a pending SError is taken by now
serror_taken:
    msr     daifset, #4
    ret

    // SP and x0 are as interrupted, but for the room of a frame.
el2_exception_serror:
    stp     x0, x1, [sp]
    mrs     x0, elr_el2
    adr     x1, serror_taken
    sub     x0, x1, x0
    cmp     x0, #4                  // at the ISB or after it
    ldp     x0, x1, [sp]
    b.hi    el2_exception_serror_fatal
    add     sp, sp, #{frame}
    adr     x0, serror_taken
    msr     elr_el2, x0
    mrs     x0, spsr_el2
    orr     x0, x0, #0x100          // A
    msr     spsr_el2, x0
    mrs     x0, esr_el2
    eret

    // The CPU stops after this, so TPIDR_EL0, the lower level's, may be clobbered.
el2_stack_overflow:
    msr     tpidr_el0, x0
    mov     x0, sp
    bfi     x0, xzr, #0, #({shift} + 1)
    add     x0, x0, #0x4000         // top of the emergency stack
    mov     sp, x0
    mrs     x0, tpidr_el0
    sub     sp, sp, #{frame}
    save_registers
    mov     x1, #4
    bl      {el2}
    b       .

    .global return_to_lower
return_to_lower:
    ldp     x30, x0, [sp, #240]
    ldr     x1, [sp, #256]
    msr     elr_el2, x0
    msr     spsr_el2, x1
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    add     sp, sp, #{frame}
    eret
    dsb     nsh                     // no speculation past the return
    isb

    // x0: a TrapFrame at the top of this CPU's stack.
    .global enter_lower
enter_lower:
    mov     sp, x0
    b       return_to_lower

    // x0: address of the TrapFrame at the top of this CPU's stack, x1: where to continue.
    .global restart_stack
restart_stack:
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    br      x1
    "#,
    frame = const FRAME_SIZE,
    shift = const STACK_SHIFT,
    sync = sym entry::lower_sync,
    irq = sym entry::lower_irq,
    serror = sym entry::lower_serror,
    el2 = sym entry::el2_exception,
);

unsafe extern "C" {
    static vectors: u8;
    fn enter_lower(frame: *const TrapFrame) -> !;
    fn restart_stack(frame: *const TrapFrame, to: extern "C" fn() -> !) -> !;
}

/// Sets VBAR_EL2 to the vectors.
pub fn install() {
    super::sysreg::write!("vbar_el2", (&raw const vectors) as u64);
    super::isb();
}

/// Returns to the lower level with the registers of `frame`.
///
/// # Safety
/// `frame` must be the frame at the very top of this CPU's stack.
pub unsafe fn enter(frame: *const TrapFrame) -> ! {
    // SAFETY: the caller's promise: SP is at the stack's top once the frame is popped.
    unsafe { enter_lower(frame) }
}

/// Continues in `to` with an empty stack: everything below `frame` is discarded.
///
/// # Safety
/// `frame` must be the address of the frame at the very top of this CPU's stack, and nothing on the stack may
/// still have to be dropped.
pub unsafe fn restart(frame: *const TrapFrame, to: extern "C" fn() -> !) -> ! {
    // SAFETY: the caller's promise.
    unsafe { restart_stack(frame, to) }
}
