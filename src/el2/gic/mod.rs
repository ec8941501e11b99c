//! The physical GICv3 and this CPU's list registers.
//!
//! EL2 receives every physical interrupt (HCR_EL2.IMO). With EOImode 1 it drops the priority and leaves
//! deactivation to the guest, whose list register has the HW bit set. EL2's own interrupts are the kick SGI
//! and the maintenance PPI.

mod cpu_interface;
mod frames;
mod list_registers;

pub use cpu_interface::{acknowledge, deactivate, init_cpu, kick, kick_others};
pub use frames::{
    Addresses, Physical, disable_private, init, interrupt_limit, maintenance, redistributor_at,
    reset_private, set_pending,
};
pub use list_registers::{LocalShadow, clear_list_registers, with_list_registers};
