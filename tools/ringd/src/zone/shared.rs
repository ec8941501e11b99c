//! [`Shared`]: a zone as all threads see it. What users see of it: [`Status`], [`Phase`], [`Ending`].

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::anyhow;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::config::ZoneConfig;
use crate::console::Console;
use crate::device::state::Counts;
use crate::device::{State, View};

/// A zone as all threads see it.
pub struct Shared {
    /// Its description at its start.
    pub config: Arc<ZoneConfig>,
    /// Its UART's console.
    pub console: Arc<Console>,
    /// Its other consoles: ports of its console device.
    pub ports: Vec<Arc<Console>>,
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
        Self::with_console(config, devices, Console::default())
    }

    /// As [`Self::with_devices`], with a console.
    pub(super) fn with_console(config: ZoneConfig, devices: State, console: Console) -> Arc<Self> {
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
        let ports = config.devices.console.iter();
        Arc::new(Self {
            ports: ports.map(|_| Arc::default()).collect(),
            config: Arc::new(config),
            console: Arc::new(console),
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
        self.close_consoles();
        true
    }

    /// Ends the output of all consoles.
    pub(super) fn close_consoles(&self) {
        self.console.close();
        self.ports.iter().for_each(|port| port.close());
    }

    /// Returns a console: the UART's, or that of a port.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn console_of(&self, port: Option<usize>) -> anyhow::Result<&Arc<Console>> {
        let Some(port) = port else {
            return Ok(&self.console);
        };
        self.ports.get(port).ok_or_else(|| {
            let (name, count) = (&self.config.name, self.ports.len());
            anyhow!("zone {name} has no console {port}: {count} are described by [[console]], counted from 0")
        })
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

/// The phase of a zone's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being set up.
    Created,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It crashed and is held for inspection.
    Crashed,
    /// It has ended and holds nothing.
    Stopped,
    /// It is being taken over from an earlier daemon: its guest runs, its devices wait.
    Recovering,
}

/// How a zone ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how", content = "detail")]
pub enum Ending {
    /// The guest powered off (PSCI SYSTEM_OFF).
    PoweredOff,
    /// The guest asked for a reset, and `on_reboot` says stop.
    Rebooted,
    /// A user stopped it.
    Stopped,
    /// The guest turned all its CPUs off.
    AllCpusOff,
    /// The guest crashed.
    Crashed(String),
    /// The daemon could not continue it.
    Failed(String),
}

impl Phase {
    /// Returns the phase's name, as users see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
            Self::Recovering => "recovering",
        }
    }
}

impl Ending {
    /// Whether the guest powered off, as a command that waits for it reports by its status.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::PoweredOff)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Rebooted => f.write_str("asked for a reset, and on_reboot is \"stop\""),
            Self::Stopped => f.write_str("was stopped"),
            Self::AllCpusOff => f.write_str("took all its CPUs off"),
            Self::Crashed(detail) => write!(f, "crashed: {detail}"),
            Self::Failed(detail) => write!(f, "failed: {detail}"),
        }
    }
}

/// A zone as `zone list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// EL2's number while it exists there.
    pub number: Option<u8>,
    /// The phase of its life.
    pub state: Phase,
    /// How it ended, if it did.
    pub ending: Option<Ending>,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Root's numbers of its CPUs.
    pub cpus: Vec<u32>,
    /// Bytes of RAM.
    pub memory: u64,
    /// Its devices by kind.
    #[serde(flatten)]
    pub devices: Counts,
    /// How often it was started again.
    pub restarts: u32,
}

impl Status {
    /// Returns the error that a command needs another phase.
    pub fn wrong_phase(&self, expected: &str) -> anyhow::Error {
        anyhow!("zone {} is {}, expected {expected}", self.name, self.state.name())
    }
}
