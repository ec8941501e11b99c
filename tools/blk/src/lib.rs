//! The virtio block device of ringvisor: requests, the engines that do their I/O, disks and their images.
//!
//! On top of [`ringvirtio`], whose reactor drives a [`BlockQueue`] for each virtqueue.
//!
//! # How a daemon uses it
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::sync::Arc;
//! use ringblk::{BlockQueue, Disk, DiskConfig};
//! use ringvirtio::{GuestRam, InflightArea, QueueSetup, Reactor, RingAddresses};
//! use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion};
//!
//! // Once: a reactor on its own thread.
//! let (reactor, handle) = Reactor::new(Default::default())?;
//! let thread = std::thread::spawn(move || reactor.run());
//! // handle.add_event_source(uio_fd, ReadWidth::Four, Box::new(source)): turns ring entries into commands.
//!
//! // Per disk: what the transport offers.
//! let config = DiskConfig { path: "root.img".into(), serial: "root0".into(), ..Default::default() };
//! let disk = Disk::open(&config)?; // `Disk::open_with` takes an opener and a connector for remote disks
//! let offered = ringblk::features(&disk, 1);
//! let space = ringblk::config(&disk, ringblk::QUEUE_SIZE_MAX, 1);
//!
//! // Per zone: its RAM.
//! let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x4000_0000), 1 << 30)])?)?;
//! // Per queue, when the driver is ready: addresses as the transport latched them, and the in-flight log.
//! let log = Arc::new(MmapRegion::<()>::new(InflightArea::bytes(256).next_multiple_of(4096))?);
//! let setup = QueueSetup {
//!     ram,
//!     ring: RingAddresses {
//!         size: 256,
//!         desc: GuestAddress(0x4000_0000),
//!         avail: GuestAddress(0x4000_1000),
//!         used: GuestAddress(0x4000_2000),
//!     },
//!     features: offered,
//!     inflight: InflightArea { mapping: log, offset: 0 },
//!     epoch: 1,
//!     notify_driver: Box::new(|| { /* store to EL2's completion doorbell */ }),
//!     needs_reset: Box::new(|fault| eprintln!("{fault}")),
//! };
//! let queue = BlockQueue::new(disk, setup)?;
//! let stats = queue.stats().clone();
//! let id = handle.add(Box::new(queue));
//! // The guest resets the device: EL2 waits until this has been called.
//! handle.command(|commands| commands.remove(id, Box::new(|| { /* notify EL2 */ })));
//! handle.stop();
//! # Ok(())
//! # }
//! ```
//! After a restart of the daemon the same calls, with the same log and epoch, continue where the last one was
//! killed.
//!
//! # Map
//! [`request`] what a request asks for · [`queue`] requests in flight · [`engine`], [`backend`] I/O, and a
//! reactor's engines · [`disk`], [`image`] disks and their images · [`remote`] those of other processes ·
//! [`migrate`] migration to another image · [`control`] what can be changed at run time · [`device`] features
//! and configuration space · [`stats`] counters and latencies

pub mod backend;
pub mod control;
pub mod device;
pub mod disk;
pub mod engine;
pub mod error;
pub mod image;
pub mod migrate;
pub mod opener;
pub mod queue;
pub mod remote;
pub mod request;
pub mod stats;
pub mod virtio;

#[cfg(test)]
mod tests;

pub use backend::BlockBackend;
pub use control::{Control, OnError};
pub use device::{CONFIG_LEN, DEVICE_ID, QUEUE_SIZE_MAX, config, features};
pub use disk::{Disk, DiskConfig, EngineKind, Format, HostCache, OpenContext, OpenOptions, open_locked};
pub use error::DiskError;
pub use image::mapped::SYS_CACHESTAT;
pub use image::qcow2::backing_files;
pub use image::synthetic::Synthetic;
pub use opener::{LocalOpener, Opener};
pub use queue::BlockQueue;
pub use stats::{BlockSnapshot, BlockStats};
