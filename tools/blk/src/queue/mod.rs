//! A virtqueue of a block device at work: takes batches off the available ring, runs requests through an engine,
//! publishes what is done.
//!
//! A [`Queue`] is driven from outside by one thread: [`Queue::service`] after a notification, [`Queue::complete`] for
//! each finished operation, then [`Queue::publish`] once per round. [`crate::reactor`] does that; tests and the
//! simulator may do it themselves, with any [`Engine`]. Requests are numbered by their descriptor head, so the slots
//! are all allocated at set-up and each request is a small state machine in its slot.
//!
//! The second half of a request's life is in `complete`. What a driver must not do breaks the queue: no more is taken
//! from it, what is in flight ends, and the owner is asked once to set DEVICE_NEEDS_RESET.

mod complete;
mod fault;

use std::mem;
use std::sync::Arc;

pub use fault::{QueueFault, SetupError};

use crate::buffers::Buffers;
use crate::chain;
use crate::device::feature;
use crate::disk::Disk;
use crate::engine::{Engine, IoKind, IoOp, MAX_IOV};
use crate::inflight::{InflightArea, InflightLog};
use crate::memory::GuestRam;
use crate::request::{Header, Plan, plan};
use crate::ring::{RingAddresses, SplitRing};
use crate::stats::QueueStats;
use crate::steps::step;
use crate::virtio::{Status, VIRTIO_BLK_F_FLUSH, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Everything that makes a queue.
pub struct QueueSetup {
    /// The image.
    pub disk: Arc<Disk>,
    /// The guest's RAM.
    pub ram: Arc<GuestRam>,
    /// Size and areas, as the transport latched them.
    pub ring: RingAddresses,
    /// Features negotiated, by bit.
    pub features: u64,
    /// Where the in-flight log is.
    pub inflight: InflightArea,
    /// Changes with every reset of the device or the queue, and with nothing else: a log of this epoch is taken
    /// over, any other is emptied.
    pub epoch: u64,
    /// Raises the queue's used-buffer interrupt.
    pub notify: Box<dyn Fn() + Send>,
    /// Asks for DEVICE_NEEDS_RESET; called once, on the thread that drives the queue.
    pub needs_reset: Box<dyn Fn(&QueueFault) + Send>,
}

/// The part of a tag that tells operations of a queue apart: a descriptor head, or this for the shared `fdatasync`.
const SYNC_TAG: u16 = u16::MAX;
/// Bytes up to which a transfer from or to memory is done on the spot; larger ones can go on beside each other.
const IMMEDIATE_MAX: u64 = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transfer {
    Read,
    Write,
}

/// A request, in the slot of its head.
struct Slot {
    readable: Buffers,
    writable: Buffers,
    transfer: Transfer,
    offset: u64,
    /// Bytes transferred so far.
    moved: u64,
    retries: u8,
}

/// A virtqueue at work.
pub struct Queue {
    disk: Arc<Disk>,
    ring: SplitRing,
    log: InflightLog,
    slots: Vec<Slot>,
    notify: Box<dyn Fn() + Send>,
    needs_reset: Box<dyn Fn(&QueueFault) + Send>,
    stats: Arc<QueueStats>,
    indirect: bool,
    /// FLUSH is negotiated; else each write is durable before it completes (5.2.6.2).
    write_back: bool,
    next_avail: u16,
    used_idx: u16,
    /// Done since the last publication, with used lengths.
    done: Vec<(u16, u32)>,
    /// Requests started and not done.
    running: u16,
    /// Flushes that the running `fdatasync` answers, and those that came after its start.
    syncing: Vec<u16>,
    sync_next: Vec<u16>,
    sync_retries: u8,
    /// Heads to be run again after a take-over, then empty.
    restart: Vec<u16>,
    tag_base: u64,
    paused: bool,
    broken: bool,
    /// The next publication raises an interrupt whatever the driver wants: one may have been lost with the daemon.
    force_interrupt: bool,
}

impl Queue {
    /// Checks and resolves everything; takes over what the log says is in flight, which then starts at the first
    /// [`Self::service`].
    pub fn new(setup: QueueSetup) -> Result<Self, SetupError> {
        let QueueSetup {
            disk,
            ram,
            ring: at,
            features,
            inflight,
            epoch,
            notify,
            needs_reset,
        } = setup;
        let has = |number| features & feature(number) != 0;
        let ring = SplitRing::new(&ram, &at, has(VIRTIO_RING_F_EVENT_IDX))?;
        let (mut log, past) = InflightLog::open(&inflight, at.size, epoch)?;
        if let Some(idx) = past.republish {
            ring.publish_used(idx);
            step("published again");
            log.free_done();
            log.end_publish(idx);
            step("taken over");
        }
        let slots = (0..at.size).map(|_| Slot {
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram.clone()),
            transfer: Transfer::Read,
            offset: 0,
            moved: 0,
            retries: 0,
        });
        let size = usize::from(at.size);
        let mut done = Vec::with_capacity(size);
        done.extend(past.done);
        Ok(Self {
            slots: slots.collect(),
            disk,
            ring,
            log,
            notify,
            needs_reset,
            stats: Arc::default(),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            write_back: has(VIRTIO_BLK_F_FLUSH),
            next_avail: past.next_avail,
            used_idx: past.used_idx,
            done,
            running: 0,
            syncing: Vec::with_capacity(size),
            sync_next: Vec::with_capacity(size),
            sync_retries: 0,
            restart: past.restart,
            tag_base: 0,
            paused: false,
            broken: past.broken,
            force_interrupt: !past.fresh,
        })
    }

    /// The image.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<QueueStats> {
        &self.stats
    }

    /// Requests started and not done.
    #[must_use]
    pub fn running(&self) -> u16 {
        self.running
    }

    /// Whether the driver broke it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether it takes no new requests.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Stops or goes on taking new requests; what runs is not touched. After going on, call [`Self::service`].
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Sets the high bits of the tags of the queue's operations; the low 16 are its own.
    pub fn set_tag_base(&mut self, base: u64) {
        self.tag_base = base & !0xffff;
    }

    /// Takes all requests that are available and starts them. Returns how many.
    ///
    /// Bounded by the queue size: a head cannot come twice before a publication.
    pub fn service(&mut self, engine: &mut dyn Engine) -> u16 {
        let mut taken = 0_u16;
        if self.paused {
            return taken;
        }
        if !self.restart.is_empty() {
            taken = self.run_again(engine);
        }
        if self.broken {
            return taken;
        }
        self.ring.suppress_notifications();
        let mut idx = self.ring.avail_idx();
        while !self.broken {
            let pending = idx.wrapping_sub(self.next_avail);
            if pending == 0 {
                idx = self.ring.request_notifications(self.next_avail);
                if idx == self.next_avail {
                    break;
                }
                self.ring.suppress_notifications();
                continue;
            }
            if pending > self.ring.size() {
                self.fail(QueueFault::AvailIndex {
                    idx,
                    taken: self.next_avail,
                    size: self.ring.size(),
                });
                break;
            }
            self.stats.batches.add(1);
            for _ in 0..pending {
                let head = self.ring.avail_head(self.next_avail);
                if let Err(fault) = self.take(head, engine) {
                    self.fail(fault);
                    break;
                }
                taken = taken.wrapping_add(1);
            }
        }
        if taken == 0 {
            self.stats.spurious_kicks.add(1);
        }
        self.stats.batched.add(taken.into());
        self.stats.max_depth.raise_to(self.running.into());
        taken
    }

    /// Starts what an earlier daemon had started, in its order.
    fn run_again(&mut self, engine: &mut dyn Engine) -> u16 {
        let mut count = 0;
        for head in mem::take(&mut self.restart) {
            match self.parse(head) {
                Ok(plan) => self.start(head, plan, engine),
                Err(fault) => {
                    self.fail(fault);
                    break;
                }
            }
            self.stats.restarted.add(1);
            count += 1;
        }
        count
    }

    /// Takes one entry off the available ring.
    fn take(&mut self, head: u16, engine: &mut dyn Engine) -> Result<(), QueueFault> {
        if head >= self.ring.size() {
            return Err(QueueFault::Head(head));
        }
        if !self.log.is_free(head) {
            return Err(QueueFault::DuplicateHead(head));
        }
        let plan = self.parse(head)?;
        step("parsed");
        self.log.start(head);
        self.next_avail = self.next_avail.wrapping_add(1);
        step("logged");
        self.start(head, plan, engine);
        Ok(())
    }

    /// Reads the chain, once, into the head's slot.
    fn parse(&mut self, head: u16) -> Result<Plan, QueueFault> {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return Err(QueueFault::Head(head));
        };
        slot.readable.clear();
        slot.writable.clear();
        slot.transfer = Transfer::Read;
        slot.moved = 0;
        slot.retries = 0;
        chain::walk(
            &self.ring,
            head,
            self.indirect,
            &mut slot.readable,
            &mut slot.writable,
        )
        .map_err(|error| QueueFault::Chain(head, error))?;
        let mut header = [0; Header::SIZE];
        if !slot.readable.take_front(&mut header) {
            return Err(QueueFault::Header(head));
        }
        if !slot.writable.take_last() {
            return Err(QueueFault::NoStatus(head));
        }
        Ok(plan(
            Header::parse(header),
            slot.readable.total(),
            slot.writable.total(),
            self.disk.limits(),
        ))
    }

    fn start(&mut self, head: u16, plan: Plan, engine: &mut dyn Engine) {
        self.running += 1;
        match plan {
            Plan::Read(offset) => self.start_transfer(head, Transfer::Read, offset, engine),
            Plan::Write(offset) => self.start_transfer(head, Transfer::Write, offset, engine),
            Plan::Flush if self.syncing.is_empty() => {
                self.syncing.push(head);
                self.sync_retries = 0;
                self.push_sync(engine);
            }
            Plan::Flush => self.sync_next.push(head),
            Plan::GetId => {
                if let Some(slot) = self.slots.get_mut(usize::from(head)) {
                    slot.moved = slot.writable.write_front(self.disk.serial()) as u64;
                }
                self.stats.others.add(1);
                self.finish(head, Status::Ok);
            }
            Plan::Answer(status) => {
                if status == Status::Ok {
                    self.stats.others.add(1);
                }
                self.finish(head, status);
            }
        }
    }

    fn start_transfer(&mut self, head: u16, transfer: Transfer, offset: u64, engine: &mut dyn Engine) {
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.transfer = transfer;
            slot.offset = offset;
        }
        self.push_transfer(head, engine);
    }

    /// Gives what is left of a transfer to the engine. Adjacent requests of a batch would be merged here.
    fn push_transfer(&mut self, head: u16, engine: &mut dyn Engine) {
        let Some(slot) = self.slots.get(usize::from(head)) else {
            return;
        };
        let (list, kind) = match (slot.transfer, self.write_back) {
            (Transfer::Read, _) => (&slot.writable, IoKind::Read),
            (Transfer::Write, true) => (&slot.readable, IoKind::Write),
            (Transfer::Write, false) => (&slot.readable, IoKind::WriteDurable),
        };
        let parts = list.remaining();
        let op = IoOp {
            tag: self.tag_base | u64::from(head),
            fd: self.disk.fd(),
            kind,
            iov: parts.as_ptr(),
            count: parts.len().min(MAX_IOV) as u32,
            offset: slot.offset + slot.moved,
            len: list.total(),
            immediate: self.disk.is_memory() && list.total() <= IMMEDIATE_MAX,
        };
        self.stats.operations.add(1);
        // SAFETY: the slot's list is not touched before `complete` for this tag; the list keeps the RAM mapped and
        // `self.disk` the file open. Should the queue be dropped first, `drop` leaks all three.
        unsafe { engine.push(op) };
    }

    fn push_sync(&mut self, engine: &mut dyn Engine) {
        let op = IoOp {
            tag: self.tag_base | u64::from(SYNC_TAG),
            fd: self.disk.fd(),
            kind: IoKind::Sync,
            iov: std::ptr::null(),
            count: 0,
            offset: 0,
            len: 0,
            immediate: self.disk.is_memory(),
        };
        self.stats.operations.add(1);
        // SAFETY: no buffers; the file stays open as above.
        unsafe { engine.push(op) };
    }

    /// Publishes all that is done since the last time, with one store of the used index and at most one interrupt.
    /// Returns how many.
    pub fn publish(&mut self) -> usize {
        let count = self.done.len();
        if count > 0 {
            let old = self.used_idx;
            let mut idx = old;
            for &(head, len) in &self.done {
                self.ring.write_used(idx, head, len);
                idx = idx.wrapping_add(1);
            }
            step("used entries written");
            self.log.begin_publish(idx);
            step("publication logged");
            self.ring.publish_used(idx);
            step("published");
            for (head, _) in self.done.drain(..) {
                self.log.free(head);
                step("freed");
            }
            self.log.end_publish(idx);
            self.used_idx = idx;
            step("publication ended");
            self.stats.publications.add(1);
            self.force_interrupt |= self.ring.interrupt_wanted(old, idx);
            if !self.force_interrupt {
                self.stats.interrupts_suppressed.add(1);
            }
        }
        if mem::take(&mut self.force_interrupt) {
            self.stats.interrupts.add(1);
            (self.notify)();
        }
        count
    }

    /// For simulated kills: the queue may be dropped, with its memory, although requests run.
    ///
    /// # Safety
    /// No engine has operations of this queue any more.
    #[cfg(any(test, feature = "fakes"))]
    pub unsafe fn assume_drained(&mut self) {
        self.running = 0;
    }

    fn fail(&mut self, fault: QueueFault) {
        self.broken = true;
        self.log.set_broken();
        tracing::warn!(path = %self.disk.config().path.display(), %fault, "the guest's driver broke the queue");
        (self.needs_reset)(&fault);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.running > 0 {
            // Some engine may still write through these; better a leak than memory that is someone else's.
            mem::forget(mem::take(&mut self.slots));
            mem::forget(self.disk.clone());
        }
    }
}
