//! Network devices (virtio 1.2, 5.1), by [`ringnet`]: a guest's `eth0` and those after it.
//!
//! [`config`] what users write · [`open`] a device with its port, which another process opens and keeps ·
//! [`served`] one that a vhost-user server serves · [`backend`] the device as the reactor's side uses it ·
//! [`change`] what may change while a zone runs · [`stats`], [`report`], [`top`] its counters ·
//! [`cli`] `ringctl net`

pub mod backend;
pub mod change;
pub mod cli;
pub mod config;
pub mod keys;
pub mod open;
pub mod opener;
pub mod report;
mod served;
pub mod stats;
pub mod top;
