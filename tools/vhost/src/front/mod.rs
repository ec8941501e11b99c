//! The driver's side: disks that another process serves over vhost-user.
//!
//! [`connect`] says hello to a server and learns what its disk is; [`ring`] is a virtqueue of ours in memory that is
//! shared with it ([`shared`]). Requests name guest RAM, which is shared too, so the server moves the data itself. The
//! rings are ours and not the guest's: a server that dies takes nothing with it that is not known here, and one that
//! writes nonsense writes it to us.

mod blocking;
pub mod connect;
mod engine;
mod kick;
mod link;
pub mod notices;
pub mod ring;
pub mod shared;

pub use connect::{Connection, FrontError, Shape};
pub use engine::Driver;
pub use link::Reach;
pub use ring::{Done, DriverRing, Nonsense, Request};
pub use shared::SharedRings;
