//! The device side of virtio: guest memory, split virtqueues, the in-flight log and the reactor that drives
//! them.
//!
//! Knows no device. A device is a package of its own that implements [`QueueHandler`] on top of a
//! [`VirtQueue`], and [`ReactorBackend`] if it has I/O of its own. Nothing here knows of EL2 either: the
//! daemon in root Linux uses it with guest RAM in huge pages and `/dev/uioN` as the event source; tests use
//! anonymous memory and an `eventfd`.
//!
//! # How a device is made
//! A type for its queues owns a [`VirtQueue`] and whatever a request needs, and implements [`QueueHandler`]:
//! `service` pops a round of heads and starts their requests, `complete` handles what was submitted under the
//! queue's tags. I/O of its own (thread pools, engines) is a [`ReactorBackend`], of which a reactor makes one
//! per kind; operations of the reactor's io_uring need none ([`waiter::uring::Uring::push`]). `tests/echo.rs`
//! has the smallest one.
//!
//! # Map
//! [`memory`], [`buffers`] guest RAM · [`ring`], [`chain`] the split virtqueue in it · [`queue`] its device
//! side · [`inflight`] the log that outlives the process · [`handler`] what a device implements · [`poll`]
//! polls of descriptors · [`waiter`] io_uring and epoll · [`reactor`] the thread · [`throttle`] rate limits ·
//! [`stats`], [`histogram`] counters and latencies · [`trace`] a record of each step · [`steps`] crash points
//! · [`clock`], [`affinity`] time and CPUs · `fake` a guest with drivers, for tests

pub mod affinity;
pub mod buffers;
pub mod chain;
pub mod clock;
#[cfg(feature = "fakes")]
pub mod fake;
pub mod handler;
pub mod histogram;
pub mod inflight;
pub mod memory;
pub mod poll;
pub mod queue;
pub mod reactor;
pub mod ring;
pub mod sabotage;
pub mod stats;
pub mod steps;
pub mod throttle;
pub mod trace;
pub mod virtio;
pub mod waiter;

pub use handler::{Completion, Context, QueueHandler, ReactorBackend};
pub use inflight::{InflightArea, InflightError};
pub use memory::{GuestRam, MemoryError};
pub use poll::{PollState, Polls};
pub use queue::{QueueFault, QueueSetup, SetupError, VirtQueue};
pub use reactor::{Callback, Commands, EventSource, QueueId, Reactor, ReactorHandle, ReactorOptions};
pub use ring::{RingAddresses, RingError};
pub use stats::{QueueSnapshot, QueueStats};
pub use throttle::{Rate, RateLimits};
pub use waiter::{ReadWidth, Waiter};
