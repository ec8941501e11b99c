//! The device against drivers: well-behaved, hostile, and across kills of the daemon.

mod commands;
mod crash;
mod drivers;
mod hostile;
mod link;
mod packets;
mod ports;
mod rig;
