//! [`Drives`]: the drives of a zone that runs, on the zone's thread: attach, detach, resize, limit, resume.
//!
//! The record runs ahead of each change: a daemon that dies in between is followed by one that shows the
//! guest what the record says.
//!
//! With `on_error = "stop"` a host device is closed as soon as the disk has stopped, and opened again when
//! the disk is resumed: a network block device that has lost its connection cannot be connected again while
//! it is open, and what comes back by its name (iSCSI, USB, RBD) may be another device of the kernel's. A
//! file stays open: its lock keeps others away.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::anyhow;
use ringblk::remote::KnownGeometry;
use ringblk::{Disk, DiskError};

use super::change::{Change, LimitChange};
use super::config::DiskConfig;
use super::{SECTOR, open, watch};
use crate::config::size::format_size;
use crate::device::Device;
use crate::device::zone::{Store, ZoneContext};

/// What a zone lacks that has no drive for another disk.
const NO_DRIVE: &str = "drive free for another disk: `spare_disks` in its zone file says how many it starts with, and \
                        `ringctl disk detach` frees one";

/// The drives of a zone, with the zone's record.
pub struct Drives<'a> {
    /// The zone.
    pub zone: &'a ZoneContext,
    /// Its record.
    pub store: &'a mut dyn Store,
}

impl Drives<'_> {
    /// Makes a change; returns the slot that it was about.
    ///
    /// # Errors
    /// It cannot be made; nothing has changed.
    pub fn change(&mut self, change: &Change) -> anyhow::Result<u8> {
        match change {
            Change::Attach { disk } => self.attach(disk),
            Change::Detach { slot } => self.detach(*slot),
            Change::Resize { slot, size, shrink } => self.resize(*slot, *size, *shrink),
            Change::Limit { slot, change } => self.limit(*slot, change),
            Change::Resume { slot } => self.resume(*slot),
            Change::Migrate { slot, target } => self.migrate(*slot, target),
            Change::CancelMigration { slot } => self.cancel_migration(*slot),
        }
    }

    fn attach(&mut self, disk: &DiskConfig) -> anyhow::Result<u8> {
        let config = &self.zone.config;
        disk.check("command line", "disk.")?;
        // The driver has negotiated what the drive offers long ago.
        for (key, given) in [
            ("disk.queues", disk.queues.map(|queues| queues.to_string())),
            ("disk.discard", (!disk.discard).then(|| "false".into())),
        ] {
            if let Some(value) = given {
                let expected = "a key of disks that their zone starts with: the drive has what it has";
                return Err(config.bad(key, value, expected));
            }
        }
        self.check_free(disk)?;
        let disks = self.zone.view.state().disks;
        let free = (0_u8..).zip(&disks).find(|(_, disk)| disk.is_none());
        let (slot, _) = free.ok_or_else(|| anyhow!("zone {} has no {NO_DRIVE}", config.name))?;
        let image = self.open(slot, disk)?;
        self.insert(slot, Some(disk.clone()), image)
    }

    fn detach(&mut self, slot: u8) -> anyhow::Result<u8> {
        self.disk(slot)?;
        self.check_not_migrating(slot)?;
        self.insert(slot, None, Disk::absent())
    }

    /// Puts another disk, or none, into a drive.
    fn insert(&mut self, slot: u8, disk: Option<DiskConfig>, image: Arc<Disk>) -> anyhow::Result<u8> {
        self.record_disk(slot, disk)?;
        self.exchange(slot, image)?;
        Ok(slot)
    }

    /// Serves another image in a drive.
    pub(super) fn exchange(&self, slot: u8, image: Arc<Disk>) -> anyhow::Result<()> {
        let shown = self.zone.exchange(slot, Device::Disk(image.clone()));
        watch::watch(self.zone, slot, &image);
        shown
    }

    fn resize(&mut self, slot: u8, size: Option<u64>, shrink: bool) -> anyhow::Result<u8> {
        let disk = self.disk(slot)?;
        self.check_not_migrating(slot)?;
        let image = self.image(slot)?;
        let now = bytes_of(&image);
        let failed = |error: DiskError| self.unusable(slot, error);
        let Some(size) = size else {
            image.reread_capacity().map_err(failed)?;
            self.zone.show_config(slot)?;
            return Ok(slot);
        };
        if disk.readonly {
            let cause = "it is read-only, so its size stays; without a size, its file's size is read again";
            return Err(self.unusable(slot, cause));
        }
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let cause = format!("size {size}: expected a multiple of 512, at least 512");
            return Err(self.unusable(slot, cause));
        }
        if size < now && !shrink {
            let (size, now) = (format_size(size), format_size(now));
            let cause = format!(
                "{size} is less than its {now}, and what lies behind would be lost; --shrink does it all the same"
            );
            return Err(self.unusable(slot, cause));
        }
        if size >= now {
            image.set_size(size).map_err(failed)?;
            self.zone.show_config(slot)?;
            return Ok(slot);
        }
        // Nothing is in flight while the end is cut off.
        let number = self.zone.number.unwrap_or_default();
        let done = self.zone.io.while_quiesced(number, slot, || image.set_size(size));
        let (cut, shown) = done.ok_or_else(|| self.not_served(slot))?;
        cut.map_err(failed)?;
        shown.map_err(|cause| self.zone.config.failed(cause))?;
        Ok(slot)
    }

    fn limit(&mut self, slot: u8, change: &LimitChange) -> anyhow::Result<u8> {
        let mut disk = self.disk(slot)?;
        change.apply(&mut disk);
        disk.check("command line", "")?;
        let limits = open::rate_limits(&disk.limits);
        self.record_disk(slot, Some(disk))?;
        if let (Some(number), Ok(image)) = (self.zone.number, self.image(slot)) {
            image.control().throttle.set_limits(limits);
            self.zone.io.schedule(number, slot);
        }
        Ok(slot)
    }

    /// Closes the host devices of disks that have stopped.
    pub fn close_stopped(&mut self) {
        for (slot, _) in (0_u8..).zip(self.zone.view.state().disks) {
            let Ok(disk) = self.image(slot) else {
                continue;
            };
            if disk.is_device()
                && disk.control().has_stopped()
                && let Err(error) = self.close(slot, &disk)
            {
                tracing::error!(zone = self.zone.config.name, slot, %error, "cannot close a disk that has stopped");
            }
        }
    }

    fn close(&mut self, slot: u8, disk: &Disk) -> anyhow::Result<()> {
        let wanted = self.disk(slot)?;
        let shape = KnownGeometry {
            size: bytes_of(disk),
            block_size: disk.block_size(),
            readonly: wanted.readonly,
        };
        let closed = Disk::closed(disk.config(), shape).map_err(|error| self.unusable(slot, error))?;
        tracing::warn!(zone = self.zone.config.name, slot, path = %wanted.path.display(),
            "the disk has stopped: its device is closed until `ringctl disk resume`");
        self.exchange(slot, closed)
    }

    /// Retries the requests at which a disk has stopped, with its host device opened again.
    fn resume(&mut self, slot: u8) -> anyhow::Result<u8> {
        let wanted = self.disk(slot)?;
        self.close_stopped();
        let Ok(disk) = self.image(slot) else {
            return Ok(slot);
        };
        if !disk.is_closed() {
            self.zone.io.retry(self.zone.number.unwrap_or_default(), slot);
            return Ok(slot);
        }
        let image = self.open(slot, &wanted)?;
        let (now, before) = (bytes_of(&image), bytes_of(&disk));
        if now < before {
            let cause = format!("{now} bytes, expected at least the {before} that the guest knows of");
            return Err(self.unusable(slot, cause));
        }
        let path = wanted.path.display();
        tracing::info!(zone = self.zone.config.name, slot, %path, "the disk's device is open again");
        self.exchange(slot, image)?;
        Ok(slot)
    }

    /// Checks that neither a disk of the zone nor the target of a migration is in the way of `wanted`.
    pub(super) fn check_free(&self, wanted: &DiskConfig) -> anyhow::Result<()> {
        let path = wanted.path.display();
        let disks = self.zone.view.state().disks;
        let conflicts = |disk: &Option<DiskConfig>| disk.as_ref().is_some_and(|disk| disk.conflicts(wanted));
        if let Some((slot, _)) = (0_u8..).zip(&disks).find(|(_, disk)| conflicts(disk)) {
            return Err(self.unusable(slot, format!("{path} is attached already, here")));
        }
        let migrations = self.zone.view.disk.migrations();
        match migrations
            .iter()
            .find(|migration| migration.target.conflicts(wanted))
        {
            None => Ok(()),
            Some(migration) => {
                let cause = format!("it is being migrated to {path}");
                Err(self.unusable(migration.slot, cause))
            }
        }
    }

    /// Returns the disk in a slot.
    pub(super) fn disk(&self, slot: u8) -> anyhow::Result<DiskConfig> {
        let disk = self
            .zone
            .view
            .state()
            .disks
            .into_iter()
            .nth(slot.into())
            .flatten();
        let name = &self.zone.config.name;
        disk.ok_or_else(|| {
            anyhow!("zone {name} has no disk in slot {slot}; `ringctl disk list` shows those there are")
        })
    }

    /// Returns the open disk in a slot.
    pub(super) fn image(&self, slot: u8) -> anyhow::Result<Arc<Disk>> {
        match self.zone.device(slot) {
            Some(Device::Disk(image)) => Ok(image),
            _ => Err(self.not_served(slot)),
        }
    }

    /// Opens a disk for a slot.
    pub(super) fn open(&self, slot: u8, disk: &DiskConfig) -> anyhow::Result<Arc<Disk>> {
        open::image(&self.zone.environment.disk, &self.zone.config, slot, disk, None)
            .map_err(|error| self.unusable(slot, error))
    }

    /// Records what is in a drive.
    pub(super) fn record_disk(&mut self, slot: u8, disk: Option<DiskConfig>) -> anyhow::Result<()> {
        self.zone.record(self.store, |state| {
            if let Some(place) = state.disks.get_mut(usize::from(slot)) {
                *place = disk;
            }
        })
    }

    pub(super) fn unusable(&self, slot: u8, cause: impl Display) -> anyhow::Error {
        anyhow!("zone {}, disk in slot {slot}: {cause}", self.zone.config.name)
    }

    fn not_served(&self, slot: u8) -> anyhow::Error {
        self.unusable(slot, "it is not served")
    }
}

/// Returns a disk's size in bytes.
fn bytes_of(disk: &Disk) -> u64 {
    disk.capacity().saturating_mul(SECTOR)
}
