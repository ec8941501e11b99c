//! [`ZoneIo`]: a zone as the reactor's thread serves it: its ring, devices and console. [`Table`]: all of
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use ringvirtio::{Commands, trace};
use ringvisor::ring::{Consumer, Entry};

use super::budget::Budget;
use super::counters::RingCounters;
use super::served::ServedDevice;
use crate::console::Console;
use crate::device::context::Wake;
use crate::hv::Hypervisor;

/// Most events that a zone has acted on in one round; the rest is left for the next. One of each queue of a
/// large device, and some more.
const ROUND: u64 = 32;

/// A zone, or `None` once it was removed. Control threads hold the lock briefly; the command slot's lock and
/// consoles' locks are taken inside.
pub type Place = Arc<Mutex<Option<ZoneIo>>>;

/// The zones there are, in no order. The reactor, which goes through them several times a round, has a copy
/// of the list and locks the zones one by one: what takes long in one zone holds up no control thread of
/// another.
#[derive(Default)]
pub struct Table {
    zones: Mutex<Vec<(u8, Place)>>,
    /// Changes with the list.
    version: AtomicU64,
}

impl Table {
    /// Adds a zone; one that has its number already is removed.
    pub fn insert(&self, zone: ZoneIo) {
        let number = zone.number;
        drop(self.remove(number));
        self.zones.lock().push((number, Arc::new(Mutex::new(Some(zone)))));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Removes a zone. When this returns, the reactor no longer acts on it.
    pub fn remove(&self, number: u8) -> Option<ZoneIo> {
        let mut zones = self.zones.lock();
        let index = zones.iter().position(|(other, _)| *other == number)?;
        let (_, place) = zones.swap_remove(index);
        drop(zones);
        self.version.fetch_add(1, Ordering::Release);
        place.lock().take()
    }

    /// Calls `act` on a zone.
    pub fn with<T>(&self, number: u8, act: impl FnOnce(&mut ZoneIo) -> T) -> Option<T> {
        let zones = self.zones.lock();
        let place = zones.iter().find(|(other, _)| *other == number)?.1.clone();
        drop(zones);
        place.lock().as_mut().map(act)
    }

    /// Brings a copy of the list, made at `version`, up to date.
    pub fn copy(&self, copy: &mut Vec<Place>, version: &mut u64) {
        // Before the list: a change in between is seen again the next time.
        let now = self.version.load(Ordering::Acquire);
        if now != *version {
            *version = now;
            copy.clear();
            copy.extend(self.zones.lock().iter().map(|(_, place)| place.clone()));
        }
    }
}

/// No notification waits for longer, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// What wakes the threads of a zone.
pub struct Wakes {
    /// The one that changes it.
    pub changed: Wake,
    /// The one that serves its flash, of a zone with firmware.
    pub flash: Option<Wake>,
}

impl Wakes {
    fn flash(&self) {
        if let Some(flash) = &self.flash {
            flash();
        }
    }
}

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
    /// Its threads.
    pub wakes: Wakes,
    /// Whether the ring was taken over: everything counts as changed.
    pub refresh: bool,
    /// Whether its queues are being removed; none is added any more.
    pub closing: bool,
    /// How much of the reactor's time its events may still take.
    pub budget: Budget,
}

/// Returns the nanoseconds since a time stamp of EL2's; `None` for an impossible one.
fn ago(stamp: u64) -> Option<u64> {
    let ticks = trace::now().checked_sub(stamp)?;
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(trace::frequency());
    u64::try_from(nanoseconds).ok().filter(|ago| *ago < LONGEST)
}

impl ZoneIo {
    /// Takes events off the ring and acts on them: at most [`ROUND`], and none while the zone's [`Budget`] is
    /// exhausted. Returns their number.
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
            (self.wakes.changed)();
            self.wakes.flash();
        }
        if self.budget.is_exhausted(Instant::now) {
            return taken;
        }
        let mut cost = 0;
        while let Some(entry) = self.consumer.pop(&window.ring()) {
            taken += 1;
            match entry {
                Entry::Notify { slot, queue } => {
                    counters.notifications.add(1);
                    if let Some(device) = self.device(slot)
                        && let Some(id) = device.queue(queue)
                    {
                        cost += device.spurious(queue).saturating_mul(super::budget::NOTIFICATION);
                        match window.notified_at(slot, queue).and_then(ago) {
                            Some(ago) => commands.notified(id, ago),
                            None => commands.schedule(id),
                        }
                    }
                }
                Entry::Device { slot } => {
                    cost += super::budget::DEVICE;
                    if !self.closing
                        && let Some(device) = self.device(slot)
                    {
                        device.refresh(hv, commands);
                    }
                }
                Entry::Console => {
                    cost += super::budget::CONSOLE;
                    self.console.pump(window);
                }
                Entry::Zone => {
                    cost += super::budget::DEVICE;
                    (self.wakes.changed)();
                }
                Entry::Flash => {
                    cost += super::budget::DEVICE;
                    self.wakes.flash();
                }
            }
            if taken == ROUND {
                counters.full_rounds.add(1);
                break;
            }
        }
        if cost > 0 && self.budget.charge(cost, Instant::now()) {
            counters.pauses.add(1);
        }
        taken
    }

    /// Returns whether there are events that may be acted on now.
    pub fn has_events(&self, hv: &dyn Hypervisor) -> bool {
        self.refresh || !self.budget.is_exhausted_now() && self.has_entry(hv)
    }

    fn has_entry(&self, hv: &dyn Hypervisor) -> bool {
        let window = hv.shared().window(self.number);
        window.is_some_and(|window| self.consumer.peek(&window.ring()).is_some())
    }

    /// Has EL2 raise the interrupt for the next event, unless the zone's budget is exhausted. Returns whether
    /// there are events that may be acted on now.
    pub fn arm(&mut self, hv: &dyn Hypervisor) -> bool {
        if self.budget.is_exhausted_now() {
            return self.refresh;
        }
        let Some(window) = hv.shared().window(self.number) else {
            return false;
        };
        !self.consumer.prepare_to_sleep(&window.ring()) || self.refresh
    }

    /// Returns the device in a slot.
    pub fn device(&mut self, slot: u8) -> Option<&mut ServedDevice> {
        self.devices.iter_mut().find(|device| device.slot() == slot)
    }
}
