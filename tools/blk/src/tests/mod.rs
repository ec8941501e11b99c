//! The crate's tests: a driver that writes rings by hand ([`rig`]), one played by `virtio-drivers`, and the
//! engines.
//!
//! Each test names the statement of the virtio checklist (numbers) or the item of the torture list (letters)
//! that it shows.

mod allocations;
mod busy_poll;
mod cache;
mod coalescing;
mod crash;
mod data;
mod drivers;
mod durable;
mod engines;
mod faults;
mod hostile;
mod images;
mod limits;
mod mapped;
mod merging;
mod migrate;

mod neighbours;
mod notify;
mod qcow2;
mod qcow2_matrix;
pub mod qcow2_power;
mod ranges;
pub(crate) mod rig;
mod service;
mod sigkill;
mod speed;
mod stop;
mod subsets;
