//! The functions above `arch` that its assembly calls. Each is defined once, further up, with
//! `#[unsafe(no_mangle)]`; `arch` imports nothing above itself.

use super::frame::TrapFrame;

unsafe extern "C" {
    /// The boot CPU, MMU on with the early tables: load address of EL2, address of the device tree.
    pub fn boot_main(load_address: u64, device_tree: u64) -> !;
    /// A secondary CPU, MMU on with the final tables: [`super::boot::SecondaryContext::argument`].
    pub fn secondary_main(argument: u64) -> !;
    /// A synchronous exception of a lower level.
    pub fn lower_sync(frame: &mut TrapFrame);
    /// An IRQ or FIQ while a lower level ran.
    pub fn lower_irq(frame: &mut TrapFrame);
    /// An SError while a lower level ran.
    pub fn lower_serror(frame: &mut TrapFrame);
    /// An exception taken at EL2 itself: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError, 4 stack overflow.
    pub fn el2_exception(frame: &TrapFrame, kind: u64) -> !;
}
