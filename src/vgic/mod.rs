//! The virtual GICv3, portable: no trap, no system register, no lock is known here.
//!
//! [`Vgic`] is the interrupt controller of one zone: the state of every SGI, PPI and SPI, the registers the guest sees
//! (`dist`, `redist`) and the machinery that keeps the list registers of each virtual CPU filled (`flush`).
//! [`RootGic`] is the root zone's: a [`Vgic`] whose PPIs and SPIs are physical, so that its register writes also go to
//! the physical GIC, filtered.
//!
//! How EL2 uses it. CPUs are partitioned, so list registers are never saved: they stay loaded, and only the CPU they
//! belong to reaches them, through [`ListRegisters`]. One lock (EL2's) guards a [`Vgic`]; under it EL2 works on an
//! [`Image`] of them. Every change returns [`Kicks`]: the virtual CPUs whose list registers are out of date. EL2 calls
//! [`Vgic::flush`] at once for its own, and rings a [`Doorbell`] and sends an SGI for the others, which flush on their
//! own CPU. A maintenance interrupt is answered with [`Vgic::sync`]. Nothing else is needed on the way into or out of a
//! guest.
//!
//! An interrupt is in one of three places: nowhere (`Route::home` is `NONE`), listed in the `ready` set of a virtual
//! CPU because it wants a list register, or resident in a list register of a virtual CPU. While it is resident, the
//! list register is the truth about its active bit and about the pending bit it carries, and the bank has what
//! happened since.

mod bank;
mod dist;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod fill;
mod flush;
mod gic;
mod image;
mod kicks;
mod line;
mod lr;
mod park;
mod physical;
mod redist;
mod regs;
mod root;
mod sgi;
#[cfg(test)]
mod tests;

pub use fill::HCR_OWNED;
pub use gic::Vgic;
use gic::{Slot, VCpu};
pub use image::Image;
pub use kicks::{Doorbell, Kicks, MAX_VCPUS};
pub use line::Line;
pub use lr::{ListRegisters, Lr, MAX_LIST_REGISTERS, hcr, vmcr};
pub use physical::PhysicalGic;
pub use redist::FRAME_SIZE;
pub use root::{RootConfig, RootGic};
pub use sgi::{SgiRegister, SgiRequest};

/// SGIs are interrupts 0 to 15, always edge-triggered.
const SGIS: u32 = 0xffff;
/// The first SPI.
pub const FIRST_SPI: u32 = 32;
/// One past the last SPI the architecture has (without extended SPIs).
pub const SPI_LIMIT: u32 = 1020;
/// No virtual CPU.
const NONE: u8 = u8::MAX;

/// Why a virtual GIC cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VgicError {
    /// A GIC has 1 to [`MAX_VCPUS`] virtual CPUs.
    #[error("a virtual GIC has 1 to {MAX_VCPUS} CPUs, not {0}")]
    CpuCount(usize),
    /// The number of SPIs is not a multiple of 32 (or 988, the architecture's most).
    #[error("the number of SPIs is a multiple of 32, or 988, not {0}")]
    SpiCount(u32),
    /// Out of memory.
    #[error("no memory for the virtual GIC")]
    NoMemory,
}
