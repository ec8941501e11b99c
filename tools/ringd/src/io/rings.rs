//! [`Rings`]: the reactor's event source. Takes events off all zones' rings and turns them into work.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringvirtio::{Commands, EventSource};
use ringvisor::abi::shared;

use super::affinity::Affinity;
use super::counters::RingCounters;
use super::table::{Place, Table};
use crate::hv::Hypervisor;

/// The rings of all zones.
pub(super) struct Rings {
    hv: Arc<dyn Hypervisor>,
    table: Arc<Table>,
    /// A copy of the table's list, and its version.
    zones: Vec<Place>,
    version: u64,
    counters: Arc<RingCounters>,
    /// Whether the interrupt came since the rings were last read.
    woken: bool,
    affinity: Option<Affinity>,
}

impl Rings {
    /// Returns the rings of the zones in `table`. `cpu`: see [`crate::hv::Interrupt::cpu`].
    pub fn new(
        hv: Arc<dyn Hypervisor>,
        table: Arc<Table>,
        counters: Arc<RingCounters>,
        cpu: Option<File>,
    ) -> Self {
        Self {
            hv,
            table,
            zones: Vec::new(),
            version: 0,
            counters,
            woken: false,
            affinity: cpu.map(Affinity::new),
        }
    }
}

impl EventSource for Rings {
    fn on_wakeup(&mut self) {
        self.woken = true;
        self.counters.wakeups.add(1);
    }

    fn preferred_cpu(&mut self) -> Option<Option<usize>> {
        self.affinity.as_mut()?.ask()
    }

    fn collect(&mut self, commands: &mut Commands) {
        self.table.copy(&mut self.zones, &mut self.version);
        let mut taken = 0;
        for place in &self.zones {
            if let Some(zone) = &mut *place.lock() {
                taken += zone.collect(&self.hv, commands, &self.counters);
            }
        }
        self.counters.rounds.add(1);
        self.counters.entries.add(taken);
        if std::mem::take(&mut self.woken) && taken == 0 {
            self.counters.spurious_wakeups.add(1);
        }
    }

    fn has_events(&self) -> bool {
        self.zones.iter().any(|place| {
            let zone = place.lock();
            zone.as_ref().is_some_and(|zone| zone.has_events(&*self.hv))
        })
    }

    fn deadline(&self) -> Option<Duration> {
        let pauses = self
            .zones
            .iter()
            .filter_map(|place| place.lock().as_ref()?.budget.exhausted);
        Some(pauses.min()?.saturating_duration_since(Instant::now()))
    }

    fn on_busy_poll(&mut self, found: bool, time: Duration) {
        let counter = if found {
            &self.counters.polled
        } else {
            &self.counters.polls_without_work
        };
        counter.add(1);
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counters.polling_ns.add(time);
    }

    fn arm(&mut self) -> bool {
        // The first zones may have come before this source did.
        self.table.copy(&mut self.zones, &mut self.version);
        let hv = &*self.hv;
        let mut more = false;
        for place in &self.zones {
            more |= place.lock().as_mut().is_some_and(|zone| zone.arm(hv));
        }
        more
    }

    fn disarm(&mut self) {
        for place in &self.zones {
            let number = place.lock().as_ref().map(|zone| zone.number);
            let armed = number
                .and_then(armed_offset)
                .and_then(|offset| self.hv.shared().u32_at(offset));
            if let Some(armed) = armed {
                // A swap, as the consumer's own: see `ringvisor::ring`, "Orderings".
                armed.swap(0, Ordering::Relaxed);
            }
        }
    }
}

/// Returns the offset of a zone's armed flag in the shared page.
fn armed_offset(number: u8) -> Option<usize> {
    Some(shared::zone_window(number)? + shared::ARMED)
}
