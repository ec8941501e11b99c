//! [`Shared`]: a zone as all threads see it.

use std::sync::Arc;
use std::sync::mpsc::Sender;

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
    opening: Mutex<Opening>,
}

/// Whether the start of a zone can still be given up.
enum Opening {
    /// Not now.
    No,
    /// Its files are being opened; the way to wake the thread that waits for that.
    Yes(Sender<()>),
    /// It was given up.
    Cancelled,
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
            opening: Mutex::new(Opening::No),
        })
    }

    /// The zone with this number is being taken over.
    pub(super) fn recover(&self, number: u8) {
        self.update(|status| (status.state, status.number) = (Phase::Recovering, Some(number)));
    }

    /// The zone's files are being opened. Until [`Self::end_opening`], [`Self::cancel`] sends to `wake`.
    pub(super) fn begin_opening(&self, wake: Sender<()>) {
        *self.opening.lock() = Opening::Yes(wake);
    }

    /// All files are open. Returns whether the start goes on: it was not cancelled.
    pub(super) fn end_opening(&self) -> bool {
        let mut opening = self.opening.lock();
        if matches!(*opening, Opening::Cancelled) {
            return false;
        }
        *opening = Opening::No;
        true
    }

    /// Gives up the start of the zone, which has acquired nothing yet. Returns whether that is so.
    pub(super) fn cancel(&self) -> bool {
        let mut opening = self.opening.lock();
        let Opening::Yes(wake) = &*opening else {
            return false;
        };
        // If the thread is gone, there is nothing to wake.
        let _ = wake.send(());
        *opening = Opening::Cancelled;
        drop(opening);
        self.update(|status| (status.state, status.ending) = (Phase::Stopped, Some(Ending::Stopped)));
        self.console.close();
        true
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
