//! The front-end: disks that another process serves over vhost-user.
//!
//! [`disk`] finds such a disk and starts an engine for it. [`connect`] negotiates with a server and learns
//! what its disk is; [`link`] keeps it connected for the engine ([`engine`]); [`blocking`] uses it without an
//! engine. [`ring`] is a virtqueue in memory shared with the server ([`shared`]). Requests name guest RAM,
//! which is shared, too, so the server transfers the data itself. The rings are ours and not the guest's: a
//! server that dies takes no state with it, and one that corrupts a ring corrupts only ours.

mod blocking;
pub mod channel;
pub mod connect;
mod disk;
mod endpoint;
mod engine;
pub(crate) mod kick;
mod known;
mod link;
pub(crate) mod log_limit;
mod request;
pub mod ring;
pub mod shared;
mod state;

pub use connect::{ConnectFn, Connection, DiskInfo, FrontError};
pub use disk::Driver;
pub use kick::reserve as reserve_rings;
pub use ring::{DriverRing, Request, RingFault, UsedRequest};
pub use shared::SharedRings;
