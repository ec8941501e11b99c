//! The virtual GICv3, portable: it knows no trap, no system register and no lock.
//!
//! [`Vgic`] is the interrupt controller of one zone: the state of every SGI, PPI and SPI (`gic`, `bank`,
//! `state`), their sources (`input`), the registers the guest sees (`dist`, `redist`, `regs`) and
//! the list registers of each vCPU (`flush`, which uses `fill` and `lr_state`). [`RootGic`] is the
//! root zone's: a [`Vgic`] whose PPIs and SPIs are physical, so that its register writes also go to the
//! physical GIC, filtered.
//!
//! How EL2 uses it. CPUs are partitioned, so list registers are never saved and restored: they stay loaded,
//! and only the CPU they belong to accesses them, through [`ListRegisters`]. One lock (EL2's) guards a
//! [`Vgic`]; under it EL2 works on an [`LrShadow`]. Every change returns [`Kicks`]: the vCPUs whose list
//! registers are out of date. EL2 calls [`Vgic::flush`] at once for its own CPU, and raises a flush request
//! ([`FlushRequests`]) and sends an SGI to the others, which flush on their own CPU. A maintenance interrupt
//! is handled by [`Vgic::sync`]. The paths into and out of a guest need nothing else.
//!
//! An interrupt is in one of three places: idle (`Route::home` is `NONE`), in the `ready` set of a vCPU
//! because it wants a list register, or resident in a list register of a vCPU. While it is resident, the list
//! register holds its active bit and the pending bit it carries, and the bank holds what changed since.

mod access;
mod bank;
mod dist;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod fill;
mod flush;
mod gic;
mod input;
mod intid;
mod kicks;
mod line;
mod lr;
mod lr_state;
mod park;
mod physical;
mod redist;
mod regs;
mod root;
mod sgi;
mod shadow;
mod state;
#[cfg(test)]
mod tests;

pub use access::Frame;
pub use fill::HCR_OWNED;
pub use gic::{Vgic, VgicError};
pub use intid::{FIRST_SPI, SPI_LIMIT};
pub use kicks::{FlushRequests, Kicks, MAX_VCPUS};
pub use line::Line;
pub use lr::{ListRegisters, Lr, MAX_LIST_REGISTERS, hcr, vmcr};
pub use physical::PhysicalGic;
pub use redist::FRAME_SIZE;
pub use root::{RootConfig, RootGic};
pub use sgi::{SgiRegister, SgiRequest};
pub use shadow::LrShadow;
