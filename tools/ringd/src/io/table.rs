//! [`ZoneIo`]: a zone as the reactor's thread serves it: its ring, devices and console.

use std::sync::Arc;

use parking_lot::Mutex;
use ringvirtio::{Commands, trace};
use ringvisor::ring::{Consumer, Entry};

use super::counters::RingCounters;
use super::served::ServedDevice;
use crate::console::Console;
use crate::device::context::Wake;
use crate::hv::Hypervisor;

/// The zones there are, in no order: the reactor goes through them several times a round. It takes the lock
/// each time, and control threads take it briefly; the command slot's lock and consoles' locks are taken
/// inside.
pub type Table = Mutex<Vec<ZoneIo>>;

/// No notification waits for longer, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// What the reactor knows of a zone.
pub struct ZoneIo {
    /// EL2's number of it.
    pub number: u8,
    /// Reads its ring.
    pub consumer: Consumer,
    /// Its devices.
    pub devices: Vec<ServedDevice>,
    /// Where its output goes.
    pub console: Arc<Console>,
    /// Notifies the zone's thread.
    pub changed: Wake,
    /// Whether the ring was taken over: everything counts as changed.
    pub refresh: bool,
    /// Whether its queues are being removed; none is added any more.
    pub closing: bool,
}

/// Returns the nanoseconds since a time stamp of EL2's; `None` for an impossible one.
fn ago(stamp: u64) -> Option<u64> {
    let ticks = trace::now().checked_sub(stamp)?;
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(trace::frequency());
    u64::try_from(nanoseconds).ok().filter(|ago| *ago < LONGEST)
}

impl ZoneIo {
    /// Takes all events off the ring and acts on them. Returns their number.
    pub fn collect(
        &mut self,
        hv: &Arc<dyn Hypervisor>,
        commands: &mut Commands,
        counters: &RingCounters,
    ) -> u64 {
        let mut taken = 0;
        let Some(window) = hv.shared().window(self.number) else {
            return taken;
        };
        if std::mem::take(&mut self.refresh) {
            for device in &mut self.devices {
                // The last daemon may have died between changing a device and showing it to the guest.
                if let Err(error) = device.show_config(&**hv) {
                    tracing::warn!(zone = self.number, slot = device.slot(), %error, "cannot show a device's configuration");
                }
                device.refresh(hv, commands);
            }
            self.console.pump(window);
            (self.changed)();
        }
        while let Some(entry) = self.consumer.pop(&window.ring()) {
            taken += 1;
            match entry {
                Entry::Notify { slot, queue } => {
                    counters.notifications.add(1);
                    if let Some(id) = self.device(slot).and_then(|device| device.queue(queue)) {
                        match window.notified_at(slot, queue).and_then(ago) {
                            Some(ago) => commands.notified(id, ago),
                            None => commands.schedule(id),
                        }
                    }
                }
                Entry::Device { slot } if !self.closing => {
                    if let Some(device) = self.device(slot) {
                        device.refresh(hv, commands);
                    }
                }
                Entry::Device { .. } => {}
                Entry::Console => self.console.pump(window),
                Entry::Zone => (self.changed)(),
            }
        }
        taken
    }

    /// Returns the device in a slot.
    pub fn device(&mut self, slot: u8) -> Option<&mut ServedDevice> {
        self.devices.iter_mut().find(|device| device.slot() == slot)
    }
}
