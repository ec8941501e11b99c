//! The portable virtio block device of ringvisor: virtqueues, requests, images and the engines that do the I/O.
//!
//! Nothing here knows of EL2. The daemon in root Linux uses it with guest RAM in huge pages and `/dev/uioN` as the
//! bell; tests, fuzzers and benchmarks use it on any Linux with anonymous memory and an `eventfd`.
//!
//! # How a daemon uses it
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::sync::Arc;
//! use ringblk::{Disk, DiskConfig, GuestRam, InflightArea, Queue, QueueSetup, Reactor, RingAddresses};
//! use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion};
//!
//! // Once: a reactor on its own thread.
//! let (reactor, handle) = Reactor::new(Default::default())?;
//! let thread = std::thread::spawn(move || reactor.run());
//! // handle.add_bell(uio_fd, ReadWidth::Four, Box::new(my_bell)): it turns ring entries into `kick`s.
//!
//! // Per disk: what the transport offers.
//! let config = DiskConfig { path: "root.img".into(), readonly: false, serial: "root0".into(), ..Default::default() };
//! let disk = Disk::open(&config)?; // `Disk::open_with` takes an opener and a connector for remote disks
//! let offered = ringblk::features(&disk, 1);
//! let space = ringblk::config(&disk, ringblk::QUEUE_SIZE_MAX, 1);
//!
//! // Per zone: its RAM.
//! let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x4000_0000), 1 << 30)])?)?;
//! // Per queue, when the driver is ready: addresses as the transport latched them, and the in-flight log.
//! let log = Arc::new(MmapRegion::<()>::new(InflightArea::bytes(256).next_multiple_of(4096))?);
//! let queue = Queue::new(QueueSetup {
//!     disk,
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
//!     notify: Box::new(|| { /* store to EL2's completion doorbell */ }),
//!     needs_reset: Box::new(|fault| eprintln!("{fault}")),
//! })?;
//! let stats = queue.stats().clone();
//! let id = handle.add(queue);
//! // The guest resets the device: EL2 waits until this has been called.
//! handle.remove(id, Box::new(|| { /* tell EL2 */ }));
//! handle.stop();
//! # Ok(())
//! # }
//! ```
//! After a restart of the daemon the same calls, with the same log and epoch, go on where the last one was killed.
//!
//! # Map
//! [`memory`], [`buffers`] guest RAM · [`ring`], [`chain`] the split virtqueue · [`request`] what a request asks for ·
//! [`queue`] requests at work · [`inflight`] the log that outlives the process · [`engine`] I/O ·
//! [`disk`], [`opener`], [`image`] disks and images · [`remote`] remote disks · [`migrate`] migration to another image ·
//! [`control`], [`throttle`] what may be changed at run time · [`device`] features and configuration space ·
//! [`reactor`] the thread · [`stats`], [`histogram`] counters and latencies · [`clock`] time

// Nothing that a guest, a file or a user says may end the daemon: no panicking construct outside of tests.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::indexing_slicing,
        clippy::string_slice
    )
)]

pub mod affinity;
pub mod buffers;
pub mod chain;
pub mod clock;
pub mod control;
pub mod device;
pub mod disk;
pub mod engine;
pub mod error;
pub mod histogram;
pub mod image;
pub mod inflight;
pub mod memory;
pub mod migrate;
pub mod opener;
pub mod queue;
pub mod reactor;
pub mod remote;
pub mod request;
pub mod ring;
pub mod stats;
pub mod steps;
pub mod throttle;
pub mod trace;
pub mod virtio;

#[cfg(test)]
mod tests;

pub use control::{Control, OnError};
pub use device::{CONFIG_LEN, DEVICE_ID, QUEUE_SIZE_MAX, config, features};
pub use disk::{Disk, DiskConfig, EngineKind, Format, HostCache, OpenContext, OpenOptions};
pub use error::DiskError;
pub use image::mapped::SYS_CACHESTAT;
pub use image::synthetic::Synthetic;
pub use inflight::{InflightArea, InflightError};
pub use memory::{GuestRam, MemoryError};
pub use opener::{LocalOpener, Opener};
pub use queue::{Queue, QueueFault, QueueSetup, SetupError};
pub use reactor::{Bell, Callback, Commands, QueueId, Reactor, ReactorHandle, ReactorOptions, ReadWidth};
pub use ring::{RingAddresses, RingError};
pub use stats::{QueueSnapshot, QueueStats};
pub use throttle::{Rate, RateLimits};
