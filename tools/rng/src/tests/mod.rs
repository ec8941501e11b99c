//! The device against drivers: well-behaved, hostile, and across kills of the daemon.

mod crash;
mod drivers;
mod hostile;
mod requests;
mod rig;
