//! [`Devices`]: the devices of one zone, on the zone's thread: open or take over, change, close.

use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::MmapRegion;

use super::disk::drives::Drives;
use super::view::View;
use super::{Change, Config, Device, Environment, Error, Kind, State, disk, inflight, rng};
use crate::config::ZoneConfig;
use crate::hv::Refusal;
use crate::io::Io;

/// Makes the zone's thread call [`Devices::poll`].
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Where a zone's devices are kept for the next daemon.
pub trait Store {
    /// Saves them, entirely or not at all.
    ///
    /// # Errors
    /// They cannot be saved.
    fn save(&mut self, state: &State) -> Result<(), Error>;
}

/// What is known of devices that an earlier daemon served.
pub struct TakeOver<'a> {
    /// Shows users what is waited for.
    pub say: &'a dyn Fn(&str),
    /// Returns the configuration space that the guest was shown of the device in a slot.
    pub shown: &'a dyn Fn(u8) -> Option<[u8; 256]>,
}

/// The zone that devices belong to, as far as they need it.
pub struct Zone {
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

impl Zone {
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

    /// Maps the file that outlives the daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn inflight(&self) -> Result<Arc<MmapRegion>, Error> {
        inflight::map(&self.records, &self.config.name).map_err(|error| Error::Record {
            name: self.config.name.clone(),
            cause: format!(
                "{}: {error}",
                inflight::path(&self.records, &self.config.name).display()
            ),
        })
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
        let shown = self.io.exchange(number, slot, device.clone());
        self.watch(slot, &device);
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

    /// Has the zone's thread woken and the guest notified when the device does something by itself.
    pub fn watch(&self, slot: u8, device: &Device) {
        match device {
            Device::Disk(disk) => disk::resume::watch(self, slot, disk),
            Device::Rng(_) => {}
        }
    }
}

/// The devices of a zone.
pub struct Devices {
    zone: Zone,
}

impl Devices {
    /// Returns the devices of a zone, none of them open.
    #[must_use]
    pub const fn new(zone: Zone) -> Self {
        Self { zone }
    }

    /// Opens the devices of all slots; with `last`, as an earlier daemon left them.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn open(&self, store: &mut dyn Store, last: Option<&TakeOver<'_>>) -> Result<Vec<Device>, Error> {
        let mut devices = Vec::new();
        for (slot, config) in (0_u8..).zip(self.zone.slots()) {
            devices.push(match config {
                Config::Disk(disk) => Device::Disk(disk::open::drive(
                    &self.zone.environment.disk,
                    &self.zone.config,
                    slot,
                    disk.as_ref(),
                    last,
                )?),
                Config::Rng(config) => Device::Rng(rng::backend::open(&config)),
            });
        }
        if let Some(last) = last {
            self.drives(store).take_over_migrations(&mut devices, last)?;
        }
        Ok(devices)
    }

    /// The reactor serves the zone with this number from now on, with these devices.
    ///
    /// # Errors
    /// EL2 refused to show what changed while there was no daemon.
    pub fn served(&mut self, number: u8, devices: &[Device], takeover: bool) -> Result<(), Error> {
        self.zone.number = Some(number);
        for (slot, device) in (0_u8..).zip(devices) {
            self.zone.watch(slot, device);
            if takeover && device.may_change_unattended() {
                self.zone.show_config(slot)?;
            }
        }
        Ok(())
    }

    /// The zone has a thread from now on, which `wake` wakes.
    pub fn start(&mut self, wake: Wake) {
        self.zone.wake = Some(wake.clone());
        for slot in 0_u8..self.zone.slots().len().try_into().unwrap_or(u8::MAX) {
            if let Some(device) = self.zone.device(slot) {
                self.zone.watch(slot, &device);
            }
        }
        disk::migrate::start_threads(&self.zone);
        // For what the devices did before.
        wake();
    }

    /// Changes a device; returns its slot.
    ///
    /// # Errors
    /// It cannot be changed; nothing has changed.
    pub fn change(&self, store: &mut dyn Store, change: &Change) -> Result<u8, Error> {
        match change {
            Change::Disk(change) => self.drives(store).change(change),
        }
    }

    /// Does what the devices wait for: ends migrations that are done, closes the host devices of disks that
    /// have stopped.
    pub fn poll(&self, store: &mut dyn Store) {
        let mut drives = self.drives(store);
        drives.finish_migrations();
        drives.close_stopped();
    }

    /// The zone ends: nothing of its devices is used by other threads of the daemon afterwards.
    pub fn close(&mut self) {
        disk::migrate::abort(&self.zone);
        self.zone.number = None;
    }

    /// Maps the file that outlives the daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn inflight(&self) -> Result<Arc<MmapRegion>, Error> {
        self.zone.inflight()
    }

    fn drives<'a>(&'a self, store: &'a mut dyn Store) -> Drives<'a> {
        Drives {
            zone: &self.zone,
            store,
        }
    }
}
