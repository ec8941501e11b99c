//! Disks that have stopped at a failed request, and `ringctl disk resume`.
//!
//! With `on_error = "stop"` a host device is closed as soon as the disk has stopped, and opened again when
//! the disk is resumed: a network block device that has lost its connection cannot be connected again while
//! it is open, and what comes back by its name (iSCSI, USB, RBD) may be another device of the kernel's. A
//! file stays open: its lock keeps others away.

use ringblk::Disk;
use ringblk::remote::KnownGeometry;

use super::SECTOR;
use super::drives::Drives;

impl Drives<'_> {
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
            size: size(disk),
            block_size: disk.block_size(),
            readonly: wanted.readonly,
        };
        let closed = Disk::closed(disk.config(), shape).map_err(|error| self.unusable(slot, error))?;
        tracing::warn!(zone = self.zone.config.name, slot, path = %wanted.path.display(),
            "the disk has stopped: its device is closed until `ringctl disk resume`");
        self.exchange(slot, closed)
    }

    /// Retries the requests at which a disk has stopped, with its host device opened again.
    pub(super) fn resume(&mut self, slot: u8) -> anyhow::Result<u8> {
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
        let (now, before) = (size(&image), size(&disk));
        if now < before {
            let cause = format!("{now} bytes, expected at least the {before} that the guest knows of");
            return Err(self.unusable(slot, cause));
        }
        let path = wanted.path.display();
        tracing::info!(zone = self.zone.config.name, slot, %path, "the disk's device is open again");
        self.exchange(slot, image)?;
        Ok(slot)
    }
}

/// Returns a disk's size in bytes.
fn size(disk: &Disk) -> u64 {
    disk.capacity().saturating_mul(SECTOR)
}
