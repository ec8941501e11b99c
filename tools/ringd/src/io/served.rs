//! [`ServedDevice`]: one virtio device of a zone, its queues, and what its latched state asks for.
//!
//! EL2 reports only that a device has changed; the state is read by command. While a reset is pending, the
//! guest's store to Device Status does not complete before the daemon has reported that it no longer uses the
//! guest's buffers (virtio 1.2, 2.4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ringvirtio::inflight::{InflightLog, RESET_BITS};
use ringvirtio::trace::TraceId;
use ringvirtio::{
    Callback, Commands, GuestRam, QueueHandler, QueueId, QueueSetup, RingAddresses, SetupError,
};
use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::{DeviceState, QueueState};
use vm_memory::{GuestAddress, MmapRegion};

use super::drain::Drain;
use crate::device::backend::{Device, QueueCounters, QueueSnapshot};
use crate::device::inflight;
use crate::hv::{Hypervisor, Refusal};

/// Device Status bit: the driver is ready (virtio 1.2, 2.1).
const DRIVER_OK: u32 = 4;
/// [`QueueState::ready`] of a queue in use.
const READY: u32 = 1;
/// [`QueueState::ready`] of a queue whose reset waits for the daemon.
const DISABLING: u32 = 2;
/// A reset generation that no queue has: opening a log with it empties the log.
const NO_GENERATION: u64 = (1 << RESET_BITS) - 1;

/// What a served device is made of.
pub struct DeviceParts {
    /// EL2's number of the zone.
    pub zone: u8,
    /// virtio slot.
    pub slot: u8,
    /// Number of queues.
    pub queues: usize,
    /// The open device.
    pub device: Device,
    /// The zone's RAM.
    pub ram: Arc<GuestRam>,
    /// The zone's file with in-flight logs.
    pub log: Arc<MmapRegion>,
    /// How often the zone was started: part of the epoch of its logs.
    pub starts: u32,
}

/// A device and its queues.
pub struct ServedDevice {
    parts: DeviceParts,
    queues: Vec<ServedQueue>,
    /// Queues that are still leaving the reactor.
    drain: Drain,
    /// Generation of the reset that is being carried out.
    resetting: Option<u64>,
    /// Whether the device is quiesced: no queue is set up.
    quiesced: bool,
}

#[derive(Default)]
struct ServedQueue {
    id: Option<QueueId>,
    /// Whether EL2 will be notified as soon as the queue has left the reactor.
    stopping: Arc<AtomicBool>,
    /// Counters of this queue or of the last one with its number.
    counters: Option<QueueCounters>,
    /// Notifications that found nothing, as [`ServedDevice::spurious`] last saw them.
    spurious: u64,
}

impl ServedDevice {
    /// Returns a device none of whose queues is set up.
    pub fn new(parts: DeviceParts) -> Self {
        let queues = (0..parts.queues.min(MAX_QUEUES))
            .map(|_| ServedQueue::default())
            .collect();
        Self {
            parts,
            queues,
            drain: Drain::default(),
            resetting: None,
            quiesced: false,
        }
    }

    /// Returns its slot.
    pub const fn slot(&self) -> u8 {
        self.parts.slot
    }

    /// Returns the queue with this number, if it is served.
    pub fn queue(&self, number: u8) -> Option<QueueId> {
        self.queues.get(usize::from(number))?.id
    }

    /// Returns how many notifications of a queue have found nothing since the last call.
    pub fn spurious(&mut self, number: u8) -> u64 {
        let Some(served) = self.queues.get_mut(usize::from(number)) else {
            return 0;
        };
        let now = served
            .counters
            .as_ref()
            .map_or(0, QueueCounters::spurious_notifications);
        // A new queue begins at 0.
        now.saturating_sub(std::mem::replace(&mut served.spurious, now))
    }

    /// Removes all its queues from the reactor; calls `then` once nothing of them is in flight, and no other
    /// process serves them.
    pub(super) fn remove_queues(&mut self, commands: &mut Commands, then: Callback) {
        for served in &mut self.queues {
            if let Some(id) = served.id.take() {
                let leaving = self.drain.begin();
                commands.remove(id, Box::new(move || drop(leaving)));
            }
        }
        self.release(None);
        self.drain.when_empty(then);
    }

    /// Takes a queue, or all, from the process that serves the device, if there is one.
    fn release(&mut self, queue: Option<u16>) {
        let leaving = self.drain.begin();
        self.parts.device.release(queue, Box::new(move || drop(leaving)));
    }

    /// As [`Self::remove_queues`], and sets no queue up before [`Self::exchange`] or [`Self::unquiesce`].
    pub(super) fn quiesce(&mut self, commands: &mut Commands, then: Callback) {
        self.quiesced = true;
        self.remove_queues(commands, then);
    }

    /// Replaces the open device, after [`Self::quiesce`], and returns the one before: where this is its last
    /// reference, closing it takes a while. What the log has in flight is run again on the new one.
    pub(super) fn exchange(&mut self, device: Device) -> Device {
        let before = std::mem::replace(&mut self.parts.device, device);
        self.unquiesce();
        before
    }

    /// Lets queues be set up again, after [`Self::quiesce`].
    pub(super) fn unquiesce(&mut self) {
        self.quiesced = false;
    }

    /// Returns its queues that are served.
    pub(super) fn ids(&self) -> impl Iterator<Item = QueueId> {
        self.queues.iter().filter_map(|served| served.id)
    }

    /// Returns the open device.
    pub const fn device(&self) -> &Device {
        &self.parts.device
    }

    /// The zone starts for the `starts`-th time.
    pub(super) fn restart(&mut self, starts: u32) {
        self.parts.starts = starts;
        self.resetting = None;
    }

    /// Shows the guest the field of the configuration space that may have changed, which notifies it if it
    /// has.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn show_config(&self, hv: &dyn Hypervisor) -> Result<(), Refusal> {
        let Some((offset, bytes)) = self.parts.device.live_config() else {
            return Ok(());
        };
        hv.device_config(self.parts.zone, self.parts.slot, offset, &bytes)
    }

    /// Reads the device's latched state and does what it asks for.
    pub fn refresh(&mut self, hv: &Arc<dyn Hypervisor>, commands: &mut Commands) {
        let (zone, slot) = (self.parts.zone, self.parts.slot);
        let state = match (&**hv as &dyn Hypervisor).device_state(zone, slot) {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(zone, slot, %error, "cannot read a device's state");
                return;
            }
        };
        if state.reset_pending != 0 {
            if self.resetting != Some(state.reset_generation) {
                self.reset(hv, state.reset_generation, commands);
            }
            return;
        }
        self.resetting = None;
        if self.quiesced {
            return;
        }
        // Before queues are made, which depend on it.
        if self
            .parts
            .device
            .driver_wrote_config(state.features, &state.config)
        {
            self.ids().for_each(|id| commands.schedule(id));
        }
        for number in 0..self.queues.len() {
            self.refresh_queue(hv, number, &state, commands);
        }
    }

    fn reset(&mut self, hv: &Arc<dyn Hypervisor>, generation: u64, commands: &mut Commands) {
        let (zone, slot) = (self.parts.zone, self.parts.slot);
        tracing::debug!(zone, slot, generation, "device reset");
        self.resetting = Some(generation);
        let (shown, hv) = (hv.clone(), hv.clone());
        let done = move || {
            if let Err(error) = (&*hv as &dyn Hypervisor).device_quiesced(zone, slot, generation) {
                tracing::warn!(zone, slot, %error, "cannot complete a device's reset");
            }
        };
        self.remove_queues(commands, Box::new(done));
        // What the driver has changed is as new.
        if let Err(error) = self.show_config(&*shown) {
            tracing::warn!(zone, slot, %error, "cannot show a device's configuration");
        }
    }

    fn refresh_queue(
        &mut self,
        hv: &Arc<dyn Hypervisor>,
        number: usize,
        state: &DeviceState,
        commands: &mut Commands,
    ) {
        let (Some(latched), Some(served)) = (state.queue.get(number), self.queues.get_mut(number)) else {
            return;
        };
        match (latched.ready, served.id) {
            (READY, None) if state.status & DRIVER_OK != 0 => {
                match make(&self.parts, hv, number, latched, state) {
                    Ok((queue, counters)) => {
                        served.counters = Some(counters);
                        served.id = Some(commands.add(queue));
                    }
                    Err(error) => {
                        let (zone, slot) = (self.parts.zone, self.parts.slot);
                        tracing::warn!(zone, slot, queue = number, %error, "cannot serve a queue");
                        let _ = (&**hv as &dyn Hypervisor).device_needs_reset(zone, slot);
                    }
                }
            }
            // It is stopping already; the state was read for another reason.
            (DISABLING, _) if served.stopping.load(Ordering::Acquire) => {}
            (DISABLING, id) => {
                let (zone, slot, generation) = (self.parts.zone, self.parts.slot, state.reset_generation);
                let (size, hv) = (latched.size as u16, hv.clone());
                let area = inflight::area(&self.parts.log, slot, number, size);
                let epoch = epoch(&self.parts, NO_GENERATION);
                let stopping = served.stopping.clone();
                stopping.store(true, Ordering::Release);
                let done = Box::new(move || {
                    // The queue's next life begins with an empty log, in the same epoch.
                    drop(area.map(|area| InflightLog::open(&area, size, epoch)));
                    let queue = u16::try_from(number).unwrap_or(u16::MAX);
                    let _ = (&*hv as &dyn Hypervisor).queue_quiesced(zone, slot, generation, queue);
                    stopping.store(false, Ordering::Release);
                });
                served.id = None;
                if let Some(id) = id {
                    let leaving = self.drain.begin();
                    commands.remove(id, Box::new(move || drop(leaving)));
                }
                self.release(u16::try_from(number).ok());
                self.drain.when_empty(done);
            }
            _ => {}
        }
    }

    /// Returns its queues that are or were in use, with their counters.
    pub fn snapshots(&self) -> Vec<QueueSnapshot> {
        let one = |(queue, served): (usize, &ServedQueue)| {
            Some(QueueSnapshot {
                queue,
                active: served.id.is_some(),
                counters: served.counters.as_ref()?.snapshot(),
            })
        };
        self.queues.iter().enumerate().filter_map(one).collect()
    }
}

/// Returns the epoch of a device's queues: which start of the zone, and which reset of the device.
fn epoch(parts: &DeviceParts, generation: u64) -> u64 {
    u64::from(parts.starts) << RESET_BITS | generation & NO_GENERATION
}

fn make(
    parts: &DeviceParts,
    hv: &Arc<dyn Hypervisor>,
    number: usize,
    latched: &QueueState,
    state: &DeviceState,
) -> Result<(Box<dyn QueueHandler>, QueueCounters), SetupError> {
    let (zone, slot) = (parts.zone, parts.slot);
    let (notifier, breaker) = (hv.clone(), hv.clone());
    let first = FirstRequest::new(zone, slot, number);
    let reporter = first.clone();
    // EL2 has checked it against QueueNumMax; 0 is refused by the queue.
    let size = u16::try_from(latched.size).unwrap_or(0);
    let index = u16::try_from(number).unwrap_or(u16::MAX);
    let setup = QueueSetup {
        ram: parts.ram.clone(),
        ring: RingAddresses {
            size,
            desc: GuestAddress(latched.desc),
            avail: GuestAddress(latched.driver),
            used: GuestAddress(latched.device),
        },
        features: state.features,
        inflight: inflight::area(&parts.log, slot, number, size)?,
        epoch: epoch(parts, state.reset_generation),
        notify_driver: Box::new(move || {
            notifier.used_buffer(zone, slot);
            reporter.published();
        }),
        needs_reset: Box::new(move |fault| {
            tracing::warn!(
                zone,
                slot,
                "queue {number}: driver violated the virtio specification: {fault}"
            );
            let _ = (&*breaker as &dyn Hypervisor).device_needs_reset(zone, slot);
        }),
    };
    let (mut queue, counters) = parts.device.queue(index, setup)?;
    let id = u8::try_from(number).unwrap_or(u8::MAX);
    queue.queue_mut().trace_id = TraceId::new([zone, slot, id]);
    first.watch(counters.clone(), queue.queue().outstanding());
    tracing::debug!(zone, slot, queue = number, "queue is set up");
    Ok((queue, counters))
}

/// Logs once that a queue's first request has completed: after a take-over, that its device is served.
pub(super) struct FirstRequest {
    zone: u8,
    slot: u8,
    queue: usize,
    begin: Instant,
    /// The queue's counters, and how many requests were outstanding when it was set up.
    watched: OnceLock<(QueueCounters, u16)>,
    logged: AtomicBool,
}

impl FirstRequest {
    /// Returns one for a queue that is being set up.
    pub fn new(zone: u8, slot: u8, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            zone,
            slot,
            queue,
            begin: Instant::now(),
            watched: OnceLock::new(),
            logged: AtomicBool::new(false),
        })
    }

    /// Sets the queue, before it is served.
    pub fn watch(&self, counters: QueueCounters, outstanding: u16) {
        let _ = self.watched.set((counters, outstanding));
    }

    /// A used buffer notification was sent: for a request, or after a take-over maybe for nothing.
    pub fn published(&self) {
        if self.logged.load(Ordering::Relaxed) {
            return;
        }
        let Some((counters, found)) = self.watched.get() else {
            return;
        };
        if counters.has_completed() {
            self.logged.store(true, Ordering::Relaxed);
            let (zone, slot, queue) = (self.zone, self.slot, self.queue);
            // None found: the guest had nothing to wait for, and the time says nothing of the daemon.
            tracing::info!(zone, slot, queue, found, after = ?self.begin.elapsed(), "first request completed");
        }
    }
}
