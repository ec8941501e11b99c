//! Looking on for a while before going to sleep.
//!
//! A guest that waits for one request before it makes the next is back within microseconds. To sleep meanwhile costs an
//! exit to EL2, an interrupt and three context switches in root, and the guest waits for all of them. So the thread looks
//! on first, for a time that follows what happened last, by the rule of KVM's halt polling: had a sleep been shorter
//! than the longest time worth polling, the next poll is twice as long; had it been longer, nothing is polled until short
//! sleeps return. An idle daemon sleeps. One rule is ours: a sleep that ends at a moment known beforehand (a limit's) found
//! nothing, and neither did the poll before it, if there was one, so the next one is half as long. The reactor has another:
//! nobody looks on for drivers that have several requests under way ([`Queue::take_crowded`](crate::queue::Queue::take_crowded)).

use std::time::{Duration, Instant};

/// The first time that is polled for, as a part of the longest.
const FIRST: u32 = 50;
/// How often is looked between two readings of the clock.
const LOOKS: u32 = 4;

/// For how long to look on.
#[derive(Clone, Copy)]
pub(super) struct Polling {
    /// At most; zero: never.
    longest: Duration,
    /// Next time.
    window: Duration,
}

impl Polling {
    pub const fn new(longest: Duration) -> Self {
        Self {
            longest,
            window: Duration::ZERO,
        }
    }

    /// Calls `look_once` until it gives `true`, or the time is up. Gives what it gave last, and how long that took.
    pub fn look_on(&self, look_once: impl FnMut() -> bool) -> (bool, Duration) {
        if self.window.is_zero() {
            return (false, Duration::ZERO);
        }
        let start = Instant::now();
        let found = look(look_once, || start.elapsed() >= self.window);
        (found, start.elapsed())
    }

    /// For how long [`Self::look_on`] would look.
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Whether [`Self::look_on`] would look.
    pub const fn is_worth_it(&self) -> bool {
        !self.window.is_zero()
    }

    /// The thread looked on in vain, if at all, and then slept for `idle`; for as long as it wanted to, if it says so: then
    /// nothing came that looking would have found.
    pub fn slept(&mut self, idle: Duration, whole: bool) {
        let first = self.longest / FIRST;
        if idle > self.longest || (whole && self.window + idle > self.longest) {
            self.window = Duration::ZERO;
        } else if whole {
            let half = self.window / 2;
            self.window = if half < first { Duration::ZERO } else { half };
        } else {
            self.window = (self.window * 2).clamp(first, self.longest);
        }
    }
}

/// Calls `look_once` until it gives `true`, or `is_over` does, which is asked less often. Gives what it gave last.
pub(super) fn look(mut look_once: impl FnMut() -> bool, is_over: impl Fn() -> bool) -> bool {
    loop {
        for _ in 0..LOOKS {
            if look_once() {
                return true;
            }
            relax();
        }
        if is_over() {
            return false;
        }
    }
}

/// Lets whoever shares the CPU's parts go on. YIELD, and not the ISB that the standard library has for a spinning loop:
/// an emulator that runs CPUs in turn goes on with the next one at YIELD.
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
    use super::*;

    const fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    #[test]
    fn the_window_follows_the_sleeps() {
        let mut polling = Polling::new(us(100));
        assert!(!polling.look_on(|| panic!("nothing was short yet")).0);
        let mut windows = Vec::new();
        for idle in [30, 30, 90, 100, 50, 50, 101, 20] {
            polling.slept(us(idle), false);
            windows.push(polling.window.as_micros());
        }
        assert_eq!(windows, [2, 4, 8, 16, 32, 64, 0, 2]);
        // The time was up: nothing was there to be found.
        let mut up_then_down = |up: usize, idle: &[u64]| {
            polling.slept(us(101), true);
            for _ in 0..up {
                polling.slept(us(30), false);
            }
            let windows = idle.iter().map(|&idle| {
                polling.slept(us(idle), true);
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
        let mut polling = Polling::new(us(10_000));
        for _ in 0..20 {
            polling.slept(us(1), false);
        }
        let mut looks = 0;
        let (found, _) = polling.look_on(|| {
            looks += 1;
            looks == 10
        });
        assert!(found);
        assert_eq!(looks, 10);
        let (found, time) = polling.look_on(|| false);
        assert!(!found);
        assert!(time >= us(10_000), "{time:?}");
    }

    #[test]
    fn none_is_none() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.slept(Duration::ZERO, false);
        assert!(!polling.is_worth_it());
        assert!(!polling.look_on(|| panic!("polling is off")).0);
    }
}
