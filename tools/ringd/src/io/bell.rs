//! [`Rings`]: the reactor's peer. It takes entries off all zones' rings and turns them into work.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringvirtio::{Commands, ReadWidth, trace};
use ringvisor::ring::Entry;

use super::place::Place;
use super::{Table, ZoneIo, armed_offset, lock};
use crate::hv::Hypervisor;

/// No notification waits for longer, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// What becomes readable when EL2 rings.
pub struct Interrupt {
    /// `/dev/uioN`, or an eventfd.
    pub fd: OwnedFd,
    /// Bytes per read of it.
    pub width: ReadWidth,
    /// Which CPU takes it, if that can be known: `/proc/irq/N/effective_affinity_list`.
    pub cpu: Option<File>,
}

/// What the reactor has taken off the rings; written by its thread alone.
#[derive(Debug, Default)]
pub struct BellCounters {
    /// Rounds of the reactor.
    pub rounds: AtomicU64,
    /// Interrupts of the control device taken.
    pub wakeups: AtomicU64,
    /// Those after which no ring had an entry.
    pub spurious_wakeups: AtomicU64,
    /// Times that looking on before going to sleep found something.
    pub polled: AtomicU64,
    /// Times that it did not.
    pub polled_in_vain: AtomicU64,
    /// Nanoseconds that the thread looked on.
    pub polling_ns: AtomicU64,
    /// Entries taken.
    pub entries: AtomicU64,
    /// Those that were notifications of queues.
    pub notifications: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(count),
        Ordering::Relaxed,
    );
}

/// The rings of all zones.
pub(crate) struct Rings {
    hv: Arc<dyn Hypervisor>,
    table: Arc<Table>,
    counters: Arc<BellCounters>,
    /// It was rung since rings were last looked at.
    rung: bool,
    place: Option<Place>,
}

impl Rings {
    /// `cpu`: see [`Interrupt::cpu`].
    pub fn new(
        hv: Arc<dyn Hypervisor>,
        table: Arc<Table>,
        counters: Arc<BellCounters>,
        cpu: Option<File>,
    ) -> Self {
        Self {
            hv,
            table,
            counters,
            rung: false,
            place: cpu.map(Place::new),
        }
    }
}

impl ringvirtio::EventSource for Rings {
    fn on_wakeup(&mut self) {
        self.rung = true;
        add(&self.counters.wakeups, 1);
    }

    fn preferred_cpu(&mut self) -> Option<Option<usize>> {
        self.place.as_mut()?.ask()
    }

    fn collect(&mut self, commands: &mut Commands) {
        let mut taken = 0;
        for zone in lock(&self.table).iter_mut() {
            taken += zone.collect(&self.hv, commands, &self.counters);
        }
        add(&self.counters.rounds, 1);
        add(&self.counters.entries, taken);
        if std::mem::take(&mut self.rung) && taken == 0 {
            add(&self.counters.spurious_wakeups, 1);
        }
    }

    fn has_events(&self) -> bool {
        lock(&self.table).iter().any(|zone| {
            let window = self.hv.shared().window(zone.number);
            zone.refresh || window.is_some_and(|window| zone.consumer.peek(&window.ring()).is_some())
        })
    }

    fn on_busy_poll(&mut self, found: bool, time: Duration) {
        let counter = if found {
            &self.counters.polled
        } else {
            &self.counters.polled_in_vain
        };
        add(counter, 1);
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        add(&self.counters.polling_ns, time);
    }

    fn arm(&mut self) -> bool {
        let mut more = false;
        for zone in lock(&self.table).iter_mut() {
            if let Some(window) = self.hv.shared().window(zone.number) {
                more |= !zone.consumer.prepare_to_sleep(&window.ring()) || zone.refresh;
            }
        }
        more
    }

    fn disarm(&mut self) {
        for zone in lock(&self.table).iter() {
            let armed = armed_offset(zone.number).and_then(|offset| self.hv.shared().u32_at(offset));
            if let Some(armed) = armed {
                // A swap, as the consumer's own: see `ringvisor::ring`, "Orderings".
                armed.swap(0, Ordering::Relaxed);
            }
        }
    }
}

/// Nanoseconds since a stamp of EL2's; `None` for one that cannot be.
fn ago(stamp: u64) -> Option<u64> {
    let ticks = trace::now().checked_sub(stamp)?;
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(trace::frequency());
    u64::try_from(nanoseconds).ok().filter(|ago| *ago < LONGEST)
}

impl ZoneIo {
    /// Takes what is on the ring. Gives the number of entries.
    fn collect(&mut self, hv: &Arc<dyn Hypervisor>, commands: &mut Commands, counters: &BellCounters) -> u64 {
        let mut taken = 0;
        let Some(window) = hv.shared().window(self.number) else {
            return taken;
        };
        if std::mem::take(&mut self.refresh) {
            for device in &mut self.devices {
                // The last daemon may have died between changing a disk and telling the guest.
                if let Err(error) = device.announce_capacity(&**hv) {
                    tracing::warn!(zone = self.number, slot = device.slot(), %error, "cannot show a disk's size");
                }
                device.refresh(hv, commands);
            }
            self.console.pump(window);
            (self.changed)();
        }
        while let Some(entry) = self.consumer.take(&window.ring()) {
            taken += 1;
            match entry {
                Entry::Notify { slot, queue } => {
                    add(&counters.notifications, 1);
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

    fn device(&mut self, slot: u8) -> Option<&mut super::DeviceIo> {
        self.devices.iter_mut().find(|device| device.slot() == slot)
    }
}
