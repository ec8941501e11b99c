//! [`Shared`]: a zone as all threads see it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::status::{Ending, Phase, Status};
use crate::config::ZoneConfig;
use crate::console::Console;
use crate::device::{State, View};

/// A zone as all threads see it.
pub struct Shared {
    /// Its description at its start.
    pub config: Arc<ZoneConfig>,
    /// Its console.
    pub console: Arc<Console>,
    /// Its devices.
    pub devices: Arc<View>,
    status: Mutex<Status>,
    changed: Condvar,
}

impl Shared {
    /// Returns a zone that is being set up.
    pub fn new(config: ZoneConfig) -> Arc<Self> {
        let devices = State::new(&config.devices);
        Self::with_devices(config, devices)
    }

    /// Returns a zone with these devices, which may have changed since its start.
    pub fn with_devices(config: ZoneConfig, devices: State) -> Arc<Self> {
        let status = Status {
            name: config.name.clone(),
            number: None,
            state: Phase::Created,
            ending: None,
            vcpus: config.cpus.count(),
            cpus: Vec::new(),
            memory: config.memory,
            devices: devices.counts(),
            restarts: 0,
        };
        Arc::new(Self {
            config: Arc::new(config),
            console: Arc::default(),
            devices: Arc::new(View::new(devices)),
            status: Mutex::new(status),
            changed: Condvar::new(),
        })
    }

    /// The zone with this number is being taken over.
    pub(super) fn recover(&self, number: u8) {
        self.update(|status| (status.state, status.number) = (Phase::Recovering, Some(number)));
    }

    /// Returns its status.
    pub fn status(&self) -> Status {
        let devices = self.devices.state().counts();
        Status {
            devices,
            ..self.status.lock().clone()
        }
    }

    /// Changes its status and wakes the threads that wait.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock());
        self.changed.notify_all();
    }

    /// Waits for its end.
    pub fn wait(&self) -> Ending {
        let mut status = self.status.lock();
        loop {
            if let (Phase::Stopped, Some(ending)) = (status.state, &status.ending) {
                return ending.clone();
            }
            self.changed.wait(&mut status);
        }
    }
}
