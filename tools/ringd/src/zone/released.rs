//! Disks that a failed request has stopped, and `ringctl disk resume`.
//!
//! With `on_error = "stop"` a block device is closed as soon as the disk has stopped, and opened again when it is resumed: a
//! network block device that has lost its connection cannot be connected anew while anybody has it open, and what comes back
//! by its name (iSCSI, USB, RBD) may be another device of the kernel's. A file stays open: its lock keeps others away.

use std::sync::Arc;

use ringblk::Disk;
use ringblk::remote::KnownGeometry;

use super::ZoneError;
use super::disks::{self, DISK_WAIT, SECTOR, Wait};
use super::moves::Poke;
use super::resources::Held;

impl Held {
    /// From now on the zone's thread is told of what its disks do.
    pub(super) fn listen(&mut self, poke: Poke) {
        self.poke = Some(poke.clone());
        let zone = self.number().unwrap_or_default();
        for slot in self.slots() {
            if let Some(disk) = self.context.io.disk(zone, slot) {
                self.watch(zone, slot, &disk);
            }
        }
        // Of what they did before.
        poke();
    }

    /// Has somebody hear of it when a disk stops, or its server shows another size.
    pub(super) fn watch(&self, zone: u8, slot: u8, disk: &Arc<Disk>) {
        disks::watch_size(&self.context.io, zone, slot, disk);
        if let Some(poke) = self.poke.clone() {
            disk.control().on_stop(Box::new(move || poke()));
        }
    }

    /// Closes the devices of disks that have stopped.
    pub(super) fn release_stopped(&mut self) {
        let zone = self.number().unwrap_or_default();
        for slot in self.slots() {
            let Some(disk) = self.context.io.disk(zone, slot) else {
                continue;
            };
            if disk.is_device()
                && disk.control().has_stopped()
                && let Err(error) = self.release_device(slot, &disk)
            {
                tracing::error!(zone = self.shared.config.name, slot, %error, "cannot close a disk that has stopped");
            }
        }
    }

    fn release_device(&mut self, slot: u8, disk: &Disk) -> Result<(), ZoneError> {
        let wanted = self.disk_in(slot)?;
        let shape = KnownGeometry {
            size: size(disk),
            block_size: disk.block_size(),
            readonly: wanted.readonly,
        };
        let released = Disk::closed(disk.config(), shape).map_err(|error| self.unusable(slot, error))?;
        tracing::warn!(zone = self.shared.config.name, slot, path = %wanted.path.display(),
            "the disk has stopped: its device is closed until `ringctl disk resume`");
        self.exchange(slot, released)
    }

    /// Tries again what a disk has stopped at, with its device opened anew.
    ///
    /// # Errors
    /// It cannot be opened, or has become smaller; the disk stays stopped.
    pub(super) fn resume_disk(&mut self, slot: u8) -> Result<u8, ZoneError> {
        let wanted = self.disk_in(slot)?;
        self.release_stopped();
        let zone = self.number().unwrap_or_default();
        let Some(disk) = self.context.io.disk(zone, slot) else {
            return Ok(slot);
        };
        if !disk.is_closed() {
            self.context.io.retry(zone, slot);
            return Ok(slot);
        }
        let opened = disks::open(
            &self.context.images,
            &self.shared.config,
            slot.into(),
            &wanted,
            &Wait::For(DISK_WAIT),
        );
        let image = opened.map_err(|error| self.unusable(slot, error))?;
        let (now, before) = (size(&image), size(&disk));
        if now < before {
            let cause = format!("{now} bytes, expected at least the {before} that the guest knows of");
            return Err(self.unusable(slot, cause));
        }
        tracing::info!(zone = self.shared.config.name, slot, path = %wanted.path.display(), "the disk's device is open again");
        self.exchange(slot, image)?;
        Ok(slot)
    }

    fn unusable(&self, slot: u8, cause: impl ToString) -> ZoneError {
        disks::refused(&self.shared.config, slot.into(), cause)
    }

    fn slots(&self) -> impl Iterator<Item = u8> + use<> {
        (0_u8..).zip(self.shared.disks()).map(|(slot, _)| slot)
    }
}

/// Bytes.
fn size(disk: &Disk) -> u64 {
    disk.capacity().saturating_mul(SECTOR)
}
