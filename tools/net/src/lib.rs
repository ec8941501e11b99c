//! The virtio network device (virtio 1.2, 5.1): a guest's Ethernet card, with a tap device of the host or a
//! stream socket behind it.
//!
//! Packets go straight between guest RAM and the port, with the headers of virtio, so that checksums and
//! segmentation are left to the last one that has a packet. The device works with any subset of its features:
//! several pairs of queues, mergeable receive buffers, offloads, receive filters, announcements.
//!
//! # How a daemon uses it
//! ```
//! # use std::sync::Arc;
//! # use ringnet::{MacAddress, Net, NetConfig, Port, Tap};
//! # use ringvirtio::{QueueSetup, ReactorHandle, SetupError};
//! fn open(name: &str) -> std::io::Result<Arc<Net>> {
//!     let tap = Arc::new(Tap::new(ringnet::tap::open(name, 1)?)?);
//!     let config = NetConfig {
//!         name: "eth0".into(),
//!         mac: MacAddress::derived(&["machine", "zone", "0"]),
//!         mtu: 1500,
//!         pairs: 1,
//!     };
//!     let net = Net::new(config, tap.offloads(), None);
//!     net.attach(tap).map_err(std::io::Error::other)?;
//!     Ok(net)
//! }
//!
//! /// Per queue, when the driver is ready; the transport offers `net.features()`.
//! fn serve(
//!     net: &Arc<Net>,
//!     number: u16,
//!     handle: &ReactorHandle,
//!     setup: QueueSetup,
//! ) -> Result<(), SetupError> {
//!     let (queue, _counters) = net.queue(number, setup)?;
//!     handle.add(queue);
//!     Ok(())
//! }
//! ```
//!
//! # Kills
//! What is behind the port and the guest's memory outlive a daemon. Packets from the driver are sent in
//! order, the first one of a new daemon twice at most. Packets to the driver that were not published are lost
//! as on a wire, and their buffers are used for the next ones; no packet is published in part. What the
//! driver has set by commands is in [`state`]; the tables of its filter are not, so a new daemon lets all
//! packets pass.
//!
//! # Map
//! [`config`], [`mac`], [`offloads`] what a driver sees · [`device`] the device, [`state`] what outlives a
//! daemon · [`filter`] which packets the driver wants · [`port`] taps and stream sockets · [`queue`] the
//! queues · [`stats`] counters

pub mod config;
pub mod device;
pub mod filter;
pub mod mac;
pub mod offloads;
pub mod port;
pub mod queue;
pub mod state;
pub mod stats;
pub mod virtio;

#[cfg(test)]
mod tests;

pub use config::{DEVICE_ID, NetConfig, QUEUE_SIZE_MAX};
pub use device::{AttachError, MadeQueue, Net, QueueServer};
pub use mac::{MacAddress, MacError};
pub use offloads::Offloads;
pub use port::Port;
pub use port::stream::Stream;
pub use port::tap::{self, Tap};
pub use state::SavedState;
pub use stats::{NetSnapshot, NetStats};
