//! [`Held`]: what a zone holds of root and EL2, taken in order and given back in the opposite order.
//!
//! Taking stops at the first thing that cannot be had, and what was taken so far is given back: nothing is left half
//! started. The record on disk runs ahead of each step.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringblk::Disk;
use ringvirtio::GuestRam;
use ringvisor::abi::machine::RAM_BASE;

use super::disks::{self, DISK_WAIT, TakeOver, Wait};
use super::load::{self, Entry, Images};
use super::moves::Poke;
use super::record::{self, Move, Record, RecordError};
use super::{Context, Shared, ZoneError};
use crate::config::{DiskConfig, ZoneConfig, quoted, size::format_size};
use crate::host::{Cpu, Ram, RamError, cpus};
use crate::io::device::{DeviceIo, DeviceParts};

/// What a zone holds.
pub struct Held {
    pub(super) context: Arc<Context>,
    pub(super) shared: Arc<Shared>,
    record: Record,
    ram: Option<Ram>,
    /// Whether the reactor knows the zone.
    served: bool,
    /// How the zone's thread is told of moves and of disks that stop, once there is one.
    pub(super) poke: Option<Poke>,
}

impl Held {
    /// Takes everything that `shared.config` asks for, up to devices; the zone does not run yet.
    ///
    /// # Errors
    /// The first thing that cannot be had; all else has been given back.
    pub fn take(
        context: &Arc<Context>,
        shared: &Arc<Shared>,
        changed: crate::io::ZoneEvent,
    ) -> Result<(Self, Entry), ZoneError> {
        let config = &shared.config;
        // Files first: most mistakes are here, and nothing has been taken yet.
        let images = load::open(&*context.images.opener, config)?;
        let disks = disks::open_all(&context.images, config, &shared.disks(), &Wait::For(DISK_WAIT))?;
        let mut held = Self {
            context: context.clone(),
            shared: shared.clone(),
            record: Record::new(config.clone()),
            ram: None,
            served: false,
            poke: None,
        };
        match held.take_all(&images, &disks, changed) {
            Ok(entry) => Ok((held, entry)),
            Err(error) => {
                held.release();
                Err(error)
            }
        }
    }

    fn take_all(
        &mut self,
        images: &Images,
        disks: &[Arc<Disk>],
        changed: crate::io::ZoneEvent,
    ) -> Result<Entry, ZoneError> {
        let context = self.context.clone();
        let shared = self.shared.clone();
        let config = &shared.config;
        let refused = |cause| ZoneError::Refused {
            name: config.name.clone(),
            cause,
        };

        // Wrong ones are told before memory is cleared, and it is cleared by all of root's CPUs.
        self.choose_cpus()?;
        // From here on the next daemon gives back what there is, should this one not live to say more.
        self.record
            .save(&context.records)
            .map_err(|error| record_failed(config, error))?;
        let ram = context
            .host
            .create_ram(&config.name, config.memory)
            .map_err(|cause| match cause {
                RamError::NoHugePages { .. } => config
                    .unusable_value("memory", quoted(&format_size(config.memory)), cause)
                    .into(),
                cause => ZoneError::Ram {
                    name: config.name.clone(),
                    cause,
                },
            })?;
        self.record.added_pages = ram.added;
        let ram = self.ram.insert(ram);
        self.record
            .save(&context.records)
            .map_err(|error| record_failed(config, error))?;
        let entry = load::fill(config, images, ram)?;
        let mpidrs = self.take_cpus()?;

        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let number = context
            .el2()
            .zone_create(&config.name, &mpidrs, now)
            .map_err(|cause| ZoneError::Config(config.unusable_value("cpus", &config.cpus, cause)))?;
        self.record.number = Some(number);
        self.record
            .save(&context.records)
            .map_err(|error| record_failed(config, error))?;
        shared.update(|status| status.number = Some(number));
        let blocks = self
            .ram
            .as_ref()
            .map(|ram| ram.blocks.as_slice())
            .unwrap_or_default();
        context
            .el2()
            .zone_donate(number, RAM_BASE, blocks)
            .map_err(refused)?;
        let wanted = shared.disks();
        for (slot, (disk, wanted)) in (0_u8..).zip(disks.iter().zip(&wanted)) {
            let wanted = wanted.as_ref();
            let spec = disks::specification(disk, wanted, disks::queues(config, wanted));
            context.el2().device_add(number, slot, &spec).map_err(refused)?;
        }
        self.record.starts = 1;
        self.serve(number, disks, changed, false)?;
        Ok(entry)
    }

    /// The CPUs that the zone would be given now.
    fn choose_cpus(&self) -> Result<Vec<Cpu>, ZoneError> {
        let config = &self.shared.config;
        let all = self.context.host.cpus().map_err(|cause| ZoneError::Host {
            name: config.name.clone(),
            what: "list of CPUs".into(),
            cause,
        })?;
        cpus::choose(&all, &config.cpus).map_err(|error| config.bad("cpus", &config.cpus, error).into())
    }

    /// Chooses CPUs and takes them offline.
    fn take_cpus(&mut self) -> Result<Vec<u64>, ZoneError> {
        let context = self.context.clone();
        let config = &self.shared.config;
        let _choosing = context
            .cpus
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let chosen = self.choose_cpus()?;
        // All of them go into the record first: bringing a CPU online that is online does no harm.
        self.record.cpus = chosen.iter().map(|cpu| cpu.number).collect();
        self.record
            .save(&context.records)
            .map_err(|error| record_failed(config, error))?;
        let numbers = self.record.cpus.clone();
        self.shared.update(|status| status.cpus = numbers);
        for cpu in &chosen {
            context
                .host
                .set_online(cpu.number, false)
                .map_err(|cause| ZoneError::Host {
                    name: config.name.clone(),
                    what: format!("taking CPU {} offline", cpu.number),
                    cause,
                })?;
        }
        Ok(chosen.iter().map(|cpu| cpu.mpidr).collect())
    }

    /// Makes the reactor serve the zone.
    fn serve(
        &mut self,
        number: u8,
        disks: &[Arc<Disk>],
        changed: crate::io::ZoneEvent,
        takeover: bool,
    ) -> Result<(), ZoneError> {
        let config = &self.shared.config;
        let refused = |cause| ZoneError::Refused {
            name: config.name.clone(),
            cause,
        };
        let broken = |cause| ZoneError::Ram {
            name: config.name.clone(),
            cause,
        };
        let Some(ram) = &self.ram else { return Ok(()) };
        let memory = GuestRam::new(ram.memory.clone()).map_err(|e| broken(RamError::Map(e.to_string())))?;
        let log = record::inflight(&self.context.records, &config.name)
            .map_err(|error| record_failed(config, error))?;
        let mut devices = Vec::new();
        for (slot, disk) in (0_u8..).zip(disks) {
            // As the slot was when the zone began: what is attached later has the drive's queues.
            let first = config.disk.get(usize::from(slot));
            devices.push(DeviceIo::new(DeviceParts {
                zone: number,
                slot,
                queues: disks::queues(config, first),
                disk: disk.clone(),
                ram: memory.clone(),
                log: log.clone(),
                starts: self.record.starts,
            }));
        }
        let console = self.shared.console.clone();
        self.context
            .io
            .add_zone(number, console, devices, changed, takeover)
            .map_err(refused)?;
        for (slot, disk) in (0_u8..).zip(disks) {
            self.watch(number, slot, disk);
            if takeover && disk.remote().is_some() {
                // It may have grown while there was no daemon.
                self.context.io.announce_capacity(number, slot).map_err(refused)?;
            }
        }
        self.shared.console.open_input(self.context.el2(), number);
        self.served = true;
        self.record
            .save(&self.context.records)
            .map_err(|error| record_failed(config, error))
    }

    /// Takes over what an earlier daemon left of a zone that EL2 still has.
    ///
    /// # Errors
    /// Something is gone; the zone stays as it is.
    pub fn take_over(
        context: &Arc<Context>,
        shared: &Arc<Shared>,
        record: Record,
        number: u8,
        changed: crate::io::ZoneEvent,
        say: &dyn Fn(&str),
    ) -> Result<Self, Box<(Self, ZoneError)>> {
        let config = &shared.config;
        let mut held = Self {
            context: context.clone(),
            shared: shared.clone(),
            record,
            ram: None,
            served: false,
            poke: None,
        };
        let opened = context.host.open_ram(&config.name, config.memory);
        let opened = opened.map_err(|cause| ZoneError::Ram {
            name: config.name.clone(),
            cause,
        });
        let taken = opened.and_then(|ram| {
            held.ram = Some(ram);
            tracing::debug!(zone = config.name, "RAM is mapped");
            let shown = |slot: usize| {
                let state = context.el2().device_state(number, u8::try_from(slot).ok()?);
                state.ok().map(|state| state.config)
            };
            let last = TakeOver { say, shown: &shown };
            let wait = Wait::UntilDrained(&last);
            let mut disks = disks::open_all(&context.images, config, &shared.disks(), &wait)?;
            held.mirror_again(&mut disks, &wait)?;
            held.serve(number, &disks, changed, true)
        });
        match taken {
            Ok(()) => Ok(held),
            Err(error) => Err(Box::new((held, error))),
        }
    }

    /// What an earlier daemon left of a zone that cannot go on, to be given back by [`Self::release`].
    #[must_use]
    pub fn left_over(context: &Arc<Context>, shared: &Arc<Shared>, record: Record) -> Self {
        Self {
            context: context.clone(),
            shared: shared.clone(),
            record,
            ram: None,
            served: false,
            poke: None,
        }
    }

    /// Notes what is in a slot now, for the next daemon and for users.
    pub(super) fn note_disk(&mut self, slot: usize, disk: Option<DiskConfig>) -> Result<(), ZoneError> {
        self.note(|record| {
            if let Some(place) = record.disks.get_mut(slot) {
                *place = disk;
            }
        })
    }

    /// Notes that the disk in a slot is being moved, or is not any more.
    pub(super) fn note_move(&mut self, slot: u8, target: Option<DiskConfig>) -> Result<(), ZoneError> {
        self.note(|record| {
            record.moves.retain(|one| one.slot != slot);
            record.moves.extend(target.map(|target| Move { slot, target }));
        })
    }

    /// Notes that the disk in a slot has moved, all at once.
    pub(super) fn note_moved(&mut self, slot: u8, disk: DiskConfig) -> Result<(), ZoneError> {
        self.note(|record| {
            record.moves.retain(|one| one.slot != slot);
            if let Some(place) = record.disks.get_mut(usize::from(slot)) {
                *place = Some(disk);
            }
        })
    }

    /// Disks that are being moved.
    pub(super) fn moves_on_record(&self) -> Vec<Move> {
        self.record.moves.clone()
    }

    fn note(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), ZoneError> {
        let mut record = self.record.clone();
        change(&mut record);
        record
            .save(&self.context.records)
            .map_err(|error| record_failed(&self.shared.config, error))?;
        self.record = record;
        self.shared.set_disks(self.record.disks.clone());
        Ok(())
    }

    /// EL2's number of the zone.
    #[must_use]
    pub fn number(&self) -> Option<u8> {
        self.record.number
    }

    /// Loads the zone anew after its guest has ended. No vCPU runs. What the images do not cover stays as the guest left
    /// it, as on a machine that is reset (and under QEMU): its kernel may look for what the last one noted there.
    ///
    /// # Errors
    /// Kernel or initial RAM disk are not what they were.
    pub fn reload(&mut self) -> Result<Entry, ZoneError> {
        let config = &self.shared.config;
        let broken = |cause| ZoneError::Ram {
            name: config.name.clone(),
            cause,
        };
        let images = load::open(&*self.context.images.opener, config)?;
        if let Some(number) = self.record.number {
            self.context.io.quiesce(number);
        }
        let Some(ram) = &self.ram else {
            return Err(broken(RamError::Map("it is not mapped".into())));
        };
        let entry = load::fill(config, &images, ram)?;
        self.record.starts = self.record.starts.wrapping_add(1);
        self.record
            .save(&self.context.records)
            .map_err(|error| record_failed(config, error))?;
        if let Some(number) = self.record.number {
            self.context.io.reopen(number, self.record.starts);
        }
        Ok(entry)
    }

    /// Gives everything back. No vCPU of the zone runs any more. What cannot be given back is logged; memory that EL2
    /// keeps is not given to root.
    pub fn release(mut self) {
        let name = self.shared.config.name.clone();
        let mut el2_has_it = false;
        self.abort_moves();
        self.shared.console.close_input();
        if let Some(number) = self.record.number {
            if self.served {
                self.context.io.quiesce(number);
                self.context.io.remove_zone(number);
            }
            if let Err(error) = self.context.el2().zone_destroy(number) {
                el2_has_it = !error.is(ringvisor::abi::command::Status::NoSuchZone);
                if el2_has_it {
                    tracing::error!(zone = name, %error, "EL2 keeps a zone: its CPUs and memory stay away from root");
                } else {
                    tracing::warn!(zone = name, %error, "EL2 has no such zone any more");
                }
            }
        }
        self.ram = None;
        if el2_has_it {
            return;
        }
        for cpu in self.record.cpus.iter().rev() {
            if let Err(error) = self.context.host.set_online(*cpu, true) {
                tracing::error!(zone = name, cpu, %error, "cannot bring a CPU back online");
            }
        }
        if let Err(error) = self.context.host.remove_ram(&name, self.record.added_pages) {
            tracing::error!(zone = name, %error, "cannot give a zone's memory back");
        }
        Record::remove(&self.context.records, &name);
        self.shared
            .update(|status| (status.number, status.cpus) = (None, Vec::new()));
    }
}

pub(super) fn record_failed(config: &ZoneConfig, error: RecordError) -> ZoneError {
    let cause = std::io::Error::other(error.to_string());
    ZoneError::Host {
        name: config.name.clone(),
        what: "its record".into(),
        cause,
    }
}
