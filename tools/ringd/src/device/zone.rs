//! [`ZoneContext`]: the zone that devices belong to, as far as their changes need it, and its record.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::MmapRegion;

use super::context::{Environment, Wake};
use super::view::View;
use super::{Config, Device, State, inflight};
use crate::config::ZoneConfig;
use crate::console::Console;
use crate::io::Io;
use crate::regular;

/// Where a zone's devices are kept for the next daemon.
pub trait Store {
    /// Saves them, entirely or not at all.
    ///
    /// # Errors
    /// They cannot be saved.
    fn save(&mut self, state: &State) -> anyhow::Result<()>;
}

/// The zone that devices belong to, as far as they need it.
pub struct ZoneContext {
    /// Its description.
    pub config: Arc<ZoneConfig>,
    /// What client threads read of its devices.
    pub view: Arc<View>,
    /// What devices are opened with.
    pub environment: Environment,
    /// The reactor.
    pub io: Arc<Io>,
    /// Directory of the records.
    pub records: PathBuf,
    /// Its UART's console.
    pub uart: Arc<Console>,
    /// Its other consoles.
    pub consoles: Vec<Arc<Console>>,
    /// EL2's number, once the reactor serves it.
    pub number: Option<u8>,
    /// Wakes the zone's thread, once there is one.
    pub wake: Option<Wake>,
}

impl ZoneContext {
    /// Changes what is in the slots, in the zone's record and for client threads.
    ///
    /// # Errors
    /// The record cannot be written; nothing has changed.
    pub fn record(&self, store: &mut dyn Store, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let mut state = self.view.state();
        change(&mut state);
        store.save(&state)?;
        self.view.set_state(state);
        Ok(())
    }

    /// Removes the file that an earlier zone of this name may have left for the next daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn discard_inflight(&self) -> anyhow::Result<()> {
        let discarded = regular::remove(&inflight::path(&self.records, &self.config.name));
        discarded.map_err(|error| self.unusable_inflight(&error))
    }

    /// Maps the file that outlives the daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn inflight(&self) -> anyhow::Result<Arc<MmapRegion>> {
        let mapped = inflight::map(&self.records, &self.config.name);
        mapped.map_err(|error| self.unusable_inflight(&error))
    }

    fn unusable_inflight(&self, error: &io::Error) -> anyhow::Error {
        let path = inflight::path(&self.records, &self.config.name);
        self.config
            .failed(format!("its record: {}: {error}", path.display()))
    }

    /// Returns what each slot holds.
    pub fn slots(&self) -> Vec<Config> {
        self.view.state().slots(&self.config.devices)
    }

    /// Returns the device in a slot, if it is served.
    pub fn device(&self, slot: u8) -> Option<Device> {
        self.io.device(self.number?, slot)
    }

    /// Replaces the device in a slot, if it is served: what is in flight completes on the old one.
    ///
    /// # Errors
    /// EL2 refused to show the new one's configuration space.
    pub fn exchange(&self, slot: u8, device: Device) -> anyhow::Result<()> {
        let Some(number) = self.number else {
            return Ok(());
        };
        let shown = self.io.exchange(number, slot, device);
        shown.map_err(|cause| self.config.failed(cause))
    }

    /// Shows the guest what may have changed in a device's configuration space.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn show_config(&self, slot: u8) -> anyhow::Result<()> {
        let shown = self
            .number
            .map_or(Ok(()), |number| self.io.show_config(number, slot));
        shown.map_err(|cause| self.config.failed(cause))
    }
}
