//! [`ZoneContext`]: the zone that devices belong to, as far as their changes need it, and its record.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::MmapRegion;

use super::context::{Environment, Wake};
use super::view::View;
use super::{Config, Device, Error, Kind, State, inflight};
use crate::config::ZoneConfig;
use crate::hv::Refusal;
use crate::io::Io;

/// Where a zone's devices are kept for the next daemon.
pub trait Store {
    /// Saves them, entirely or not at all.
    ///
    /// # Errors
    /// They cannot be saved.
    fn save(&mut self, state: &State) -> Result<(), Error>;
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
    pub fn record(&self, store: &mut dyn Store, change: impl FnOnce(&mut State)) -> Result<(), Error> {
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
    pub fn discard_inflight(&self) -> Result<(), Error> {
        let discarded = inflight::discard(&self.records, &self.config.name);
        discarded.map_err(|error| self.unusable_inflight(&error))
    }

    /// Maps the file that outlives the daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn inflight(&self) -> Result<Arc<MmapRegion>, Error> {
        let mapped = inflight::map(&self.records, &self.config.name);
        mapped.map_err(|error| self.unusable_inflight(&error))
    }

    fn unusable_inflight(&self, error: &io::Error) -> Error {
        Error::Record {
            name: self.config.name.clone(),
            cause: format!(
                "{}: {error}",
                inflight::path(&self.records, &self.config.name).display()
            ),
        }
    }

    /// Returns an error about the device in a slot.
    #[must_use]
    pub fn unusable(&self, kind: Kind, slot: u8, cause: impl ToString) -> Error {
        Error::Unusable {
            name: self.config.name.clone(),
            kind,
            slot,
            cause: cause.to_string(),
        }
    }

    /// Returns an error of EL2.
    #[must_use]
    pub fn refused(&self, cause: Refusal) -> Error {
        Error::Refused {
            name: self.config.name.clone(),
            cause,
        }
    }

    /// Returns what each slot holds.
    #[must_use]
    pub fn slots(&self) -> Vec<Config> {
        self.view.state().slots(&self.config.devices)
    }

    /// Returns the device in a slot, if it is served.
    #[must_use]
    pub fn device(&self, slot: u8) -> Option<Device> {
        self.io.device(self.number?, slot)
    }

    /// Replaces the device in a slot, if it is served: what is in flight completes on the old one.
    ///
    /// # Errors
    /// EL2 refused to show the new one's configuration space.
    pub fn exchange(&self, slot: u8, device: Device) -> Result<(), Error> {
        let Some(number) = self.number else {
            return Ok(());
        };
        let shown = self.io.exchange(number, slot, device);
        shown.map_err(|cause| self.refused(cause))
    }

    /// Shows the guest what may have changed in a device's configuration space.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn show_config(&self, slot: u8) -> Result<(), Error> {
        let shown = self
            .number
            .map_or(Ok(()), |number| self.io.show_config(number, slot));
        shown.map_err(|cause| self.refused(cause))
    }
}
