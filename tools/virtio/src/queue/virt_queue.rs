//! [`VirtQueue`] itself: its parts in step with each other, for one thread.
//!
//! A device pops heads in rounds ([`VirtQueue::begin_round`], [`VirtQueue::has_next`], [`VirtQueue::peek`],
//! [`VirtQueue::walk`], [`VirtQueue::accept`]), completes them in any order ([`VirtQueue::complete`]) and
//! publishes once per round ([`VirtQueue::publish`]). A driver's breach of the specification breaks the queue
//! ([`VirtQueue::fail`]): no more is popped, what is in flight completes, and DEVICE_NEEDS_RESET is asked for
//! once.

use std::mem;
use std::sync::Arc;

use super::coalescer::{Coalescer, Situation};
use super::notifications::NotificationControl;
use super::used::UsedRing;
use super::{QueueFault, SetupError};
use crate::buffers::Buffers;
use crate::chain;
use crate::clock::Clock;
use crate::inflight::{InflightArea, InflightLog};
use crate::memory::GuestRam;
use crate::ring::{RingAddresses, SplitRing};
use crate::stats::QueueStats;
use crate::steps::step;
use crate::trace::{self, Kind, TraceId};
use crate::virtio::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature};

/// Requests popped in one round, so that other queues and completions get their turn.
pub const MAX_BATCH: u16 = 256;

/// Everything that makes a queue.
pub struct QueueSetup {
    /// The guest's RAM.
    pub ram: Arc<GuestRam>,
    /// Size and areas, as the transport latched them.
    pub ring: RingAddresses,
    /// Features negotiated, by bit.
    pub features: u64,
    /// Where the in-flight log is.
    pub inflight: InflightArea,
    /// Changes with every reset of the device or the queue, and with nothing else: a log of this epoch is
    /// taken over, any other is emptied.
    pub epoch: u64,
    /// Sends the queue's used buffer notification.
    pub notify_driver: Box<dyn Fn() + Send>,
    /// Asks for DEVICE_NEEDS_RESET; called once, on the thread that drives the queue.
    pub needs_reset: Box<dyn Fn(&QueueFault) + Send>,
}

/// A split virtqueue of a device.
pub struct VirtQueue {
    ring: SplitRing,
    log: InflightLog,
    notifications: NotificationControl,
    used: UsedRing,
    coalescer: Coalescer,
    notify_driver: Box<dyn Fn() + Send>,
    needs_reset: Box<dyn Fn(&QueueFault) + Send>,
    stats: Arc<QueueStats>,
    /// The clock of all times of the queue.
    pub clock: Clock,
    /// When this round of work began.
    now: u64,
    /// When the driver first notified of what was not popped yet, if it is known.
    notified_at: Option<u64>,
    /// When the requests that are being popped became available.
    available_at: u64,
    indirect: bool,
    /// Requests started and not completed, but for those that the device holds.
    in_flight: u16,
    /// Heads to be run again after a take-over, then empty.
    restart: Vec<u16>,
    /// The high bits of the tags of the queue's operations; the low 16 are the device's.
    pub tag_base: u64,
    /// The id used in trace events.
    pub trace_id: TraceId,
    /// What log lines call the queue's device.
    pub name: String,
    /// Popping is paused; what is in flight continues. After resuming, the queue must be serviced.
    pub paused: bool,
    broken: bool,
    /// The device has stopped popping, on its own account.
    pub stopped: bool,
    /// Popped in this round.
    popped: u16,
    /// The last round ended with requests left.
    more: bool,
    /// When a limit lets the next request pass.
    deadline: Option<u64>,
}

impl VirtQueue {
    /// Checks and resolves everything. Takes over what the log says is in flight ([`Self::take_restart`]).
    ///
    /// # Errors
    /// Addresses, size or log are bad.
    pub fn new(setup: QueueSetup) -> Result<Self, SetupError> {
        let has = |number| setup.features & feature(number) != 0;
        let at = setup.ring;
        let ring = SplitRing::new(&setup.ram, &at, has(VIRTIO_RING_F_EVENT_IDX))?;
        let (mut log, past) = InflightLog::open(&setup.inflight, at.size, setup.epoch)?;
        if let Some(idx) = past.republish {
            ring.publish_used(idx);
            step("published again");
            log.free_done();
            log.end_publish(idx);
            step("taken over");
        }
        Ok(Self {
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            ring,
            log,
            notifications: NotificationControl::new(past.next_avail),
            used: UsedRing::new(at.size, past.used_idx, past.done),
            coalescer: Coalescer::new(past.used_idx, !past.fresh),
            notify_driver: setup.notify_driver,
            needs_reset: setup.needs_reset,
            stats: Arc::default(),
            clock: Clock::Monotonic,
            now: 0,
            notified_at: None,
            available_at: 0,
            in_flight: 0,
            restart: past.restart,
            tag_base: 0,
            trace_id: TraceId::default(),
            name: String::new(),
            paused: false,
            broken: past.broken,
            stopped: false,
            popped: 0,
            more: false,
            deadline: None,
        })
    }

    /// Returns the guest's RAM.
    #[inline]
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.ring.ram()
    }

    /// Returns the queue size.
    #[inline]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Returns the counters, which stay readable after the queue is gone.
    pub fn stats(&self) -> &Arc<QueueStats> {
        &self.stats
    }

    /// Returns the number of requests started and not completed, without those that the device holds.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns the number of requests that the driver has made available and that are not in the used ring.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.ring
            .avail_idx()
            .wrapping_sub(self.used.idx)
            .min(self.ring.size())
    }

    /// Returns whether the log says that completed requests may be lost and the driver has not heard of it.
    pub fn is_lost(&self) -> bool {
        self.log.is_lost()
    }

    /// Records in the log whether completed requests may be lost and the driver has not heard of it.
    pub fn set_lost(&mut self, lost: bool) {
        self.log.set_lost(lost);
    }

    /// Returns whether the driver broke the queue.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Returns whether the last round popped as many as it may, and there are more.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Returns when to service the queue again for requests that a limit has kept in the ring, by the queue's
    /// clock.
    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Returns when this round of work began, in nanoseconds of the queue's clock.
    #[inline]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Returns when the requests that are being popped became available: when the driver notified of them, if
    /// that is known.
    #[inline]
    pub fn available_at(&self) -> u64 {
        self.available_at
    }

    /// Records a trace event of a request.
    #[inline(always)]
    pub fn trace(&self, kind: Kind, head: u16) {
        trace::event(kind, self.trace_id, head.into());
    }

    /// Sets whether the available ring is polled ([`Self::has_available`]): then a round that has popped
    /// everything leaves notifications disabled. The caller then sends overdue interrupts
    /// ([`Self::signal_overdue`]) and enables notifications before it sleeps.
    pub fn set_polled(&mut self, polled: bool) {
        self.notifications.polled = polled;
    }

    /// Returns whether there is a request that the next round would pop.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.pops() && self.deadline.is_none() && self.notifications.has_available(&self.ring)
    }

    /// Returns whether [`Self::enable_notifications`] must be called before the thread sleeps. A queue that
    /// pops nothing now is serviced when it does again.
    #[inline]
    pub fn wants_notifications(&self) -> bool {
        !self.notifications.enabled && self.pops() && self.deadline.is_none()
    }

    /// Asks the driver for a notification of the next request. Returns whether a request is already
    /// available.
    #[must_use]
    pub fn enable_notifications(&mut self) -> bool {
        self.notifications.enable(&self.ring)
    }

    /// Only a limit can keep the queue from popping.
    #[inline]
    fn pops(&self) -> bool {
        !self.paused && !self.broken && !self.stopped
    }

    /// The driver notified the queue `ago` nanoseconds ago: the requests popped next are timed from there.
    pub fn set_notified(&mut self, ago: u64) {
        let at = self.clock.now().saturating_sub(ago);
        self.notified_at = Some(self.notified_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Begins a service of the queue: reads the clock and forgets the last round.
    #[inline]
    pub fn begin_service(&mut self) {
        trace::event(Kind::Service, self.trace_id, 0);
        self.now = self.clock.now();
        self.more = false;
        self.deadline = None;
        self.popped = 0;
    }

    /// Begins the handling of a completion: reads the clock.
    #[inline]
    pub fn begin_complete(&mut self) {
        self.now = self.clock.now();
    }

    /// Ends a service: counts what it popped and ran again.
    #[inline]
    pub fn end_service(&mut self, restarted: u16) -> u16 {
        let count = self.popped + restarted;
        self.stats.batched.add(count.into());
        self.stats.max_batch.raise_to(count.into());
        self.stats.max_depth.raise_to(self.in_flight.into());
        count
    }

    /// Returns the number of heads that [`Self::take_restart`] would return.
    #[inline]
    pub fn restarts(&self) -> usize {
        self.restart.len()
    }

    /// Returns the heads that an earlier daemon had started, in its order, to be run again; once.
    #[must_use]
    pub fn take_restart(&mut self) -> Vec<u16> {
        self.available_at = self.now;
        mem::take(&mut self.restart)
    }

    /// After a take-over: what was complete and not published is run again, too, before all else.
    pub fn restart_completed(&mut self) {
        let mut restart = Vec::new();
        while let Some(head) = self.used.take_first() {
            self.log.start(head);
            step("started again");
            restart.push(head);
        }
        restart.append(&mut self.restart);
        self.restart = restart;
    }

    /// Begins a round of popping: disables notifications, reads the available index.
    #[inline]
    pub fn begin_round(&mut self) {
        self.available_at = self.notified_at.take().unwrap_or(self.now);
        let found = self.notifications.begin(&self.ring);
        self.count_batch(found);
    }

    #[inline]
    fn count_batch(&mut self, found: Result<bool, QueueFault>) -> bool {
        match found {
            Ok(true) => self.stats.batches.add(1),
            Ok(false) => return false,
            Err(fault) => self.fail(fault),
        }
        !self.broken
    }

    /// Returns whether there is another entry to pop in this round. Bounded by the queue size, since a head
    /// cannot come twice before a publication, and by [`MAX_BATCH`].
    #[inline]
    pub fn has_next(&mut self) -> bool {
        if self.broken {
            return false;
        }
        if self.notifications.is_batch_popped() {
            let found = self.notifications.refill(&self.ring);
            if !self.count_batch(found) {
                return false;
            }
        }
        self.more = self.popped == MAX_BATCH;
        !self.more
    }

    /// A limit keeps the next entry in the ring until then: the round ends.
    pub fn wait_until(&mut self, deadline: u64) {
        self.deadline = Some(deadline);
        self.stats.throttled.add(1);
    }

    /// Returns the head of the next entry.
    ///
    /// # Errors
    /// It is no descriptor, or in flight.
    #[inline]
    pub fn peek(&self) -> Result<u16, QueueFault> {
        let head = self.notifications.head(&self.ring);
        if head >= self.ring.size() {
            return Err(QueueFault::Head(head));
        }
        if !self.log.is_free(head) {
            return Err(QueueFault::DuplicateHead(head));
        }
        Ok(head)
    }

    /// Collects the buffers of the chain at `head`, each descriptor read once; both lists must be empty.
    ///
    /// # Errors
    /// The chain is malformed.
    #[inline]
    pub fn walk(&self, head: u16, readable: &mut Buffers, writable: &mut Buffers) -> Result<(), QueueFault> {
        chain::walk(&self.ring, head, self.indirect, readable, writable)
            .map_err(|error| QueueFault::Chain(head, error))
    }

    /// Pops the entry that [`Self::peek`] returned: it is in the log, and in flight once [`Self::start`] is
    /// called.
    #[inline]
    pub fn accept(&mut self, head: u16) {
        step("parsed");
        self.log.start(head);
        self.notifications.advance();
        self.popped += 1;
        step("logged");
        trace::event(Kind::Popped, self.trace_id, head.into());
    }

    /// Ends a round: one that found nothing was notified of nothing.
    #[inline]
    pub fn end_round(&mut self) {
        if self.popped == 0 && self.deadline.is_none() && !self.broken {
            self.stats.spurious_notifications.add(1);
        }
    }

    /// Counts a request as in flight: when it is started, or is no longer held.
    #[inline]
    pub fn start(&mut self) {
        self.in_flight += 1;
    }

    /// Counts a request that the device holds as not in flight; it stays in the log.
    pub fn hold(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Counts requests as not in flight that the engine has abandoned: nothing touches their buffers any
    /// more, and they do not complete. For a queue that leaves; its log has what was in flight.
    pub fn abandon(&mut self, count: u16) {
        self.in_flight = self.in_flight.saturating_sub(count);
    }

    /// Completes a request, whose data and status are in guest memory; it is published with the next batch.
    #[inline]
    pub fn complete(&mut self, head: u16, used_len: u32) {
        trace::event(Kind::Completed, self.trace_id, head.into());
        step("status written");
        self.log.finish(head, used_len);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.used.push(head, used_len);
        step("done logged");
    }

    /// The driver waits for a completion with everything else: the next publication is signalled at once.
    pub fn set_urgent(&mut self) {
        self.coalescer.urgent = true;
    }

    /// Puts a completed request of which `which` holds, and that is not published, back in flight.
    pub fn take_back(&mut self, which: impl FnMut(u16) -> bool) -> Option<u16> {
        let head = self.used.take_back(which)?;
        self.log.start(head);
        self.start();
        Some(head)
    }

    /// Publishes all that completed since the last time, with one store of the used index, and sends at most
    /// one interrupt, now or for this and later publications together ([`Self::interrupt_due`]). Returns how
    /// many.
    #[inline]
    pub fn publish(&mut self) -> usize {
        let count = self.used.len();
        if count > 0 {
            let first = self.coalescer.unsignalled(self.used.idx) == 0;
            self.used.publish(&self.ring, &mut self.log, self.trace_id);
            self.stats.publications.add(1);
            let now = self.clock.now();
            self.coalescer.measure(now);
            if self.may_coalesce() && self.is_interrupt_wanted() {
                self.coalescer.wait(now, first);
                self.stats.interrupts_coalesced.add(1);
                return count;
            }
            let outstanding = self.outstanding() > 0;
            self.coalescer.signal_now(now, outstanding);
        }
        self.signal();
        count
    }

    #[inline]
    fn is_interrupt_wanted(&self) -> bool {
        self.ring.interrupt_wanted(self.coalescer.decided, self.used.idx)
    }

    #[inline]
    fn may_coalesce(&self) -> bool {
        self.coalescer.may_wait(self.used.idx)
            && !self.notifications.enabled
            && self.in_flight == 0
            && self.pops()
            && self.deadline.is_none()
    }

    /// Returns when to call [`Self::signal_overdue`] if no publication comes before: requests were published
    /// whose interrupt was left to the next. By the queue's clock.
    #[inline]
    pub fn interrupt_due(&self) -> Option<u64> {
        self.coalescer.due(self.used.idx)
    }

    /// No more came in time: sends the interrupt for what there is, and lowers the batch target to that.
    pub fn signal_overdue(&mut self) {
        self.coalescer.overdue(self.used.idx);
        self.signal();
    }

    /// Sends the interrupt for what was published since the last decision, if the driver wants it.
    #[inline]
    pub fn signal(&mut self) {
        if self.coalescer.unsignalled(self.used.idx) > 0 {
            let situation = Situation {
                used_idx: self.used.idx,
                wanted: self.is_interrupt_wanted(),
                in_flight: self.in_flight,
                outstanding: self.outstanding() > 0,
                notifications_enabled: self.notifications.enabled,
            };
            if !self.coalescer.decide(situation) {
                self.stats.interrupts_suppressed.add(1);
                trace::event(Kind::Suppressed, self.trace_id, 0);
            }
        }
        if self.coalescer.take_pending() {
            self.raise();
        }
    }

    /// Sends an interrupt, also for used buffers that another process has published.
    pub fn raise(&mut self) {
        self.stats.interrupts.add(1);
        trace::event(Kind::Raise, self.trace_id, 0);
        (self.notify_driver)();
    }

    /// If an interrupt was decided about since the last call: returns whether the driver had a backlog then.
    pub const fn take_backlog(&mut self) -> Option<bool> {
        self.coalescer.backlog.take()
    }

    /// The driver broke the queue: pops nothing more and asks for DEVICE_NEEDS_RESET.
    #[cold]
    pub fn fail(&mut self, fault: QueueFault) {
        self.broken = true;
        self.log.set_broken();
        (self.needs_reset)(&fault);
    }

    /// For simulated kills: the queue may be dropped, with its memory, although requests are in flight.
    ///
    /// # Safety
    /// No engine has operations of this queue any more.
    #[cfg(any(test, feature = "fakes"))]
    pub unsafe fn assume_drained(&mut self) {
        self.in_flight = 0;
    }
}
