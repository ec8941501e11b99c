//! What a disk does by itself: it stops at a failed request, or its server reports another size.

use std::sync::Arc;

use ringblk::Disk;

use crate::device::zone::ZoneContext;

/// Has the zone's thread woken when a disk stops, and the guest notified when the disk's server reports
/// another size.
pub fn watch(zone: &ZoneContext, slot: u8, disk: &Arc<Disk>) {
    watch_size(zone, slot, disk);
    if let Some(wake) = zone.wake.clone() {
        disk.control().on_stop(Box::new(move || wake()));
    }
}

fn watch_size(zone: &ZoneContext, slot: u8, disk: &Arc<Disk>) {
    let (Some(remote), Some(number)) = (disk.remote(), zone.number) else {
        return;
    };
    let (io, disk) = (Arc::downgrade(&zone.io), Arc::downgrade(disk));
    remote.on_resize(Box::new(move || {
        let (Some(io), Some(disk)) = (io.upgrade(), disk.upgrade()) else {
            return;
        };
        // It may have been exchanged.
        let now = io.device(number, slot);
        if !now.is_some_and(|now| now.disk().is_some_and(|now| Arc::ptr_eq(now, &disk))) {
            return;
        }
        if let Err(error) = disk.reread_capacity() {
            tracing::error!(zone = number, slot, %error, "a remote disk's new size cannot be used");
        } else if let Err(error) = io.show_config(number, slot) {
            tracing::error!(zone = number, slot, %error, "cannot show a remote disk's new size");
        }
    }));
}
