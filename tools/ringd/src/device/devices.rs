//! [`Devices`]: the devices of one zone, on the zone's thread: open or take over, change, close.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use ringconsole::PortMemory;
use vm_memory::MmapRegion;

use super::console::carrier::{Carrier, Terminal};
use super::console::config::ConsoleConfig;
use super::console::log::{self, Log};
use super::console::opener::ConsoleRequest;
use super::context::{TakeOver, Wake};
use super::disk::drives::Drives;
use super::zone::{Store, ZoneContext};
use super::{Change, Config, Device, console, disk, inflight, net, rng};
use crate::console::Console;

/// The devices of a zone.
pub struct Devices {
    zone: ZoneContext,
    consoles: Mutex<Consoles>,
}

/// What consoles have at their other ends.
#[derive(Default)]
struct Consoles {
    /// Open, until the zone is served.
    terminals: Vec<Terminal>,
    logs: Vec<(String, Log)>,
    /// Threads that carry bytes.
    carriers: Vec<Carrier>,
}

impl Devices {
    /// Returns the devices of a zone, none of them open.
    pub fn new(zone: ZoneContext) -> Self {
        Self {
            zone,
            consoles: Mutex::default(),
        }
    }

    /// Opens the devices of all slots; with `last`, as an earlier daemon left them.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn open(&self, store: &mut dyn Store, last: Option<&TakeOver<'_>>) -> anyhow::Result<Vec<Device>> {
        let opened = self.open_all(store, last);
        if opened.is_err() && last.is_none() {
            self.close_ports();
            // It was made for what the drivers of network devices set.
            let path = inflight::path(&self.zone.records, &self.zone.config.name);
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    fn open_all(&self, store: &mut dyn Store, last: Option<&TakeOver<'_>>) -> anyhow::Result<Vec<Device>> {
        let mut devices = Vec::new();
        let (state, mut nets) = (self.zone.view.state(), 0);
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
                Config::Net(config) => {
                    let words = inflight::words(&self.zone.inflight()?);
                    let net = net::open::open(
                        &self.zone.environment.ports,
                        &self.zone.config,
                        slot,
                        nets,
                        &config,
                        state.nets.iter().find(|net| net.slot == slot),
                        words.map_err(|error| self.zone.config.failed(error))?,
                        last.is_some(),
                    )?;
                    nets += 1;
                    Device::Net(net)
                }
                Config::Console(configs) => Device::Console(self.open_consoles(&configs, last.is_some())?),
            });
        }
        if let Some(path) = &self.zone.config.devices.console_log {
            self.unless_running(
                self.open_log("console_log", path, inflight::UART, &self.zone.uart),
                last.is_some(),
            )?;
        }
        if let Some(last) = last {
            self.drives(store).take_over_migrations(&mut devices, last)?;
        }
        Ok(devices)
    }

    /// Returns what was opened, or an error unless the guest `runs`: it is not ended for a log or a terminal.
    fn unless_running<T>(&self, opened: anyhow::Result<T>, runs: bool) -> anyhow::Result<Option<T>> {
        match opened {
            Err(error) if runs => {
                let zone = &self.zone.config.name;
                tracing::error!(
                    zone,
                    error = format!("{error:#}"),
                    "the zone goes on without this"
                );
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Opens the console device, with the other ends of its consoles. `runs`: whether the guest runs already.
    fn open_consoles(
        &self,
        configs: &[ConsoleConfig],
        runs: bool,
    ) -> anyhow::Result<Arc<ringconsole::Console>> {
        let device = console::backend::open(&self.zone, configs.len(), &self.zone.inflight()?)?;
        let name = &self.zone.config.name;
        let consoles = self.zone.consoles.iter().zip(device.ports());
        for ((index, config), (output, port)) in configs.iter().enumerate().zip(consoles) {
            if let Some(path) = &config.log {
                let key = format!("console[{index}].log");
                self.unless_running(self.open_log(&key, path, index, output), runs)?;
            }
            let Some(end) = config.end.clone() else { continue };
            let request = ConsoleRequest {
                zone: name.clone(),
                index,
                end,
            };
            let opener = &self.zone.environment.consoles;
            let opened = Terminal::open(opener, request, output.clone(), port.clone());
            let terminal = opened.map_err(|error| {
                let (key, value) = config.shown();
                let key = format!("console[{index}].{key}");
                self.zone.config.unusable_value(&key, value, error)
            });
            let terminal = self.unless_running(terminal, runs)?;
            self.consoles.lock().terminals.extend(terminal);
        }
        Ok(device)
    }

    fn open_log(&self, key: &str, path: &Path, index: usize, output: &Arc<Console>) -> anyhow::Result<()> {
        let memory = PortMemory::in_mapping(&self.zone.inflight()?, inflight::console(index));
        let memory = memory.map_err(|error| self.zone.config.failed(error))?;
        let opener = self.zone.environment.opener();
        let log = log::open(
            opener,
            &self.zone.config,
            key,
            path,
            output.clone(),
            Arc::new(memory),
        )?;
        let name = format!("{}.{index}", self.zone.config.name);
        self.consoles.lock().logs.push((name, log));
        Ok(())
    }

    /// Starts the threads of consoles.
    fn start_consoles(&self) -> io::Result<()> {
        let mut consoles = self.consoles.lock();
        for (name, log) in std::mem::take(&mut consoles.logs) {
            log.start(&name)?;
        }
        for terminal in std::mem::take(&mut consoles.terminals) {
            let carrier = terminal.start()?;
            consoles.carriers.push(carrier);
        }
        Ok(())
    }

    /// The reactor serves the zone with this number from now on, with these devices.
    ///
    /// # Errors
    /// EL2 refused to show what changed while there was no daemon.
    pub fn served(&mut self, number: u8, devices: &[Device], takeover: bool) -> anyhow::Result<()> {
        self.zone.number = Some(number);
        for (slot, device) in (0_u8..).zip(devices) {
            watch(&self.zone, slot, device);
            if takeover && device.may_change_unattended() {
                self.zone.show_config(slot)?;
            }
        }
        self.start_consoles()
            .map_err(|cause| self.zone.config.failed(cause))
    }

    /// The zone has a thread from now on, which `wake` wakes.
    pub fn start(&mut self, wake: Wake) {
        self.zone.wake = Some(wake.clone());
        for slot in 0_u8..self.zone.slots().len().try_into().unwrap_or(u8::MAX) {
            if let Some(device) = self.zone.device(slot) {
                watch(&self.zone, slot, &device);
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
    pub fn change(&self, store: &mut dyn Store, change: &Change) -> anyhow::Result<u8> {
        match change {
            Change::Disk(change) => self.drives(store).change(change),
            Change::Net(change) => net::change::change(&self.zone, store, change),
        }
    }

    /// Does what the devices wait for: ends migrations that are done, closes the host devices of disks that
    /// have stopped, opens network ports anew that have failed.
    pub fn poll(&self, store: &mut dyn Store) {
        let mut drives = self.drives(store);
        drives.finish_migrations();
        drives.close_stopped();
        net::change::reopen(&self.zone);
    }

    /// The zone ends: nothing of its devices is used by other threads of the daemon afterwards.
    pub fn close(&mut self) {
        disk::migrate::abort(&self.zone);
        self.zone.number = None;
        self.consoles.lock().carriers.clear();
        self.zone
            .consoles
            .iter()
            .for_each(|console| console.close_input());
        self.close_ports();
    }

    /// What is behind the zone's network devices and consoles goes.
    fn close_ports(&self) {
        let name = &self.zone.config.name;
        let devices = &self.zone.config.devices;
        if !(devices.net.is_empty() && devices.console.is_empty())
            && let Err(error) = self.zone.environment.ports.close(name, None)
        {
            tracing::error!(zone = name, %error, "cannot close a zone's network ports, ptys and sockets");
        }
    }

    /// Removes the file that an earlier zone of this name may have left for the next daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn discard_inflight(&self) -> anyhow::Result<()> {
        self.zone.discard_inflight()
    }

    /// Maps the file that outlives the daemon.
    ///
    /// # Errors
    /// The system's.
    pub fn inflight(&self) -> anyhow::Result<Arc<MmapRegion>> {
        self.zone.inflight()
    }

    fn drives<'a>(&'a self, store: &'a mut dyn Store) -> Drives<'a> {
        Drives {
            zone: &self.zone,
            store,
        }
    }
}

/// Has the zone's thread woken and the guest notified when a device does something by itself.
fn watch(zone: &ZoneContext, slot: u8, device: &Device) {
    match device {
        Device::Disk(disk) => disk::watch::watch(zone, slot, disk),
        Device::Rng(_) => {}
        Device::Net(net) => net::backend::watch(zone, slot, net),
        Device::Console(device) => console::backend::watch(zone, slot, device),
    }
}
