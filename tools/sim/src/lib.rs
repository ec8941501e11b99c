//! Deterministic simulation: a guest, EL2's transport and ring, the daemon's device and a disk in one
//! process, under a scheduler whose every decision comes from a seed. Real code: the guest's queue
//! (`virtio-drivers`), [`ringvisor::virtio::Transport`], [`ringvisor::ring`], `ringd`'s
//! [`ringd::io::served::ServedDevice`], `ringblk`'s requests, `ringvirtio`'s queues and in-flight log.
//! Simulated: traps, the reactor's thread and its sleep ([`daemon`]), the file ([`disk`]). Faults are drawn
//! from a [`Profile`]. A [`model`] of the disk checks each completion, and each sector after a power cut.
//!
//! A seed gives the same events in every run of the same code: [`Report::hash`] is over all of them.
//! `docs/torture.md` says what has been shown with it.
//!
//! # Map
//! [`guest`] the driver and its requests · [`transport`] its registers · [`world`] the scheduler · [`el2`],
//! [`daemon`], [`disk`] the device side · [`entropy`] an entropy device · [`net`], [`tap`] a network device ·
//! [`console`] a console ·
//! [`fuzz`] fuzz targets · [`memory`] RAM · [`model`] · [`options`] · [`rng`], [`trace`]

// A panic is a failed run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod console;
pub mod daemon;
pub mod disk;
pub mod el2;
pub mod entropy;
pub mod fuzz;
mod fuzz_flash;
mod fuzz_input;
mod fuzz_net;
pub mod guest;
pub mod memory;
pub mod model;
#[allow(
    missing_docs,
    dead_code,
    reason = "shared with the transport's tests, which use all of it"
)]
#[path = "../../../tests/transport/model.rs"]
mod model_of_registers;
pub mod net;
pub mod options;
pub mod rng;
pub mod tap;
pub mod trace;
pub mod transport;
pub mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use options::{Profile, Sabotage};
pub use world::{Counts, Kind};

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Seed of the run.
    pub seed: u64,
    /// Hash over all events.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Statistics.
    pub counts: Counts,
    /// The steps at which daemons were killed.
    pub killed_at: BTreeSet<String>,
    /// Why the run failed, if it did.
    pub failure: Option<String>,
}

/// Runs a seed with a disk. `print` writes every event to standard error.
pub fn run(seed: u64, sabotage: Sabotage, print: bool) -> Report {
    run_with(seed, Kind::Disk, sabotage, print)
}

/// Runs a seed with a device of this kind.
#[must_use]
pub fn run_with(seed: u64, kind: Kind, sabotage: Sabotage, print: bool) -> Report {
    let model = model::Model::new(world::SECTORS);
    let world = world::World::new(seed, kind, sabotage, model.image(), print);
    let ended = catch_unwind(AssertUnwindSafe(|| match kind {
        Kind::Disk => guest::Guest::new(world.clone(), model).run(),
        Kind::Entropy => entropy::Guest::new(world.clone()).run(),
        Kind::Net => net::Guest::new(world.clone()).run(),
        Kind::Console => console::Guest::new(world.clone()).run(),
    }));
    let mut world = world.borrow_mut();
    if ended.is_err() {
        world.fail("something panicked");
    }
    Report {
        seed,
        hash: world.trace.hash(),
        events: world.trace.events,
        counts: world.counts,
        killed_at: std::mem::take(&mut world.killed_at),
        failure: world.failure.clone(),
    }
}
