//! Reads and writes system registers by name, including those that the assembler knows only as `S3_...`.

/// Reads a system register.
macro_rules! read {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: every register read through this macro is readable at EL2 without side effects on memory.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register without synchronization: the caller adds `isb` where it matters.
macro_rules! write {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written through this macro configure lower exception levels, the interrupt
        // interface or timers, or are EL2's own pointers; none changes how EL2's memory is translated.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

pub(crate) use {read, write};
