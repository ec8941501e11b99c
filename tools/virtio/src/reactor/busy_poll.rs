//! [`BusyPoll`]: polling for a while before sleeping.
//!
//! A guest that waits for one request before it makes the next is back within microseconds. To sleep
//! meanwhile costs an exit to EL2, an interrupt and three context switches in root, and the guest waits for
//! all of them. So the thread busy-polls first, for a time that follows KVM's halt polling: had the last
//! sleep been shorter than the longest time worth polling, the next poll is twice as long; had it been
//! longer, there is no polling until short sleeps return. An idle daemon sleeps. One rule is ours: a sleep
//! that ended at a moment known beforehand (a rate limit's) found nothing, and neither did the poll before
//! it, so the next poll is half as long. And there is no polling for drivers with a [`Backlog`].

use std::time::{Duration, Instant};

/// The first time that is polled for, as a part of the longest.
const FIRST: u32 = 50;
/// Polls between two readings of the clock.
const POLLS: u32 = 4;

/// How long to busy-poll.
#[derive(Clone, Copy)]
pub struct BusyPoll {
    /// At most; zero: never.
    longest: Duration,
    /// Next time.
    pub window: Duration,
}

impl BusyPoll {
    pub const fn new(longest: Duration) -> Self {
        Self {
            longest,
            window: Duration::ZERO,
        }
    }

    /// Calls `has_work` until it returns `true`, or the window is over. Returns what it returned last, and
    /// how long that took.
    pub fn run(&self, has_work: impl FnMut() -> bool) -> (bool, Duration) {
        if self.window.is_zero() {
            return (false, Duration::ZERO);
        }
        let start = Instant::now();
        let found = poll(has_work, || start.elapsed() >= self.window);
        (found, start.elapsed())
    }

    /// Returns whether [`Self::run`] would poll.
    pub const fn is_worthwhile(&self) -> bool {
        !self.window.is_zero()
    }

    /// The thread busy-polled in vain, if at all, and then slept for `idle`. `expired`: until its timeout, so
    /// that nothing came that polling would have found.
    pub fn on_sleep(&mut self, idle: Duration, expired: bool) {
        let first = self.longest / FIRST;
        if idle > self.longest || (expired && self.window + idle > self.longest) {
            self.window = Duration::ZERO;
        } else if expired {
            let half = self.window / 2;
            self.window = if half < first { Duration::ZERO } else { half };
        } else {
            self.window = (self.window * 2).clamp(first, self.longest);
        }
    }
}

/// Whether one of the drivers that were last sent interrupts has a backlog: more than one request
/// outstanding.
#[derive(Default)]
pub struct Backlog {
    current: bool,
    /// The same of this round, once an interrupt was decided about.
    round: Option<bool>,
}

impl Backlog {
    /// Begins a round.
    pub fn begin_round(&mut self) {
        self.round = None;
    }

    /// Adds what was decided about in this round, if anything was.
    pub fn add(&mut self, backlog: Option<bool>) {
        self.round = self.round.max(backlog);
        self.current = self.round.unwrap_or(self.current);
    }

    /// Returns whether there is one.
    pub const fn is_there(&self) -> bool {
        self.current
    }
}

/// Calls `has_work` until it returns `true`, or `is_over` does, which is called less often. Returns what it
/// returned last.
pub fn poll(mut has_work: impl FnMut() -> bool, is_over: impl Fn() -> bool) -> bool {
    loop {
        for _ in 0..POLLS {
            if has_work() {
                return true;
            }
            relax();
        }
        if is_over() {
            return false;
        }
    }
}

/// Lets another hardware thread of the CPU run. YIELD, and not the ISB that the standard library has for a
/// spinning loop: an emulator that runs CPUs in turn switches to the next one at YIELD.
fn relax() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint: it touches neither memory nor registers nor flags.
    unsafe {
        std::arch::asm!("yield", options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "aarch64"))]
    std::hint::spin_loop();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backlog, BusyPoll};

    const fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn the_window_follows_the_sleeps() {
        let mut polling = BusyPoll::new(us(100));
        assert!(!polling.run(|| panic!("nothing was short yet")).0);
        let mut windows = Vec::new();
        for idle in [30, 30, 90, 100, 50, 50, 101, 20] {
            polling.on_sleep(us(idle), false);
            windows.push(polling.window.as_micros());
        }
        assert_eq!(windows, [2, 4, 8, 16, 32, 64, 0, 2]);
        // The time was up: nothing was there to be found.
        let mut up_then_down = |up: usize, idle: &[u64]| {
            polling.on_sleep(us(101), true);
            for _ in 0..up {
                polling.on_sleep(us(30), false);
            }
            let windows = idle.iter().map(|&idle| {
                polling.on_sleep(us(idle), true);
                polling.window.as_micros()
            });
            windows.collect::<Vec<_>>()
        };
        assert_eq!(up_then_down(3, &[30, 30, 30, 30]), [4, 2, 0, 0]);
        assert_eq!(up_then_down(3, &[93]), [0], "8 µs of polling and 93 of sleep");
        assert_eq!(up_then_down(3, &[92]), [4]);
    }

    #[test]
    fn it_ends_when_something_came_or_the_time_is_up() {
        let mut polling = BusyPoll::new(us(10_000));
        for _ in 0..20 {
            polling.on_sleep(us(1), false);
        }
        let mut looks = 0;
        let (found, _) = polling.run(|| {
            looks += 1;
            looks == 10
        });
        assert!(found);
        assert_eq!(looks, 10);
        let (found, time) = polling.run(|| false);
        assert!(!found);
        assert!(time >= us(10_000), "{time:?}");
    }

    #[test]
    fn none_is_none() {
        let mut polling = BusyPoll::new(Duration::ZERO);
        polling.on_sleep(Duration::ZERO, false);
        assert!(!polling.is_worthwhile());
        assert!(!polling.run(|| panic!("polling is off")).0);
    }

    // A round without a decision says nothing; one driver with a backlog is enough.
    #[test]
    fn the_last_decisions_say_whether_there_is_a_backlog() {
        let mut backlog = Backlog::default();
        for (round, there) in [
            (&[Some(false)] as &[_], false),
            (&[Some(true), Some(false)], true),
            (&[None, None], true),
            (&[None, Some(false)], false),
        ] {
            backlog.begin_round();
            round.iter().for_each(|&decided| backlog.add(decided));
            assert_eq!(backlog.is_there(), there);
        }
    }
}
