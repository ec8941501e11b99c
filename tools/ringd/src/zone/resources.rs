//! [`Resources`]: what a zone holds of root and EL2, acquired in order and released in the opposite order.
//!
//! Acquisition stops at the first failure, and everything acquired so far is released. The record on disk
//! runs ahead of each step.

use std::fs::File;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ringvirtio::GuestRam;
use ringvisor::abi::command::CommandStatus;
use ringvisor::abi::machine::{FLASH_BASE, RAM_BASE};

use super::flash::{self, Flash};
use super::load::{self, BootFiles, Entry};
use super::record::{Journal, Record};
use super::shared::Shared;
use super::{Context, cpus};
use crate::config::size::format_size;
use crate::config::{ZoneConfig, quoted};
use crate::device::context::{TakeOver, Wake};
use crate::device::zone::ZoneContext;
use crate::device::{Change, Device, Devices};
use crate::host::ram::{self, Share};
use crate::host::{Ram, RamError};
use crate::io::served::{DeviceParts, ServedDevice};
use crate::io::table::Wakes;

/// What a zone holds.
pub struct Resources {
    context: Arc<Context>,
    shared: Arc<Shared>,
    journal: Journal,
    ram: Option<Ram>,
    flash: Option<Flash>,
    devices: Devices,
    /// Whether the reactor knows the zone.
    served: bool,
    /// MPIDRs of its CPUs, while this daemon acquires them.
    reserved: Vec<u64>,
}

impl Resources {
    /// Returns what is on a zone's record, nothing of it open: to be acquired, taken over, or released by
    /// [`Self::release`].
    pub fn new(context: &Arc<Context>, shared: &Arc<Shared>, record: Record) -> Self {
        let devices = Devices::new(ZoneContext {
            config: shared.config.clone(),
            view: shared.devices.clone(),
            environment: context.environment.clone(),
            io: context.io.clone(),
            records: context.records.clone(),
            uart: shared.console.clone(),
            consoles: shared.ports.clone(),
            number: None,
            wake: None,
        });
        Self {
            context: context.clone(),
            shared: shared.clone(),
            journal: Journal::new(context.records.clone(), record),
            ram: None,
            flash: None,
            devices,
            served: false,
            reserved: Vec::new(),
        }
    }

    /// Acquires everything that `shared.config` asks for; the zone does not run yet.
    ///
    /// # Errors
    /// The first failure; everything acquired before it has been released.
    pub fn acquire(
        context: &Arc<Context>,
        shared: &Arc<Shared>,
        changed: Wake,
    ) -> anyhow::Result<(Self, Entry)> {
        let mut resources = Self::new(context, shared, Record::new((*shared.config).clone()));
        // Files first: most mistakes are here, and nothing has been acquired yet.
        let files = load::open(context.environment.opener(), &shared.config)?;
        let deadline = Instant::now().checked_add(flash::LOCK_WAIT);
        let variables = flash::open_variables(context.environment.opener(), &shared.config, deadline)?;
        // Before devices are opened: they may keep the file mapped.
        resources.devices.discard_inflight()?;
        let devices = resources.devices.open(&mut resources.journal, None)?;
        // Nothing has been acquired so far, so that a user can give up on a file that is slow to open.
        if !shared.end_opening() {
            return Err(shared
                .config
                .failed("it was stopped while its files were being opened"));
        }
        match resources.acquire_all(&files, variables, &devices, changed) {
            Ok(entry) => Ok((resources, entry)),
            Err(error) => {
                resources.release();
                Err(error)
            }
        }
    }

    fn acquire_all(
        &mut self,
        files: &BootFiles,
        variables: Option<File>,
        devices: &[Device],
        changed: Wake,
    ) -> anyhow::Result<Entry> {
        let context = self.context.clone();
        let shared = self.shared.clone();
        let config = &shared.config;

        // Wrong CPUs are refused before memory is cleared, and it is cleared by all of root's CPUs.
        cpus::choose(&context, config)?;
        // From here on the next daemon releases what there is, should this one die.
        self.journal.update(|_| {})?;
        let ram = context
            .host
            .create_ram(&config.name, config.donated())
            .map_err(|cause| match cause {
                RamError::NoHugePages { .. } => {
                    config.unusable_value("memory", quoted(&format_size(config.memory)), cause)
                }
                cause => config.failed(cause),
            })?;
        let added = ram.added;
        self.journal.update(|record| record.added_pages = added)?;
        let (ram, flash) = split(config, ram)?;
        let ram = self.ram.insert(ram);
        let entry = load::fill(config, files, ram, Share::All)?;
        if let (Some(memory), BootFiles::Firmware(firmware)) = (&flash, files) {
            let loaded = flash::load(memory, firmware, variables.as_ref());
            loaded.map_err(|cause| config.unusable("firmware", &config.kernel, cause))?;
        }
        let mpidrs = cpus::acquire(&context, &shared, &mut self.journal, &mut self.reserved)?;

        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let number = context
            .el2()
            .zone_create(&config.name, &mpidrs, now)
            .map_err(|cause| config.unusable_value("cpus", &config.cpus, cause))?;
        self.journal.update(|record| record.number = Some(number))?;
        shared.update(|status| status.number = Some(number));
        let blocks = self.ram.as_ref().map(|ram| ram.blocks.as_slice());
        context
            .el2()
            .zone_donate(number, RAM_BASE, blocks.unwrap_or_default())
            .map_err(|cause| config.failed(cause))?;
        if let Some(memory) = flash {
            let donated = context.el2().zone_donate(number, FLASH_BASE, &memory.blocks);
            donated.map_err(|cause| config.failed(cause))?;
            self.serve_flash(memory, variables, number)?;
        }
        let vcpus = config.cpus.count();
        for (slot, (device, described)) in (0_u8..).zip(devices.iter().zip(config.devices.slots())) {
            let queues = u16::try_from(described.queues(vcpus)).unwrap_or(u16::MAX);
            let spec = device.describe(&described, queues);
            let added = context.el2().device_add(number, slot, &spec);
            added.map_err(|cause| config.failed(cause))?;
        }
        self.serve(number, devices, 1, changed, false)?;
        Ok(entry)
    }

    fn serve_flash(&mut self, memory: ram::Flash, variables: Option<File>, number: u8) -> anyhow::Result<()> {
        let flash = Flash::new(memory, variables, self.context.hv.clone(), number);
        let flash = flash.map_err(|cause| {
            let config = &self.shared.config;
            config.failed(format!("a thread for its flash: {cause}"))
        })?;
        self.flash = Some(flash);
        Ok(())
    }

    /// Makes the reactor serve the zone, which has been started `starts` times.
    fn serve(
        &mut self,
        number: u8,
        devices: &[Device],
        starts: u32,
        changed: Wake,
        takeover: bool,
    ) -> anyhow::Result<()> {
        let config = &self.shared.config;
        let Some(ram) = &self.ram else { return Ok(()) };
        let memory = GuestRam::new(ram.memory.clone());
        let memory = memory.map_err(|cause| config.failed(RamError::map(cause)))?;
        let log = self.devices.inflight()?;
        let mut served = Vec::new();
        // Queues as they were when the zone began: what is attached later has the drive's.
        for (slot, (device, described)) in (0_u8..).zip(devices.iter().zip(config.devices.slots())) {
            served.push(ServedDevice::new(DeviceParts {
                zone: number,
                slot,
                queues: described.queues(config.cpus.count()),
                device: device.clone(),
                ram: memory.clone(),
                log: log.clone(),
                starts,
            }));
        }
        let console = self.shared.console.clone();
        let flash = self.flash.as_ref().map(Flash::wake);
        self.context
            .io
            .add_zone(number, console, served, Wakes { changed, flash }, takeover)
            .map_err(|cause| config.failed(cause))?;
        // Readers that go on where they were with the last daemon find their place.
        if let Some(window) = self.context.hv.shared().window(number) {
            self.shared.console.pump(window);
        }
        self.devices.served(number, devices, takeover)?;
        self.shared.console.open_input(self.context.el2(), number);
        self.served = true;
        self.journal.update(|record| record.starts = starts)
    }

    /// Takes over what an earlier daemon left of a zone that EL2 still has.
    ///
    /// # Errors
    /// Something is missing; the zone stays as it is.
    pub fn take_over(
        context: &Arc<Context>,
        shared: &Arc<Shared>,
        record: Record,
        number: u8,
        changed: Wake,
        report_progress: &dyn Fn(&str),
    ) -> Result<Self, Box<(Self, anyhow::Error)>> {
        let config = &shared.config;
        let mut resources = Self::new(context, shared, record);
        let open = || -> anyhow::Result<()> {
            let opened = context.host.open_ram(&config.name, config.donated());
            let (ram, flash) = split(config, opened.map_err(|cause| config.failed(cause))?)?;
            resources.ram = Some(ram);
            if let Some(memory) = flash {
                // What the last daemon still writes has to end first, however long that takes.
                let variables = flash::open_variables(context.environment.opener(), config, None)?;
                resources.serve_flash(memory, variables, number)?;
            }
            tracing::debug!(zone = config.name, "RAM is mapped");
            let guest_config = |slot: u8| {
                let state = context.el2().device_state(number, slot);
                state.ok().map(|state| state.config)
            };
            let last = TakeOver {
                report_progress,
                guest_config: &guest_config,
            };
            let devices = resources.devices.open(&mut resources.journal, Some(&last))?;
            let starts = resources.journal.record().starts;
            resources.serve(number, &devices, starts, changed, true)
        };
        match open() {
            Ok(()) => Ok(resources),
            Err(error) => Err(Box::new((resources, error))),
        }
    }

    /// Returns EL2's number of the zone.
    pub fn number(&self) -> Option<u8> {
        self.journal.record().number
    }

    /// The zone has a thread from now on, which `wake` wakes.
    pub fn start_devices(&mut self, wake: Wake) {
        self.devices.start(wake);
    }

    /// Changes a device; returns its slot.
    ///
    /// # Errors
    /// It cannot be changed; nothing has changed.
    pub fn change_device(&mut self, change: &Change) -> anyhow::Result<u8> {
        self.devices.change(&mut self.journal, change)
    }

    /// Does what the devices wait for.
    pub fn poll_devices(&mut self) {
        self.devices.poll(&mut self.journal);
    }

    /// Loads the zone again after its guest has ended. No vCPU runs. What the files do not cover stays as the
    /// guest left it, as on a machine that is reset (and under QEMU): its kernel may look for what the last
    /// one wrote there.
    ///
    /// # Errors
    /// Kernel or initial RAM disk cannot be read.
    pub fn reload(&mut self, files: &BootFiles) -> anyhow::Result<Entry> {
        let config = self.shared.config.clone();
        if let Some(number) = self.number() {
            self.context.io.quiesce(number);
        }
        let Some(ram) = &self.ram else {
            return Err(config.failed(RamError::map("it is not mapped")));
        };
        let entry = load::fill(&config, files, ram, Share::Quarter)?;
        if let (Some(flash), BootFiles::Firmware(firmware)) = (&self.flash, files) {
            let loaded = flash.reload(firmware);
            loaded.map_err(|cause| config.unusable("firmware", &config.kernel, cause))?;
        }
        self.journal
            .update(|record| record.starts = record.starts.wrapping_add(1))?;
        if let Some(number) = self.number() {
            self.context.io.reopen(number, self.journal.record().starts);
        }
        Ok(entry)
    }

    /// Ends the service of the zone, after its last console output. No vCPU of it runs any more.
    pub fn close(&mut self) {
        self.devices.close();
        self.shared.console.close_input();
        if let (Some(number), true) = (self.number(), self.served) {
            self.context.io.quiesce(number);
            self.context.io.remove_zone(number);
            self.served = false;
        }
    }

    /// Releases everything. No vCPU of the zone runs any more. What cannot be released is logged; memory that
    /// EL2 keeps does not return to root.
    pub fn release(mut self) {
        let name = self.shared.config.name.clone();
        let mut el2_has_it = false;
        self.close();
        // The threads of consoles end.
        self.shared.close_consoles();
        if let Some(number) = self.number()
            && let Err(error) = self.context.el2().zone_destroy(number)
        {
            el2_has_it = !error.is(CommandStatus::NoSuchZone);
            if el2_has_it {
                tracing::error!(zone = name, %error, "EL2 keeps a zone: its CPUs and memory stay away from root");
            } else {
                tracing::warn!(zone = name, %error, "EL2 has no such zone any more");
            }
        }
        (self.ram, self.flash) = (None, None);
        if el2_has_it {
            return;
        }
        cpus::release(&self.context, self.journal.record(), &self.reserved);
        let added = self.journal.record().added_pages;
        if let Err(error) = self.context.host.remove_ram(&name, added) {
            tracing::error!(zone = name, %error, "cannot release a zone's memory");
        }
        self.journal.remove();
        self.shared
            .update(|status| (status.number, status.cpus) = (None, Vec::new()));
    }
}

/// Takes the memory of a zone's flash out of its RAM.
fn split(config: &ZoneConfig, ram: Ram) -> anyhow::Result<(Ram, Option<ram::Flash>)> {
    match config.flash_memory() {
        0 => Ok((ram, None)),
        bytes => {
            let (ram, flash) = ram.split_flash(bytes).map_err(|cause| config.failed(cause))?;
            Ok((ram, Some(flash)))
        }
    }
}
