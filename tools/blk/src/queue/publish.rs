//! The driver is told of what is done: the used ring, and the interrupt for it.
//!
//! Interrupts are coalesced. Where requests are done as fast as the driver makes them, each would be answered with an interrupt
//! of its own, in the middle of the driver's making the next, and none of them would find a second one done. So a publication
//! may leave the decision about its interrupt to a later one, for [`COALESCE`] at most from then on. It does so only while
//! - whoever drives the queue looks at the available ring itself, so that there is a later one without a notification,
//! - nothing runs: else a file's time would be added to the wait,
//! - fewer requests are published than the driver had under way before. That is learned: when as many are signalled and the
//!   driver still waits for others, it is twice as many the next time, and when no more came in time, as many as there were.
//!
//! So a driver that makes its requests one by one is told of each at once, and one that makes them by four of each four.

use std::mem;

use super::Queue;
use crate::steps::step;
use crate::trace::{self, Kind};

/// How long a publication may wait for the next, in nanoseconds: some of the times that a driver takes between two requests.
const COALESCE: u64 = 50_000;
/// Most requests that are signalled together.
const MAX_COALESCED: u16 = 32;
/// A driver that has wanted no interrupt for so many decisions looks at the used ring itself.
const POLLS: u16 = 64;

/// What the driver has been told.
pub(super) struct Signals {
    /// The used index at the last decision about an interrupt.
    decided: u16,
    /// How many requests to signal together.
    together: u16,
    /// When to decide at the latest, if a decision is owed; by the queue's clock.
    until: u64,
    /// The next decision is for an interrupt, whatever the driver wants: one may have been lost with the daemon.
    force: bool,
    /// Decisions since the driver last wanted an interrupt.
    unwanted: u16,
    /// See [`Queue::is_crowded`].
    crowded: bool,
}

impl Signals {
    pub const fn new(used_idx: u16, force: bool) -> Self {
        Self {
            decided: used_idx,
            together: 1,
            until: 0,
            force,
            unwanted: 0,
            crowded: false,
        }
    }
}

impl Queue {
    /// Publishes all that is done since the last time, with one store of the used index, and raises at most one interrupt,
    /// now or for this and later publications together ([`Self::interrupt_due`]). Returns how many.
    pub fn publish(&mut self) -> usize {
        let count = self.done.len();
        if count > 0 {
            self.write_used();
            if self.may_coalesce() {
                self.signals.until = self.clock.now().saturating_add(COALESCE);
                self.stats.interrupts_coalesced.add(1);
                return count;
            }
        }
        let unsignalled = self.unsignalled();
        if unsignalled >= self.signals.together && self.outstanding() > 0 {
            self.signals.together = self.signals.together.saturating_mul(2).min(MAX_COALESCED);
        }
        self.signal();
        count
    }

    fn write_used(&mut self) {
        let mut idx = self.used_idx;
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
            trace::event(Kind::Used, self.trace, head.into());
            self.log.free(head);
            step("freed");
        }
        self.log.end_publish(idx);
        self.used_idx = idx;
        step("publication ended");
        self.stats.publications.add(1);
    }

    /// Requests that were published since the last decision.
    const fn unsignalled(&self) -> u16 {
        self.used_idx.wrapping_sub(self.signals.decided)
    }

    fn may_coalesce(&self) -> bool {
        !self.signals.force
            && !self.listening
            && self.running == 0
            && self.unsignalled() < self.signals.together
            && self.takes()
            && self.deadline.is_none()
    }

    /// When to call [`Self::signal_now`], if no publication comes before: requests have been published, and their interrupt was
    /// left to the next. By the queue's clock.
    #[must_use]
    pub fn interrupt_due(&self) -> Option<u64> {
        (self.unsignalled() > 0).then_some(self.signals.until)
    }

    /// Nothing more was published: the driver is told of what there is.
    pub fn signal_now(&mut self) {
        self.signals.together = self.unsignalled().clamp(1, MAX_COALESCED);
        self.signal();
    }

    /// Decides about an interrupt for what was published since the last decision.
    fn signal(&mut self) {
        let count = self.unsignalled();
        if count > 0 {
            let wanted = self.ring.interrupt_wanted(self.signals.decided, self.used_idx);
            let signals = &mut self.signals;
            signals.decided = self.used_idx;
            signals.unwanted = if wanted {
                0
            } else {
                signals.unwanted.saturating_add(1)
            };
            let behind = (1..POLLS).contains(&signals.unwanted);
            signals.crowded = count > 1 || self.running > 0 || behind;
            signals.force |= wanted;
            if !signals.force {
                self.stats.interrupts_suppressed.add(1);
                trace::event(Kind::Quiet, self.trace, 0);
            }
        }
        if mem::take(&mut self.signals.force) {
            self.stats.interrupts.add(1);
            trace::event(Kind::Raise, self.trace, 0);
            (self.notify)();
        }
    }

    /// Whether the driver had more than one request under way when it was last decided about an interrupt: some ran or were
    /// signalled with it, or the driver wanted no interrupt, as it was not through with the completions before. (One that has
    /// wanted none for long polls, which says nothing.)
    pub(crate) const fn is_crowded(&self) -> bool {
        self.signals.crowded
    }
}
