//! [`Coalescer`]: when the driver gets a used buffer notification for what was published.
//!
//! Where requests complete as fast as the driver makes them, an interrupt for each would arrive while the
//! driver makes the next, and none would find a second completion. So a publication may wait to be signalled
//! with a later one. It waits only while
//! - the driver wants an interrupt for it, and its notifications are disabled: the reactor polls the
//!   available ring, so there will be a later publication, or a call of [`overdue`](Coalescer::overdue);
//! - nothing of the queue is in flight, whose time would be added to the wait, and no completion is urgent;
//! - fewer requests wait than the batch target. That is learned: when the target was reached and the driver
//!   has others outstanding, none in flight, it doubles; on a timeout it drops to the count seen.
//!
//! A driver that makes its requests one by one is notified of each at once, and one that makes them by four
//! of each four. The wait is a few times what lately passed from one publication to the next.

/// Longest wait for the next publication, in nanoseconds.
const MAX_PAUSE: u64 = 50_000;
/// Longest wait of the first publication, in nanoseconds.
const MAX_WAIT: u64 = 500_000;
/// How many times the mean interval between publications to wait for the next.
const PATIENCE: u64 = 4;
/// Most requests that one interrupt is to cover.
const MAX_COALESCED: u16 = 32;
/// A driver that has wanted no interrupt for so many decisions polls the used ring.
const POLLING_DECISIONS: u16 = 64;

/// What a decision depends on beside the coalescer's own state.
#[derive(Clone, Copy)]
pub struct Situation {
    /// The used index.
    pub used_idx: u16,
    /// The driver wants an interrupt for what was published since the last decision.
    pub wanted: bool,
    /// Requests in flight.
    pub in_flight: u16,
    /// The driver has requests outstanding.
    pub outstanding: bool,
    /// The driver notifies of the next request.
    pub notifications_enabled: bool,
}

/// The state of a queue's used buffer notifications.
pub struct Coalescer {
    /// The used index at the last decision.
    pub decided: u16,
    /// How many completions one interrupt is to cover.
    batch_target: u16,
    /// When the first publication since the last decision was, by the queue's clock.
    since: u64,
    /// When to decide at the latest.
    until: u64,
    /// When the last publication was, if the driver had more outstanding.
    published: Option<u64>,
    /// Mean interval from such a publication to the next.
    interval: u64,
    /// The driver waits for one of the completions with everything else, e.g. for a flush: the next
    /// publication is signalled at once.
    pub urgent: bool,
    /// An interrupt is to be sent, whatever the driver wants: decided, or one may have been lost with the
    /// daemon.
    pending: bool,
    /// Decisions since the driver last wanted an interrupt.
    unwanted: u16,
    /// If it was decided since this was taken: whether the driver had more than one request outstanding then.
    /// Some were in flight or signalled together, or the driver wanted no interrupt, since it was still
    /// handling the completions before. (One that has wanted none for long polls, which says nothing.)
    pub backlog: Option<bool>,
}

impl Coalescer {
    pub const fn new(used_idx: u16, pending: bool) -> Self {
        Self {
            decided: used_idx,
            batch_target: 1,
            since: 0,
            until: 0,
            published: None,
            interval: MAX_PAUSE / PATIENCE,
            urgent: false,
            pending,
            unwanted: 0,
            backlog: None,
        }
    }

    /// Returns how many requests were published since the last decision.
    #[inline]
    pub const fn unsignalled(&self, used_idx: u16) -> u16 {
        used_idx.wrapping_sub(self.decided)
    }

    /// Returns whether a publication may wait, as far as this side of the queue is concerned.
    #[inline]
    pub const fn may_wait(&self, used_idx: u16) -> bool {
        !self.pending && !self.urgent && self.unsignalled(used_idx) < self.batch_target
    }

    /// Measures the interval to a publication that was made now.
    #[inline]
    pub fn measure(&mut self, now: u64) {
        if let Some(last) = self.published {
            self.interval = (3 * self.interval + now.saturating_sub(last).min(MAX_PAUSE)) / 4;
        }
    }

    /// Leaves the publication made now to a later one; `first`: none waits yet.
    pub fn wait(&mut self, now: u64, first: bool) {
        if first {
            self.since = now;
        }
        let pause = (PATIENCE * self.interval).min(MAX_PAUSE);
        self.until = now.saturating_add(pause).min(self.since.saturating_add(MAX_WAIT));
        self.published = Some(now);
    }

    /// Signals the publication made now.
    #[inline]
    pub fn signal_now(&mut self, now: u64, outstanding: bool) {
        self.published = outstanding.then_some(now);
    }

    /// Returns when to decide at the latest, if a publication waits.
    #[inline]
    pub fn due(&self, used_idx: u16) -> Option<u64> {
        (self.unsignalled(used_idx) > 0).then_some(self.until)
    }

    /// No later publication came in time: the batch target drops to what there is.
    pub fn overdue(&mut self, used_idx: u16) {
        let unsignalled = self.unsignalled(used_idx);
        if unsignalled > 0 {
            self.batch_target = if unsignalled < MAX_COALESCED {
                unsignalled
            } else {
                MAX_COALESCED
            };
            self.published = None;
        }
    }

    /// Decides about an interrupt for what was published since the last decision, which is not nothing.
    /// Returns whether it is to be sent; [`Self::take_pending`] then returns `true` once.
    pub fn decide(&mut self, now: Situation) -> bool {
        let count = self.unsignalled(now.used_idx);
        self.decided = now.used_idx;
        self.urgent = false;
        let more = now.in_flight == 0 && now.outstanding;
        if now.wanted && count >= self.batch_target && more {
            self.batch_target = self.batch_target.saturating_mul(2).min(MAX_COALESCED);
        } else if now.notifications_enabled && count < self.batch_target {
            // It notifies, so it has fewer outstanding than before.
            self.batch_target = (self.batch_target / 2).max(1);
        }
        self.unwanted = if now.wanted {
            0
        } else {
            self.unwanted.saturating_add(1)
        };
        let behind = (1..POLLING_DECISIONS).contains(&self.unwanted);
        self.backlog = Some(count > 1 || now.in_flight > 0 || behind);
        self.pending |= now.wanted;
        self.pending
    }

    /// Returns whether an interrupt is to be sent, once.
    #[inline]
    pub fn take_pending(&mut self) -> bool {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::{Coalescer, MAX_COALESCED, MAX_PAUSE, MAX_WAIT, POLLING_DECISIONS, Situation};

    const IDLE: Situation = Situation {
        used_idx: 0,
        wanted: true,
        in_flight: 0,
        outstanding: true,
        notifications_enabled: false,
    };

    fn at(used_idx: u16) -> Situation {
        Situation { used_idx, ..IDLE }
    }

    #[test]
    fn the_target_doubles_when_reached_and_drops_to_what_was_seen() {
        let mut coalescer = Coalescer::new(0, false);
        let mut used = 0_u16;
        for target in [1, 2, 4, 8, 16, 32, MAX_COALESCED] {
            assert_eq!(coalescer.batch_target, target);
            assert!(target == 1 || coalescer.may_wait(used + target - 1));
            assert!(!coalescer.may_wait(used + target));
            used += target;
            assert!(coalescer.decide(at(used)) && coalescer.take_pending());
        }
        coalescer.overdue(used + 3);
        assert_eq!(coalescer.batch_target, 3);
        // Signalled early, it learns nothing; with notifications enabled it does.
        coalescer.decide(at(used + 1));
        assert_eq!(coalescer.batch_target, 3);
        coalescer.decide(Situation {
            notifications_enabled: true,
            ..at(used + 2)
        });
        assert_eq!(coalescer.batch_target, 1);
    }

    #[test]
    fn what_is_in_flight_or_unwanted_does_not_raise_the_target() {
        for now in [
            Situation {
                in_flight: 1,
                ..at(1)
            },
            Situation {
                outstanding: false,
                ..at(1)
            },
            Situation {
                wanted: false,
                ..at(1)
            },
        ] {
            let mut coalescer = Coalescer::new(0, false);
            assert_eq!(coalescer.decide(now), now.wanted);
            assert_eq!(coalescer.batch_target, 1);
        }
    }

    #[test]
    fn urgent_and_pending_publications_do_not_wait() {
        let mut coalescer = Coalescer::new(7, false);
        coalescer.decide(at(8));
        assert!(coalescer.take_pending() && coalescer.may_wait(9));
        coalescer.urgent = true;
        assert!(!coalescer.may_wait(9));
        coalescer.decide(at(9));
        assert!(coalescer.take_pending() && !coalescer.take_pending());
        assert!(coalescer.may_wait(10));
        let mut lost = Coalescer::new(7, true);
        assert!(!lost.may_wait(7));
        assert!(lost.decide(Situation {
            wanted: false,
            ..at(8)
        }));
    }

    #[test]
    fn a_wait_is_bounded_by_the_interval_and_in_total() {
        let mut coalescer = Coalescer::new(0, false);
        for now in (0..100).map(|round| round * 1000) {
            coalescer.measure(now);
            coalescer.signal_now(now, true);
        }
        let start = 100_000;
        coalescer.measure(start);
        coalescer.wait(start, true);
        let pause = coalescer.due(1).unwrap() - start;
        assert!((4000..4200).contains(&pause), "{pause}");
        for step in 1..100 {
            let now = start + step * MAX_PAUSE;
            coalescer.measure(now);
            coalescer.wait(now, false);
            assert!(coalescer.due(1).unwrap() <= start + MAX_WAIT);
        }
        assert_eq!(coalescer.due(0), None);
    }

    #[test]
    fn a_backlog_is_seen_unless_the_driver_polls() {
        let mut coalescer = Coalescer::new(0, false);
        coalescer.decide(at(1));
        assert_eq!(coalescer.backlog.take(), Some(false));
        assert_eq!(coalescer.backlog.take(), None);
        coalescer.decide(at(3));
        assert_eq!(coalescer.backlog.take(), Some(true));
        for round in 1..=POLLING_DECISIONS {
            coalescer.decide(Situation {
                wanted: false,
                ..at(3 + round)
            });
            assert_eq!(coalescer.backlog.take(), Some(round < POLLING_DECISIONS));
        }
    }
}
