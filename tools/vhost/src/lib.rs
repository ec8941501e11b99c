//! vhost-user: devices whose virtqueues are served by another process than the one that owns the guest's
//! memory.
//!
//! [`server`] is that other process for guests of QEMU or any other VMM. Two opposites are the front ends of
//! a server somewhere else: [`mod@device`] hands the driver's own rings to it, whatever the device; [`front`]
//! drives a disk's server by rings of ours, so that the disk can be replaced, copied and limited by the
//! daemon.

pub mod device;
pub mod front;
pub mod server;
