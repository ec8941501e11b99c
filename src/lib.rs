//! ringvisor: the portable half of a partitioning hypervisor for aarch64.
//!
//! Everything here is `no_std`, free of `unsafe` and of hardware, and runs under `cargo test`, Miri and loom on
//! the host. `src/el2` drives the machine with it; the daemon in root uses [`abi`] and the ring.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod abi;
pub mod addr;
pub mod machine;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod psci;
pub mod ring;
pub mod stage2;
pub mod sync;
pub mod syndrome;
pub mod vgic;
pub mod virtio;
