//! The driver is told of what is done: the used ring, and the interrupt for it.
//!
//! Interrupts are coalesced. Where requests are done as fast as the driver makes them, each would be answered with an interrupt
//! of its own, in the middle of the driver's making the next, and none of them would find a second one done. So what is
//! published may be signalled with a later publication. It waits only while
//! - the driver wants an interrupt for it, and was asked to notify of nothing: whoever drives the queue looks at the available
//!   ring, so that there will be a later publication, and calls [`Queue::signal_overdue`] when there was none in time;
//! - none of the queue's transfers runs, whose time would be added to the wait, and no flush is among what is done, which a
//!   driver waits for with all else;
//! - fewer requests wait than the driver had under way before. That is learned: when so many are signalled and it has made
//!   others meanwhile, none of which runs, it is twice as many the next time, and when no more came in time, as many as there were.
//!
//! A driver that makes its requests one by one is told of each at once, and one that makes them by four of each four. The time
//! is a few times what lately passed from one publication to the next.

use std::mem;

use super::Queue;
use crate::steps::step;
use crate::trace::{self, Kind};

/// How long to wait for the next publication at most, in nanoseconds.
const PAUSE: u64 = 50_000;
/// How long the first one waits at most, in nanoseconds.
const WAIT: u64 = 500_000;
/// How many times the mean from one publication to the next to wait.
const PATIENCE: u64 = 4;
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
    /// When the first publication since the last decision was, by the queue's clock.
    since: u64,
    /// When to decide at the latest.
    until: u64,
    /// When the last publication was, if the driver had more to come.
    published: Option<u64>,
    /// Mean time from such a publication to the next.
    pace: u64,
    /// A flush is among what is done.
    flushed: bool,
    /// The next decision is for an interrupt, whatever the driver wants: one may have been lost with the daemon.
    force: bool,
    /// Decisions since the driver last wanted an interrupt.
    unwanted: u16,
    /// See [`Queue::take_crowded`].
    crowded: Option<bool>,
}

impl Signals {
    pub const fn new(used_idx: u16, force: bool) -> Self {
        Self {
            decided: used_idx,
            together: 1,
            since: 0,
            until: 0,
            published: None,
            pace: PAUSE / PATIENCE,
            flushed: false,
            force,
            unwanted: 0,
            crowded: None,
        }
    }

    /// A flush is done.
    pub const fn set_flushed(&mut self) {
        self.flushed = true;
    }

    /// There was a publication.
    fn measure(&mut self, now: u64) {
        if let Some(last) = self.published {
            self.pace = (3 * self.pace + now.saturating_sub(last).min(PAUSE)) / 4;
        }
    }

    /// The last publication is left to a later one.
    fn wait(&mut self, now: u64, first: bool) {
        if first {
            self.since = now;
        }
        let pause = (PATIENCE * self.pace).min(PAUSE);
        self.until = now.saturating_add(pause).min(self.since.saturating_add(WAIT));
        self.published = Some(now);
    }
}

impl Queue {
    /// Publishes all that is done since the last time, with one store of the used index, and raises at most one interrupt,
    /// now or for this and later publications together ([`Self::interrupt_due`]). Returns how many.
    pub fn publish(&mut self) -> usize {
        let count = self.done.len();
        if count > 0 {
            let first = self.unsignalled() == 0;
            self.write_used();
            let now = self.clock.now();
            self.signals.measure(now);
            if self.may_coalesce() && self.is_interrupt_wanted() {
                self.signals.wait(now, first);
                self.stats.interrupts_coalesced.add(1);
                return count;
            }
            self.signals.published = (self.outstanding() > 0).then_some(now);
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

    fn is_interrupt_wanted(&self) -> bool {
        self.ring.interrupt_wanted(self.signals.decided, self.used_idx)
    }

    fn may_coalesce(&self) -> bool {
        !self.signals.force
            && !self.signals.flushed
            && !self.listening
            && self.running == 0
            && self.unsignalled() < self.signals.together
            && self.takes()
            && self.deadline.is_none()
    }

    /// When to call [`Self::signal_overdue`], if no publication comes before: requests have been published, and their interrupt
    /// was left to the next. By the queue's clock.
    #[must_use]
    pub fn interrupt_due(&self) -> Option<u64> {
        (self.unsignalled() > 0).then_some(self.signals.until)
    }

    /// No more came in time: the driver is told of what there is, and this many are waited for from now on.
    pub fn signal_overdue(&mut self) {
        if self.unsignalled() > 0 {
            self.signals.together = self.unsignalled().min(MAX_COALESCED);
            self.signals.published = None;
        }
        self.signal();
    }

    /// Tells the driver of what was published since the last decision, if it wants to be told.
    pub fn signal(&mut self) {
        let count = self.unsignalled();
        if count > 0 {
            let wanted = self.is_interrupt_wanted();
            let more = self.running == 0 && self.outstanding() > 0;
            let signals = &mut self.signals;
            signals.decided = self.used_idx;
            signals.flushed = false;
            if wanted && count >= signals.together && more {
                signals.together = signals.together.saturating_mul(2).min(MAX_COALESCED);
            } else if self.listening && count < signals.together {
                // It notifies: what it has under way is less than it was.
                signals.together = (signals.together / 2).max(1);
            }
            signals.unwanted = if wanted {
                0
            } else {
                signals.unwanted.saturating_add(1)
            };
            let behind = (1..POLLS).contains(&signals.unwanted);
            signals.crowded = Some(count > 1 || self.running > 0 || behind);
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

    /// If it was decided about an interrupt since this was last asked: whether the driver had more than one request under way
    /// then. Some ran or were signalled with it, or the driver wanted no interrupt, as it was not through with the completions
    /// before. (One that has wanted none for long polls, which says nothing.)
    pub(crate) const fn take_crowded(&mut self) -> Option<bool> {
        self.signals.crowded.take()
    }
}
