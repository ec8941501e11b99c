//! Consoles (virtio 1.2, 5.3), by [`ringconsole`]: a guest's `hvc0` and those after it, ports of one device.
//!
//! [`config`] what users write · [`opener`] what keeps ptys and sockets · [`backend`] the device as the
//! reactor's side uses it · [`carrier`] the threads between a console and its pty or socket · [`log`] log
//! files, for the PL011 as well · [`stats`] counters

pub mod backend;
pub mod carrier;
pub mod config;
pub mod log;
pub mod opener;
pub mod stats;
