//! Migrating a zone's disk to another image while its guest uses it.
//!
//! `ringctl disk migrate` exchanges the disk for a [`ringblk::migrate::Migration`], as any other exchange,
//! and a thread copies and compares. When both are equal the zone's own thread quiesces the disk, makes the
//! target durable and *writes the zone's record: that is the moment of the switch*. It is atomic, since a
//! record is renamed into place, and nothing is in flight: a daemon that is killed before it is followed by
//! one that serves the source through a migration and continues to copy, one that is killed afterwards by one
//! that serves the target. The number of bytes copied is the slot's word behind the in-flight logs. If the
//! target's server has died between the comparison and the switch, the target may have lost something and is
//! compared again.

use std::sync::Arc;

use ringblk::Disk;
use ringblk::migrate::{Migration as Copy, Progress, Step};

use super::config::DiskConfig;
use super::drives::Drives;
use super::migration::{Migration, Pending, Stage};
use super::{open, watch};
use crate::device::context::TakeOver;
use crate::device::zone::ZoneContext;
use crate::device::{Device, inflight};

/// Returns `disk` at another image: path, format, engine and cache are the target's, all else stays.
fn at_target(disk: &DiskConfig, target: &DiskConfig) -> DiskConfig {
    DiskConfig {
        path: target.path.clone(),
        format: target.format,
        engine: target.engine,
        cache: target.cache,
        ..disk.clone()
    }
}

/// Starts the threads of migrations that have none.
pub fn start_threads(zone: &ZoneContext) {
    if let Some(wake) = &zone.wake {
        zone.view
            .disk
            .migrations()
            .iter()
            .for_each(|migration| migration.start(wake));
    }
}

/// Ends the threads of all migrations, which the next start of the zone does not continue.
pub fn abort(zone: &ZoneContext) {
    let migrations = std::mem::take(&mut *zone.view.disk.migrations());
    migrations.iter().for_each(|migration| migration.stop());
}

impl Drives<'_> {
    /// Begins to migrate the disk in a slot.
    pub(super) fn migrate(&mut self, slot: u8, target: &DiskConfig) -> anyhow::Result<u8> {
        let disk = self.disk(slot)?;
        self.check_not_migrating(slot)?;
        target.check("command line", "target.")?;
        let wanted = at_target(&disk, target);
        if at_target(&DiskConfig::new(target.path.clone()), target) != *target {
            let cause = "expected of a target only its path, format, engine and cache: all else stays";
            return Err(self.unusable(slot, cause));
        }
        if disk.readonly {
            let cause = "it is read-only, expected a disk that can be written: of another, copy the image and attach that";
            return Err(self.unusable(slot, cause));
        }
        self.check_free(&wanted)?;
        let source = self.image(slot)?;
        if source.is_closed() {
            let cause = "its device is closed, expected one that works: `ringctl disk resume` opens it";
            return Err(self.unusable(slot, cause));
        }
        let image = self.open(slot, &wanted)?;
        let progress = self.progress(slot)?;
        progress.set(0);
        let copy = Copy::new(source, image, progress).map_err(|error| self.unusable(slot, error))?;
        if !disk.discard {
            copy.keep_blocks();
        }
        let migration = Migration::new(slot, wanted.clone(), copy);
        self.record_migration(slot, Some(wanted))?;
        let view = &self.zone.view.disk;
        view.set_failure(slot, None);
        view.migrations().push(migration.clone());
        // The drive serves it either way, and its capacity is the disk's.
        let number = self.zone.number.unwrap_or_default();
        let device = Device::Disk(migrating(&migration, &disk));
        if let Err(error) = self.zone.io.exchange(number, slot, device) {
            tracing::error!(zone = self.zone.config.name, slot, %error, "cannot show the capacity of a migrating disk");
        }
        let target = migration.target.path.display();
        tracing::info!(zone = self.zone.config.name, slot, %target, "migrating a disk");
        start_threads(self.zone);
        Ok(slot)
    }

    /// Cancels a migration; the disk stays where it is.
    pub(super) fn cancel_migration(&mut self, slot: u8) -> anyhow::Result<u8> {
        let migration = self.zone.view.disk.migration(slot);
        let migration = migration.ok_or_else(|| self.unusable(slot, "it is not being migrated"))?;
        self.give_up(&migration, "it was cancelled")?;
        Ok(slot)
    }

    /// Checks that the disk in a slot is not being migrated.
    pub(super) fn check_not_migrating(&self, slot: u8) -> anyhow::Result<()> {
        match self.zone.view.disk.migration(slot) {
            None => Ok(()),
            Some(migration) => {
                let target = migration.target.path.display();
                let cause =
                    format!("it is being migrated to {target}; `ringctl disk migrate --cancel` ends that");
                Err(self.unusable(slot, cause))
            }
        }
    }

    /// Continues the migrations of an earlier daemon.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn take_over_migrations(
        &mut self,
        devices: &mut [Device],
        last: &TakeOver<'_>,
    ) -> anyhow::Result<()> {
        let zone = self.zone;
        let name = &zone.config.name;
        for Pending { slot, target } in zone.view.state().migrations {
            let Some(Device::Disk(disk)) = devices.get_mut(usize::from(slot)) else {
                continue;
            };
            // Its limits may have changed since the migration began.
            let now = self.disk(slot)?;
            let opened = open::image(&zone.environment.disk, &zone.config, slot, &target, Some(last))
                .map_err(|error| error.to_string());
            let progress = self.progress(slot)?;
            let copy = opened.and_then(|image| {
                if disk.is_closed() || image.is_closed() {
                    let target = target.path.display();
                    return Err(format!("it, or its target {target}, cannot be opened"));
                }
                Copy::new(disk.clone(), image, progress).map_err(|error| error.to_string())
            });
            match copy {
                Ok(copy) => {
                    if !now.discard {
                        copy.keep_blocks();
                    }
                    let copied = copy.copied();
                    tracing::info!(zone = name, slot, copied, "continuing a migration");
                    let migration = Migration::new(slot, target, copy);
                    *disk = migrating(&migration, &now);
                    zone.view.disk.migrations().push(migration);
                }
                Err(reason) => {
                    tracing::error!(zone = name, slot, reason, "cannot continue a migration");
                    // Before a request is served that the target would miss.
                    self.record_migration(slot, None)?;
                    zone.view.disk.set_failure(slot, Some(reason));
                }
            }
        }
        Ok(())
    }

    /// Ends the migrations that are ready to switch or have failed.
    pub fn finish_migrations(&mut self) {
        let migrations = self.zone.view.disk.migrations().clone();
        for migration in migrations {
            let finished = match migration.stage() {
                Stage::Copying | Stage::Comparing => continue,
                Stage::Failed(reason) => self.give_up(&migration, &reason),
                Stage::Ready => self.switch(&migration),
            };
            if let Err(error) = finished {
                let (zone, slot) = (&self.zone.config.name, migration.slot);
                tracing::error!(zone, slot, %error, "cannot finish a migration");
            }
        }
    }

    /// Switches to the target.
    fn switch(&mut self, migration: &Arc<Migration>) -> anyhow::Result<()> {
        migration.stop();
        let slot = migration.slot;
        // Limits may have changed meanwhile.
        let config = at_target(&self.disk(slot)?, &migration.target);
        let image = migration.copy.target().clone();
        open::configure(&image, &config);
        let zone = self.zone;
        let mut reason = None;
        let commit = || {
            // Nothing is in flight: what failed has failed, what was written is there.
            match migration.copy.seal() {
                Ok(Step::End) => {}
                Ok(Step::More) => return Err(()),
                Err(error) => {
                    reason = Some(error.to_string());
                    return Err(());
                }
            }
            let recorded = zone.record(self.store, |state| {
                state.migrations.retain(|pending| pending.slot != slot);
                if let Some(place) = state.disks.get_mut(usize::from(slot)) {
                    *place = Some(config);
                }
            });
            recorded.map_err(|error| reason = Some(error.to_string()))
        };
        let number = zone.number.unwrap_or_default();
        match zone
            .io
            .exchange_if(number, slot, Device::Disk(image.clone()), commit)
        {
            Ok(shown) => {
                self.forget(migration);
                watch::watch(zone, slot, &image);
                let path = migration.target.path.display();
                tracing::info!(zone = zone.config.name, slot, %path, "the disk is migrated");
                shown.map_err(|cause| zone.config.failed(cause))
            }
            Err(()) => match reason {
                Some(reason) => self.give_up(migration, &reason),
                None => {
                    let target = migration.target.path.display();
                    tracing::warn!(zone = zone.config.name, slot, %target, "a server has gone: comparing again");
                    migration.compare_again(zone.wake.as_ref());
                    Ok(())
                }
            },
        }
    }

    /// Ends a migration without the switch: the disk stays where it is.
    fn give_up(&mut self, migration: &Arc<Migration>, reason: &str) -> anyhow::Result<()> {
        migration.stop();
        let slot = migration.slot;
        tracing::warn!(
            zone = self.zone.config.name,
            slot,
            reason,
            "the disk stays where it is"
        );
        self.zone.view.disk.set_failure(slot, Some(reason.to_owned()));
        // Before a request is served that the target misses.
        self.record_migration(slot, None)?;
        self.forget(migration);
        let source = migration.copy.source().clone();
        open::configure(&source, &self.disk(slot)?);
        self.exchange(slot, source)
    }

    fn forget(&self, migration: &Migration) {
        let mut migrations = self.zone.view.disk.migrations();
        migrations.retain(|other| other.slot != migration.slot);
    }

    /// Records that the disk in a slot is being migrated, or that it is not.
    fn record_migration(&mut self, slot: u8, target: Option<DiskConfig>) -> anyhow::Result<()> {
        self.zone.record(self.store, |state| {
            state.migrations.retain(|pending| pending.slot != slot);
            state
                .migrations
                .extend(target.map(|target| Pending { slot, target }));
        })
    }

    /// Returns the word that counts the bytes copied.
    fn progress(&self, slot: u8) -> anyhow::Result<Progress> {
        let words = inflight::words(&self.zone.inflight()?).map_err(|error| self.unusable(slot, error))?;
        Ok(Progress::new(Arc::new(words), slot.into()))
    }
}

/// Returns the disk that a migrating drive serves.
fn migrating(migration: &Migration, disk: &DiskConfig) -> Arc<Disk> {
    let migrating = migration.copy.disk();
    open::configure(&migrating, disk);
    migrating
}
