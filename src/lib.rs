//! The portable part of ringvisor, a type-1 hypervisor for aarch64 that partitions a machine: root Linux owns
//! the machine's devices, zones run guests on CPUs and memory of their own, and their virtio devices are
//! served by a daemon in root.
//!
//! Everything here is `no_std`, free of `unsafe` and of hardware, and runs under `cargo test`, Miri and loom
//! on the host. `src/el2`, the binary, drives the machine with it; the daemon uses [`abi`] and [`ring`].
//!
//! # Overview
//! | module | contents | source |
//! |---|---|---|
//! | [`abi`] | contract between EL2 and root's user space: pages, doorbells, commands | |
//! | [`ring`] | event ring and console rings between EL2 and the daemon | |
//! | [`virtio`] | virtio-mmio transport: registers, queues, configuration space | virtio 1.2 |
//! | [`vgic`] | virtual GICv3 of a zone, and root's filtered view of the physical one | Arm IHI 0069 |
//! | [`stage2`] | stage-2 translation tables | Arm ARM D8 |
//! | [`cpu_state`] | EL1's and EL0's registers from one owner of a CPU to the next | Arm ARM D24 |
//! | [`syndrome`] | decoded ESR_EL2, injected exceptions | Arm ARM D24 |
//! | [`psci`] | PSCI calls and the state of CPUs | Arm DEN 0022, DEN 0028 |
//! | [`firmware`] | calls that are passed on to the firmware | Arm DEN 0028, DEN 0098 |
//! | [`pl011`], [`pl031`], [`pl061`] | a guest's UART, real-time clock and power key | Arm DDI 0183, DDI 0224, DDI 0190 |
//! | [`flash`] | a guest's flash: commands | CFI (JESD68) |
//! | [`fw_cfg`] | what a guest's firmware asks for | QEMU, docs/specs/fw_cfg |
//! | [`pci`] | configuration space of the control device | PCI 3.0 |
//! | [`machine`] | the firmware's device tree, and root's | Devicetree 0.4 |
//! | [`addr`], [`sync`] | address types; atomics, or loom's | |
//!
//! # The path of a request
//! The driver stores to QueueNotify; the store traps, [`syndrome`] decodes it and
//! [`virtio::Transport::write`] returns an [`virtio::Effect`] with an event, which EL2 adds to the zone's
//! [`ring`]. The daemon processes the queue in guest memory and stores to [`abi::doorbell::USED_BUFFER`];
//! [`virtio::Transport::used_buffer`] raises the interrupt line, which [`vgic`] delivers through a list
//! register.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod abi;
pub mod addr;
pub mod cpu_state;
pub mod firmware;
pub mod flash;
pub mod fw_cfg;
pub mod machine;
pub mod pci;
pub mod pl011;
pub mod pl031;
pub mod pl061;
mod primecell;
pub mod psci;
pub mod ring;
pub mod stage2;
pub mod sync;
pub mod syndrome;
pub mod vgic;
pub mod virtio;
