//! Zones: from a description to their end.
//!
//! Each zone has a thread, the [`actor`], which alone changes it: it takes what the zone needs
//! ([`resources`], [`cpus`]), fills its memory ([`load`], [`flash`]), has its devices changed
//! ([`crate::device`]), follows EL2's events, and gives everything back. The [`registry`] has the zones by
//! name and passes on what users ask for. [`record`] is what a zone leaves on disk for the next daemon,
//! [`ended`] what is left of one that has ended; [`shared`] and [`observe`] are what all threads see.

pub mod actor;
mod cpus;
mod ended;
pub mod flash;
pub mod load;
pub mod observe;
pub mod record;
pub mod registry;
pub mod resources;
pub mod shared;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::Environment;
use crate::host::Host;
use crate::hv::Hypervisor;
use crate::io::Io;
pub use shared::{Ending, Phase, Shared, Status};

/// What all zones share.
pub struct Context {
    /// EL2.
    pub hv: Arc<dyn Hypervisor>,
    /// Root Linux.
    pub host: Arc<dyn Host>,
    /// The reactor.
    pub io: Arc<Io>,
    /// What devices are opened with.
    pub environment: Environment,
    /// Directory of the records.
    pub records: PathBuf,
    /// MPIDRs of the CPUs that zones have or are about to have. Held while CPUs are chosen and taken offline.
    /// Outermost lock.
    pub cpus: Mutex<BTreeSet<u64>>,
}

impl Context {
    /// Returns EL2, with one function per operation.
    pub fn el2(&self) -> &dyn Hypervisor {
        &*self.hv
    }
}
