//! A virtqueue of a block device at work: takes batches off the available ring, runs requests through an engine,
//! publishes what is done.
//!
//! A [`Queue`] is driven from outside by one thread: [`Queue::service`] after a notification, [`Queue::complete`] for
//! each finished operation, then [`Queue::publish`] once per round. [`crate::reactor`] does that; tests and the
//! simulator may do it themselves, with any [`Engine`]. Requests are numbered by their descriptor head, so the slots
//! are all allocated at set-up and each request is a small state machine in its slot.
//!
//! Here requests are taken; `start` and `complete` have the two halves of their lives, `batch` says which go to the image
//! as one, `publish` tells the driver. What a driver must not do breaks the queue: no more is taken from it, what is in
//! flight ends, and the owner is asked once to set DEVICE_NEEDS_RESET. A file that fails may stop it
//! ([`crate::control::OnError`]), a limit may make it wait ([`Queue::deadline`]).

mod batch;
mod complete;
mod fault;
mod publish;
mod slot;
mod start;

use std::mem;
use std::sync::Arc;

pub use fault::{QueueFault, SetupError};

use crate::chain;
use crate::clock::Clock;
use crate::device::feature;
use crate::disk::Disk;
use crate::engine::Engine;
use crate::inflight::{InflightArea, InflightLog};
use crate::memory::GuestRam;
use crate::request::{Header, Negotiated, Plan, plan};
use crate::ring::{RingAddresses, SplitRing};
use crate::stats::QueueStats;
use crate::steps::step;
use crate::trace::{self, Kind, TraceId};
use crate::virtio::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use batch::Batch;
use publish::Signals;
use slot::{Cache, Slot, Work};
use start::MergePool;

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
/// Requests taken in one round, so that those of other queues and what is done get their turn.
const MAX_BATCH: u16 = 256;

/// A virtqueue at work.
pub struct Queue {
    disk: Arc<Disk>,
    ram: Arc<GuestRam>,
    ring: SplitRing,
    log: InflightLog,
    slots: Vec<Slot>,
    notify: Box<dyn Fn() + Send>,
    needs_reset: Box<dyn Fn(&QueueFault) + Send>,
    stats: Arc<QueueStats>,
    clock: Clock,
    /// When this round of work began.
    now: u64,
    /// When the driver first notified the queue of what was not taken yet, if it is known.
    notified_at: Option<u64>,
    /// When the requests that are being taken count as made.
    since: u64,
    indirect: bool,
    negotiated: Negotiated,
    cache: Cache,
    /// The cache's mode when it was last looked at.
    was_back: bool,
    next_avail: u16,
    used_idx: u16,
    /// Done since the last publication, with used lengths.
    done: Vec<(u16, u32)>,
    /// Transfers taken and not submitted: empty between calls.
    batch: Batch,
    merge: MergePool,
    /// Requests started and not done, but for those held.
    running: u16,
    /// Requests that failed and wait to be tried again; while there are any, no more are taken.
    held: Vec<u16>,
    retry_held: bool,
    /// Flushes that the running `fdatasync` answers, and those that came after its start.
    syncing: Vec<u16>,
    sync_next: Vec<u16>,
    sync_retries: u8,
    sync_pushed_at: u64,
    /// Heads to be run again after a take-over, then empty.
    restart: Vec<u16>,
    tag_base: u64,
    trace: TraceId,
    paused: bool,
    broken: bool,
    /// Whoever drives the queue looks at the available ring itself.
    quiet: bool,
    /// The driver notifies of the next request.
    listening: bool,
    /// The last round ended with requests left.
    more: bool,
    /// When a limit lets the next request pass.
    deadline: Option<u64>,
    signals: Signals,
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
        let cache = Cache::new(has(VIRTIO_BLK_F_FLUSH), has(VIRTIO_BLK_F_CONFIG_WCE));
        let size = usize::from(at.size);
        let mut done = Vec::with_capacity(size);
        let mut restart = Vec::new();
        if matches!(cache, Cache::Chosen) && !cache.is_back(&disk) {
            // The driver may have turned the cache off before the last daemon heard of it: nothing says that what it
            // has done is durable. It is done again.
            for (head, _) in past.done {
                log.start(head);
                step("started again");
                restart.push(head);
            }
        } else {
            done.extend(past.done);
        }
        restart.extend(past.restart);
        Ok(Self {
            slots: (0..at.size).map(|_| Slot::new(&ram)).collect(),
            was_back: cache.is_back(&disk),
            disk,
            ram,
            ring,
            log,
            notify,
            needs_reset,
            stats: Arc::default(),
            clock: Clock::Monotonic,
            now: 0,
            notified_at: None,
            since: 0,
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            negotiated: Negotiated {
                discard: has(VIRTIO_BLK_F_DISCARD),
                zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
            },
            cache,
            next_avail: past.next_avail,
            used_idx: past.used_idx,
            done,
            batch: Batch::new(size.min(MAX_BATCH.into())),
            merge: MergePool::default(),
            running: 0,
            held: Vec::with_capacity(size),
            retry_held: false,
            syncing: Vec::with_capacity(size),
            sync_next: Vec::with_capacity(size),
            sync_retries: 0,
            sync_pushed_at: 0,
            restart,
            tag_base: 0,
            trace: TraceId::default(),
            paused: false,
            broken: past.broken,
            quiet: false,
            listening: false,
            more: false,
            deadline: None,
            signals: Signals::new(past.used_idx, !past.fresh),
        })
    }

    /// The image.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The guest's RAM.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<QueueStats> {
        &self.stats
    }

    /// Requests started and not done, without those that are held after an error.
    #[must_use]
    pub fn running(&self) -> u16 {
        self.running
    }

    /// Requests that the driver has made available and that are not in the used ring: what it waits for.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        let made = self.ring.avail_idx().wrapping_sub(self.used_idx);
        made.min(u16::try_from(self.slots.len()).unwrap_or(u16::MAX))
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

    /// Whether a request that failed has stopped it, or its device is closed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        !self.held.is_empty() || self.disk.is_closed()
    }

    /// The next [`Self::service`] tries the requests again that have stopped it.
    pub fn retry(&mut self) {
        self.retry_held = true;
    }

    /// Whether the last [`Self::service`] took as many as it may in one round, and there are more.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// When to call [`Self::service`] again for requests that a limit has kept in the ring, by the queue's clock.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Replaces the clock.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Sets the high bits of the tags of the queue's operations; the low 16 are its own.
    pub fn set_tag_base(&mut self, base: u64) {
        self.tag_base = base & !0xffff;
    }

    /// Sets as what its steps are recorded.
    pub fn set_trace_id(&mut self, id: TraceId) {
        self.trace = id;
    }

    /// Whether [`Self::service`] leaves it at that when it has taken all, instead of asking the driver for a notification of the
    /// next request. Then look with [`Self::has_available`], call [`Self::signal_overdue`] when [`Self::interrupt_due`] says so,
    /// and [`Self::listen`] before going to sleep.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// Whether there is a request that the next [`Self::service`] would take.
    #[must_use]
    pub fn has_available(&self) -> bool {
        self.takes() && self.deadline.is_none() && self.ring.avail_idx() != self.next_avail
    }

    /// Whether it wants [`Self::listen`] to be called before the thread sleeps. Where it takes nothing now, it is serviced
    /// when it does again.
    #[must_use]
    pub fn wants_to_listen(&self) -> bool {
        !self.listening && self.takes() && self.deadline.is_none()
    }

    /// Asks the driver for a notification of the next request. `true`: there is one already.
    #[must_use]
    pub fn listen(&mut self) -> bool {
        self.request_notifications() != self.next_avail
    }

    fn request_notifications(&mut self) -> u16 {
        self.listening = true;
        self.ring.request_notifications(self.next_avail)
    }

    fn suppress_notifications(&mut self) {
        self.listening = false;
        self.ring.suppress_notifications();
    }

    /// Nothing keeps it from taking requests but a limit.
    fn takes(&self) -> bool {
        !self.paused && !self.broken && !self.is_stopped()
    }

    /// The driver notified the queue so many nanoseconds ago: the requests that are taken next are timed from there.
    pub fn set_notified(&mut self, ago: u64) {
        let at = self.clock.now().saturating_sub(ago);
        self.notified_at = Some(self.notified_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Takes the requests that are available and starts them, as many as one round and the disk's limits allow.
    /// Returns how many.
    pub fn service(&mut self, engine: &mut dyn Engine) -> u16 {
        trace::event(Kind::Service, self.trace, 0);
        self.now = self.clock.now();
        self.more = false;
        self.deadline = None;
        if self.disk.is_closed() {
            self.stats.held.set(self.restart.len() as u64);
            return 0;
        }
        self.follow_cache_mode(engine);
        if self.paused {
            return 0;
        }
        if mem::take(&mut self.retry_held) {
            self.try_held(engine);
        }
        if self.is_stopped() {
            return 0;
        }
        let mut taken = 0;
        if !self.restart.is_empty() {
            taken = self.run_again(engine);
        }
        if !self.broken {
            taken += self.take_batch(engine);
        }
        // Those of a batch whose end is bad, too: they are in the log.
        self.submit_batch(engine);
        self.stats.batched.add(taken.into());
        self.stats.max_batch.raise_to(taken.into());
        self.stats.max_depth.raise_to(self.running.into());
        taken
    }

    /// Starts what an earlier daemon had started, in its order.
    fn run_again(&mut self, engine: &mut dyn Engine) -> u16 {
        let mut count = 0;
        self.since = self.now;
        self.stats.held.set(0);
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

    /// Takes entries off the available ring. Bounded by the queue size, since a head cannot come twice before a
    /// publication, and by what a round may take.
    fn take_batch(&mut self, engine: &mut dyn Engine) -> u16 {
        let mut taken = 0_u16;
        self.since = self.notified_at.take().unwrap_or(self.now);
        self.suppress_notifications();
        let mut idx = self.ring.avail_idx();
        'round: loop {
            let pending = idx.wrapping_sub(self.next_avail);
            if pending == 0 {
                if self.quiet {
                    break;
                }
                idx = self.request_notifications();
                if idx == self.next_avail {
                    break;
                }
                self.suppress_notifications();
                continue;
            }
            if pending > self.ring.size() {
                self.fail(QueueFault::AvailIndex {
                    idx,
                    taken: self.next_avail,
                    size: self.ring.size(),
                });
                return taken;
            }
            self.stats.batches.add(1);
            for _ in 0..pending {
                if taken == MAX_BATCH {
                    self.more = true;
                    break 'round;
                }
                self.deadline = self.disk.control().throttle.wait(self.now);
                if self.deadline.is_some() {
                    self.stats.throttled.add(1);
                    break 'round;
                }
                let head = self.ring.avail_head(self.next_avail);
                if let Err(fault) = self.take(head, engine) {
                    self.fail(fault);
                    return taken;
                }
                taken += 1;
            }
        }
        if taken == 0 && self.deadline.is_none() {
            self.stats.spurious_kicks.add(1);
        }
        taken
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
        trace::event(Kind::Popped, self.trace, head.into());
        self.start(head, plan, engine);
        Ok(())
    }

    /// Reads the chain, once, into the head's slot.
    fn parse(&mut self, head: u16) -> Result<Plan, QueueFault> {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else {
            return Err(QueueFault::Head(head));
        };
        slot.clear(self.now, self.since);
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
        let (readable, writable) = (slot.readable.total(), slot.writable.total());
        let plan = plan(
            Header::parse(header),
            readable,
            writable,
            self.disk.limits(),
            self.negotiated,
        );
        let bytes = match plan {
            Plan::Read(_) => writable,
            Plan::Write(_) => readable,
            Plan::Flush | Plan::Ranges(..) => 0,
            Plan::GetId | Plan::Complete(_) => return Ok(plan),
        };
        self.disk.control().throttle.take(self.now, bytes);
        Ok(plan)
    }

    /// The engine has forgotten so many of the requests that run: nobody touches their buffers any more, and they do not complete.
    /// For a queue that leaves; its log has what was in flight.
    pub(crate) fn abandoned(&mut self, count: u16) {
        self.running = self.running.saturating_sub(count);
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
            mem::forget(mem::take(&mut self.merge));
            mem::forget(self.disk.clone());
        }
    }
}
