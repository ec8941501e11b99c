//! The virtio console device (virtio 1.2, 5.3): up to [`config::PORTS_MAX`] ports, each a stream of bytes
//! either way, such as Linux's `hvc0`.
//!
//! A port's output is appended to a ring in memory that outlives the process, which readers follow, each at
//! its own pace; its input waits in another. So the driver never waits for a terminal, and nothing is lost or
//! repeated when the process is killed.
//!
//! # How a daemon uses it
//! ```
//! # use std::sync::Arc;
//! # use ringconsole::{Console, PortMemory};
//! # use ringvirtio::{QueueSetup, ReactorHandle, SetupError};
//! # use vm_memory::MmapRegion;
//! fn open(kept: &Arc<MmapRegion>) -> Result<Arc<Console>, ringvirtio::MemoryError> {
//!     let console = Console::new("zone".into(), vec![Arc::new(PortMemory::in_mapping(kept, 0)?)]);
//!     console.ports()[0].on_output(Box::new(|| { /* Something can be read by `Port::read_output`. */ }));
//!     Ok(console)
//! }
//!
//! /// Per queue, when the driver is ready; the transport offers `console.features()`.
//! fn serve(
//!     console: &Arc<Console>,
//!     number: u16,
//!     handle: &ReactorHandle,
//!     setup: QueueSetup,
//! ) -> Result<(), SetupError> {
//!     let (queue, _counters) = console.queue(number, setup)?;
//!     let id = handle.add(queue);
//!     // Input, and a queue of the device has something to do.
//!     console.ports()[0].type_in(b"ls\n");
//!     handle.schedule(id);
//!     Ok(())
//! }
//! ```
//!
//! # Map
//! [`config`] what a driver sees · [`memory`] what outlives a daemon · [`port`] a port · [`device`] the
//! device and its control messages · [`queue`] the queues · [`stats`] counters

pub mod config;
pub mod device;
pub mod memory;
pub mod port;
pub mod queue;
pub mod stats;
pub mod virtio;

#[cfg(test)]
mod tests;

pub use config::{DEVICE_ID, PORTS_MAX, QUEUE_SIZE_MAX};
pub use device::{Console, MadeQueue};
pub use memory::{OutputRead, PortMemory, Word};
pub use port::{Port, Size};
pub use stats::{ConsoleSnapshot, ConsoleStats};
