//! Entropy devices (virtio 1.2, 5.4), by [`ringrng`]: random bytes for the guest's `/dev/hwrng`.
//!
//! [`config`] what users write · [`backend`] the device as the reactor's side uses it · [`stats`]
//! its counters

pub mod backend;
pub mod config;
pub mod stats;
