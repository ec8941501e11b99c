//! vhost-user: block devices whose virtqueues are served by another process than the one that owns the
//! guest's memory.
//!
//! [`server`] is that other process for guests of QEMU or any other VMM, with ringblk's device behind it.
//! [`front`] is the opposite: the driver of a server somewhere else. Messages and their checks are the
//! `vhost` crate's; what is in shared memory is ringblk's and ours.

pub mod front;
pub mod server;
