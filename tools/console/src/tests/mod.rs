//! The device against drivers: well-behaved, hostile, and across kills of the daemon.

mod control;
mod crash;
mod drivers;
mod hostile;
mod rig;
mod streams;
