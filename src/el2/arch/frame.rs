//! The trap frame: what the vectors save, where it lies on a CPU's stack, and how a stack is laid out.
//!
//! A trap from a lower level finds SP_EL2 at the top of this CPU's stack, so its [`TrapFrame`] always lies at
//! the same address.

/// General registers, return address and PSTATE of the interrupted context.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TrapFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// ELR_EL2: the return address.
    pub elr: u64,
    /// SPSR_EL2: the interrupted PSTATE.
    pub spsr: u64,
    /// Keeps the size a multiple of 16 bytes, as SP must be.
    pub reserved: u64,
}

/// Bytes of a [`TrapFrame`], for the assembly.
pub const FRAME_SIZE: usize = size_of::<TrapFrame>();
const _: () = assert!(FRAME_SIZE == 272);

/// A stack area is twice `1 << STACK_SHIFT` bytes, aligned to its size: the upper half is the stack, the
/// lower half holds the guard page at its end and the emergency stack at its beginning.
pub const STACK_SHIFT: usize = 15;

/// Returns the address of the trap frame in the stack area at `area`.
pub const fn frame_address(area: usize) -> usize {
    area + (2 << STACK_SHIFT) - FRAME_SIZE
}
