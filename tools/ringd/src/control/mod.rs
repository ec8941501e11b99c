//! How `ringctl` talks to the daemon: JSON lines over a Unix socket.
//!
//! [`protocol`] has the requests and replies, [`server`] is the daemon's side, [`client`] the command's.

pub mod client;
pub mod protocol;
pub mod server;
