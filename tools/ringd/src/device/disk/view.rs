//! [`DiskView`]: what client threads read of a zone's migrations.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::migration::{Migration, MigrationReport, Stage};
use crate::device::state::State;

/// What client threads read of a zone's migrations. Its locks are leaves.
#[derive(Default)]
pub struct DiskView {
    /// Migrations of this daemon.
    migrations: Mutex<Vec<Arc<Migration>>>,
    /// By slot, why the last migration failed.
    failures: Mutex<BTreeMap<u8, String>>,
}

impl DiskView {
    /// Returns the migrations of this daemon.
    pub fn migrations(&self) -> MutexGuard<'_, Vec<Arc<Migration>>> {
        self.migrations.lock()
    }

    /// Returns the migration of the disk in a slot.
    pub fn migration(&self, slot: u8) -> Option<Arc<Migration>> {
        let migrations = self.migrations();
        migrations
            .iter()
            .find(|migration| migration.slot == slot)
            .cloned()
    }

    /// Returns the progress of the migration of the disk in a slot. While the zone is being taken over,
    /// `recorded` are its devices on record, and no more is known than that there is a migration.
    pub fn migration_report(&self, slot: u8, recorded: Option<&State>) -> Option<MigrationReport> {
        let report = self.migration(slot).map(|migration| migration.report());
        report.or_else(|| {
            let pending = recorded?.migrations.iter().find(|pending| pending.slot == slot)?;
            Some(MigrationReport {
                target: pending.target.path.clone(),
                copied: 0,
                size: 0,
                stage: Stage::Copying,
            })
        })
    }

    /// Returns why the last migration of the disk in a slot failed.
    pub fn failure(&self, slot: u8) -> Option<String> {
        self.failures.lock().get(&slot).cloned()
    }

    /// Sets why the last migration of the disk in a slot failed, or that it has not.
    pub fn set_failure(&self, slot: u8, reason: Option<String>) {
        match reason {
            Some(reason) => self.failures.lock().insert(slot, reason),
            None => self.failures.lock().remove(&slot),
        };
    }
}
