//! [`DeviceIo`]: one virtio device of a zone, its queues, and what its latched state asks for.
//!
//! EL2 tells only that a device has changed; the state is read by command. A reset that is pending holds the guest
//! on its store to Status until the daemon says that it no longer touches the guest's buffers (virtio 1.2, 2.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringblk::BlockStats;
use ringblk::{BlockQueue, Disk};
use ringvirtio::{Callback, GuestRam, InflightArea, QueueId, QueueSetup, RingAddresses};
use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::{DeviceState, QueueState};
use vm_memory::{GuestAddress, MmapRegion};

use super::Queues;
use super::drain::Drain;
use super::first::FirstRequest;
use super::report::QueueReport;
use crate::hv::{Hypervisor, Refusal};

/// Device status bit: the driver is ready (virtio 1.2, 2.1).
const DRIVER_OK: u32 = 4;
/// [`QueueState::ready`] of a queue in use.
const READY: u32 = 1;
/// [`QueueState::ready`] of a queue that waits to be let go.
const DISABLING: u32 = 2;
/// Offset of `capacity` in the configuration space (virtio 1.2, 5.2.4).
const CAPACITY: u16 = 0;
/// Bytes of a queue's in-flight log, whole pages.
pub const LOG_STRIDE: usize = InflightArea::bytes(ringblk::QUEUE_SIZE_MAX).next_multiple_of(4096);
/// An epoch that no queue has: opening a log with it empties the log.
const NO_EPOCH: u64 = u64::MAX;

/// What makes a device.
pub struct DeviceParts {
    /// Zone number.
    pub zone: u8,
    /// virtio slot.
    pub slot: u8,
    /// Queues.
    pub queues: usize,
    /// The image.
    pub disk: Arc<Disk>,
    /// The zone's RAM.
    pub ram: Arc<GuestRam>,
    /// In-flight logs of the zone; this device's begin at `slot * MAX_QUEUES * LOG_STRIDE`.
    pub log: Arc<MmapRegion>,
    /// How often the zone was started: part of the epoch of its logs.
    pub starts: u32,
}

/// One device and its queues.
pub struct DeviceIo {
    parts: DeviceParts,
    queues: Vec<ServedQueue>,
    /// Queues that the reactor has not let go of yet.
    drain: Drain,
    /// The reset that is being carried out.
    resetting: Option<u64>,
    /// The image is being exchanged: no queue is set up.
    held: bool,
}

#[derive(Default)]
struct ServedQueue {
    id: Option<QueueId>,
    /// EL2 is told as soon as the reactor has let go of it.
    stopping: Arc<AtomicBool>,
    /// Of this queue or the last one with its number.
    stats: Option<Arc<BlockStats>>,
}

/// All that is counted of one queue.
#[derive(Clone, Debug)]
pub struct QueueSnapshots {
    /// virtio slot of its device.
    pub slot: u8,
    /// Number in its device.
    pub queue: usize,
    /// Whether the guest uses it now.
    pub active: bool,
    /// Counters and histograms.
    pub stats: ringblk::BlockSnapshot,
}

impl DeviceIo {
    /// A device none of whose queues is set up.
    #[must_use]
    pub fn new(parts: DeviceParts) -> Self {
        let queues = (0..parts.queues.min(MAX_QUEUES))
            .map(|_| ServedQueue::default())
            .collect();
        Self {
            parts,
            queues,
            drain: Drain::default(),
            resetting: None,
            held: false,
        }
    }

    /// Its slot.
    #[must_use]
    pub fn slot(&self) -> u8 {
        self.parts.slot
    }

    /// The queue with this number, if it is served.
    #[must_use]
    pub fn queue(&self, number: u8) -> Option<QueueId> {
        self.queues.get(usize::from(number))?.id
    }

    /// Takes all its queues from the reactor; calls `then` once nothing of them is in flight.
    pub(crate) fn release(&mut self, queues: &mut impl Queues, then: Callback) {
        for served in &mut self.queues {
            if let Some(id) = served.id.take() {
                let leaving = self.drain.begin();
                queues.remove(id, Box::new(move || drop(leaving)));
            }
        }
        self.drain.when_empty(then);
    }

    /// As [`Self::release`], and sets no queue up again before [`Self::exchange`] or [`Self::go_on`].
    pub(crate) fn hold(&mut self, queues: &mut impl Queues, then: Callback) {
        self.held = true;
        self.release(queues, then);
    }

    /// Another image, after [`Self::hold`]. Queues set up from now on use it; what the log says is in flight is run
    /// again, on this one. Gives the one before: where it was the last to have it open, to close it takes a while.
    pub(crate) fn exchange(&mut self, disk: Arc<Disk>) -> Arc<Disk> {
        let before = std::mem::replace(&mut self.parts.disk, disk);
        self.go_on();
        before
    }

    /// Queues may be set up again, after [`Self::hold`].
    pub(crate) fn go_on(&mut self) {
        self.held = false;
    }

    /// Its queues that are served.
    pub(crate) fn ids(&self) -> impl Iterator<Item = QueueId> {
        self.queues.iter().filter_map(|served| served.id)
    }

    /// Its image.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.parts.disk
    }

    /// The zone starts for the `starts`-th time.
    pub fn begin_anew(&mut self, starts: u32) {
        self.parts.starts = starts;
        self.resetting = None;
    }

    /// Shows the guest the image's capacity (virtio 1.2, 5.2.4), which interrupts it if that is a new one.
    ///
    /// # Errors
    /// EL2 refused.
    pub(crate) fn announce_capacity(&self, hv: &dyn Hypervisor) -> Result<(), Refusal> {
        let capacity = self.parts.disk.capacity().to_le_bytes();
        hv.device_config(self.parts.zone, self.parts.slot, CAPACITY, &capacity)
    }

    /// Looks at the device's latched state and does what it asks for.
    pub fn refresh(&mut self, hv: &Arc<dyn Hypervisor>, queues: &mut impl Queues) {
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
                self.reset(hv, state.reset_generation, queues);
            }
            return;
        }
        self.resetting = None;
        if self.held {
            return;
        }
        // `writeback`, the one byte that a driver writes (virtio 1.2, 5.2.5): before queues are made, which look at it.
        if ringblk::device::driver_wrote(&self.parts.disk, state.features, &state.config) {
            self.ids().for_each(|id| queues.kick(id));
        }
        for number in 0..self.queues.len() {
            self.refresh_queue(hv, number, &state, queues);
        }
    }

    fn reset(&mut self, hv: &Arc<dyn Hypervisor>, generation: u64, queues: &mut impl Queues) {
        let (zone, slot) = (self.parts.zone, self.parts.slot);
        tracing::debug!(zone, slot, generation, "device reset");
        self.resetting = Some(generation);
        let hv = hv.clone();
        let done = move || {
            if let Err(error) = (&*hv as &dyn Hypervisor).device_quiesced(zone, slot, generation) {
                tracing::warn!(zone, slot, %error, "cannot complete a device's reset");
            }
        };
        self.release(queues, Box::new(done));
    }

    fn refresh_queue(
        &mut self,
        hv: &Arc<dyn Hypervisor>,
        number: usize,
        state: &DeviceState,
        queues: &mut impl Queues,
    ) {
        let (Some(latched), Some(served)) = (state.queue.get(number), self.queues.get_mut(number)) else {
            return;
        };
        match (latched.ready, served.id) {
            (READY, None) if state.status & DRIVER_OK != 0 => {
                match make(&self.parts, hv, number, latched, state) {
                    Ok(queue) => {
                        served.stats = Some(queue.stats().clone());
                        served.id = Some(queues.add(Box::new(queue)));
                    }
                    Err(error) => {
                        let (zone, slot) = (self.parts.zone, self.parts.slot);
                        tracing::warn!(zone, slot, queue = number, %error, "cannot serve a queue");
                        let _ = (&**hv as &dyn Hypervisor).device_needs_reset(zone, slot);
                    }
                }
            }
            // Asked for already; the state was read for another reason.
            (DISABLING, _) if served.stopping.load(Ordering::Acquire) => {}
            (DISABLING, id) => {
                let (zone, slot, generation) = (self.parts.zone, self.parts.slot, state.reset_generation);
                let area = area(&self.parts, number);
                let (size, hv) = (latched.size as u16, hv.clone());
                let stopping = served.stopping.clone();
                stopping.store(true, Ordering::Release);
                let done = Box::new(move || {
                    // The queue's next life begins with an empty log, in the same epoch.
                    drop(ringvirtio::inflight::InflightLog::open(&area, size, NO_EPOCH));
                    let queue = u16::try_from(number).unwrap_or(u16::MAX);
                    let _ = (&*hv as &dyn Hypervisor).queue_quiesced(zone, slot, generation, queue);
                    stopping.store(false, Ordering::Release);
                });
                served.id = None;
                if let Some(id) = id {
                    let leaving = self.drain.begin();
                    queues.remove(id, Box::new(move || drop(leaving)));
                }
                self.drain.when_empty(done);
            }
            _ => {}
        }
    }

    /// Everything that is counted of its queues.
    #[must_use]
    pub fn snapshots(&self) -> Vec<QueueSnapshots> {
        let one = |(number, served): (usize, &ServedQueue)| {
            let stats = served.stats.as_ref()?.snapshot();
            Some(QueueSnapshots {
                slot: self.parts.slot,
                queue: number,
                active: served.id.is_some(),
                stats,
            })
        };
        self.queues.iter().enumerate().filter_map(one).collect()
    }

    /// Counters of its queues.
    #[must_use]
    pub fn report(&self) -> Vec<QueueReport> {
        let one = |(number, served): (usize, &ServedQueue)| {
            let stats = served.stats.as_ref()?.snapshot();
            Some(QueueReport::new(
                self.parts.slot,
                number,
                served.id.is_some(),
                &stats,
            ))
        };
        self.queues.iter().enumerate().filter_map(one).collect()
    }
}

/// Where the log of a queue lies.
fn area(parts: &DeviceParts, number: usize) -> InflightArea {
    let index = usize::from(parts.slot) * MAX_QUEUES + number;
    InflightArea {
        mapping: parts.log.clone(),
        offset: index * LOG_STRIDE,
    }
}

fn make(
    parts: &DeviceParts,
    hv: &Arc<dyn Hypervisor>,
    number: usize,
    latched: &QueueState,
    state: &DeviceState,
) -> Result<BlockQueue, ringvirtio::SetupError> {
    let (zone, slot) = (parts.zone, parts.slot);
    let (bell, breaker) = (hv.clone(), hv.clone());
    let first = FirstRequest::new(zone, slot, number);
    let reporter = first.clone();
    let setup = QueueSetup {
        ram: parts.ram.clone(),
        ring: RingAddresses {
            // EL2 has checked it against QueueNumMax; 0 is refused by the queue.
            size: u16::try_from(latched.size).unwrap_or(0),
            desc: GuestAddress(latched.desc),
            avail: GuestAddress(latched.driver),
            used: GuestAddress(latched.device),
        },
        features: state.features,
        inflight: area(parts, number),
        epoch: u64::from(parts.starts) << 40 | state.reset_generation & 0xff_ffff_ffff,
        notify_driver: Box::new(move || {
            bell.used_buffer(zone, slot);
            reporter.published();
        }),
        needs_reset: Box::new(move |fault| {
            tracing::warn!(zone, slot, queue = number, %fault, "the guest broke a queue");
            let _ = (&*breaker as &dyn Hypervisor).device_needs_reset(zone, slot);
        }),
    };
    let mut queue = BlockQueue::new(parts.disk.clone(), setup)?;
    queue
        .virtqueue_mut()
        .set_trace_id(ringvirtio::trace::TraceId::new([
            zone,
            slot,
            u8::try_from(number).unwrap_or(u8::MAX),
        ]));
    first.watch(&queue);
    tracing::debug!(zone, slot, queue = number, "queue is set up");
    Ok(queue)
}
