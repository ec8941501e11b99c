//! [`Budget`]: how much of the reactor's time a zone's events may take.
//!
//! The reactor is one thread for all zones. Requests have their own shares there; an event that brings no
//! request costs the reactor an interrupt, a round and maybe a hypercall, and costs the guest one store. So
//! events draw on a token bucket of their zone. While it is exhausted the zone's ring is neither read nor
//! armed: EL2 keeps at most one event of each queue, and raises no interrupt for more.

use std::time::{Duration, Instant};

/// Tokens a second.
const RATE: u64 = 4000;
/// Most tokens: a guest that sets up its devices, or prints a screen, does not wait.
const BURST: u64 = 1024;
/// How long a zone that has spent its tokens waits: the longest delay of its own requests' notifications.
const PAUSE: Duration = Duration::from_millis(4);

/// Tokens for a notification that found no request.
pub(super) const NOTIFICATION: u64 = 4;
/// Tokens for a change of a device or of the zone, whose state is then read by a hypercall.
pub(super) const DEVICE: u64 = 4;
/// Tokens for console output, which moves many bytes at once where the guest is quicker than the reactor.
pub(super) const CONSOLE: u64 = 1;

/// A zone's tokens.
#[derive(Debug)]
pub struct Budget {
    tokens: u64,
    /// When they were counted.
    counted: Option<Instant>,
    /// Until when the zone's ring is left alone.
    pub exhausted: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            tokens: BURST,
            counted: None,
            exhausted: None,
        }
    }
}

impl Budget {
    /// Takes tokens. Returns whether the budget is exhausted by that.
    pub fn charge(&mut self, cost: u64, now: Instant) -> bool {
        let since = self
            .counted
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let earned = u64::try_from(since.as_micros())
            .unwrap_or(u64::MAX)
            .saturating_mul(RATE)
            / 1_000_000;
        // What is less than a token counts the next time.
        if earned > 0 || self.counted.is_none() {
            self.counted = Some(now);
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
        }
        let exhausted = cost > self.tokens;
        self.tokens = self.tokens.saturating_sub(cost);
        if exhausted {
            self.exhausted = Some(now + PAUSE);
        }
        exhausted
    }

    /// Returns whether it is exhausted at the time that `now` returns, and forgets a pause that is over.
    pub fn is_exhausted(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(until) = self.exhausted else {
            return false;
        };
        if now() < until {
            return true;
        }
        self.exhausted = None;
        false
    }

    /// Returns whether it is exhausted.
    pub fn is_exhausted_now(&self) -> bool {
        self.exhausted.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BURST, Budget, DEVICE, PAUSE, RATE};

    #[test]
    fn a_burst_passes_and_a_storm_does_not() {
        let start = Instant::now();
        let mut budget = Budget::default();
        for _ in 0..BURST / DEVICE {
            assert!(!budget.charge(DEVICE, start));
        }
        assert!(budget.charge(DEVICE, start));
        assert!(budget.is_exhausted(|| start));
        assert!(budget.is_exhausted(|| start + PAUSE - Duration::from_nanos(1)));
        assert_eq!(budget.exhausted, Some(start + PAUSE));
        assert!(!budget.is_exhausted(|| start + PAUSE));
        assert_eq!(budget.exhausted, None);
    }

    // A guest that stores as quickly as the reactor takes the events has its rate, however long it goes on.
    #[test]
    fn a_storm_has_its_rate() {
        let (start, seconds) = (Instant::now(), 10);
        let (mut now, mut budget, mut events) = (start, Budget::default(), 0);
        while now < start + Duration::from_secs(seconds) {
            if budget.is_exhausted(|| now) {
                now = budget.exhausted.unwrap();
                continue;
            }
            events += 1;
            budget.charge(DEVICE, now);
            now += Duration::from_micros(20);
        }
        let most = (RATE * seconds + BURST) / DEVICE;
        // One event exhausts the budget each time.
        let pauses = seconds * 1000 / PAUSE.as_millis() as u64;
        assert!(events <= most + pauses, "{events} events, expected {most}");
        assert!(events >= RATE * seconds / DEVICE * 9 / 10, "{events} events");
    }

    #[test]
    fn a_guest_within_its_rate_never_waits() {
        let (mut now, mut budget) = (Instant::now(), Budget::default());
        for _ in 0..10_000 {
            assert!(!budget.charge(DEVICE, now));
            now += Duration::from_micros(1_000_000 / (RATE / DEVICE)) + Duration::from_micros(1);
        }
    }
}
