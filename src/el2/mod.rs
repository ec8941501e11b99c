//! Everything that only makes sense at EL2: boot, exceptions, the physical GIC, root and the zones. The rules
//! (virtio transport, vGIC, PSCI, stage 2) are in the library.
//!
//! The layers, lowest first; each imports only from those before it:
//!
//! - `arch`: instructions, registers, boot code and vectors; `sync`: locks; `mm`: memory.
//! - `console`: the log and the UART; `cpu`: the table of CPUs and their counters; `logger`; `stats`:
//!   counting and tracing; `gic`; `firmware`.
//! - `owner`: the trait for what differs between root and a zone on a CPU; `psci`: their PSCI calls.
//! - `channel`: the PCI function and the shared page of the daemon; `zone`: the zones.
//! - `control`: doorbells, commands and the information page; `root`: the root zone.
//! - `current`: the owner of a CPU; `interrupts`; `run`: idling and entering guests; `traps`.
//! - `panic`, `start`: the end and the beginning.
//!
//! Lock order: the command lock, a zone's core, a device slot or the UART, a vGIC. Stage-1 tables, donated
//! blocks, frame pools and the PCI function are leaves.

mod arch;
mod channel;
mod console;
mod control;
mod cpu;
mod current;
mod firmware;
mod gic;
mod interrupts;
mod logger;
mod mm;
mod owner;
mod panic;
mod psci;
mod root;
mod run;
mod start;
mod stats;
mod sync;
mod traps;
mod zone;
