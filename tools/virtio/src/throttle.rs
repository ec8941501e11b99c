//! Rate limits of a device: requests and bytes per second, each with a burst. Shared by its queues through
//! atomics.
//!
//! A [`TokenBucket`] keeps one number, the time until which what was taken is paid for. It may be exceeded by
//! one request, whose size is known only after it was popped; the next one waits the longer. So a request
//! that is larger than the burst passes too, and the rate holds on average.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

const SECOND: u128 = 1_000_000_000;

/// A rate and its burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Per second; 0 is no limit.
    pub rate: u64,
    /// How much passes at once after a rest; less than one counts as one.
    #[serde(default)]
    pub burst: u64,
}

/// The limits of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Requests.
    #[serde(default)]
    pub iops: Rate,
    /// Bytes transferred.
    #[serde(default)]
    pub bytes: Rate,
}

/// One limit.
#[derive(Debug, Default)]
struct TokenBucket {
    rate: AtomicU64,
    burst: AtomicU64,
    /// Nanoseconds: when all that was taken would have passed at the rate.
    paid: AtomicU64,
}

impl TokenBucket {
    #[inline]
    fn get(&self) -> Rate {
        Rate {
            rate: self.rate.load(Ordering::Relaxed),
            burst: self.burst.load(Ordering::Relaxed),
        }
    }

    /// Forgets what was taken, so that a raised limit applies at once.
    fn set(&self, to: Rate) {
        self.rate.store(to.rate, Ordering::Relaxed);
        self.burst.store(to.burst, Ordering::Relaxed);
        self.paid.store(0, Ordering::Relaxed);
    }

    /// Returns the nanoseconds that `amount` takes at `rate`, which is not 0.
    fn cost(amount: u64, rate: u64) -> u64 {
        let cost = (u128::from(amount) * SECOND).div_ceil(u128::from(rate));
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// Returns when the next one may pass; `None` if that is now.
    #[inline]
    fn wait(&self, now: u64) -> Option<u64> {
        let Rate { rate, burst } = self.get();
        if rate == 0 {
            return None;
        }
        // The one to be taken is part of the burst.
        let ahead = Self::cost(burst.saturating_sub(1), rate);
        let paid = self.paid.load(Ordering::Relaxed);
        (paid > now.saturating_add(ahead)).then(|| paid.saturating_sub(ahead))
    }

    #[inline]
    fn take(&self, now: u64, amount: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || amount == 0 {
            return;
        }
        let cost = Self::cost(amount, rate);
        // It cannot fail: the closure always gives a value.
        let _ = self
            .paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                Some(paid.max(now).saturating_add(cost))
            });
    }
}

/// The limits of a device in use. Times are nanoseconds of the caller's [`Clock`](crate::clock::Clock).
#[derive(Debug, Default)]
pub struct Throttle {
    iops: TokenBucket,
    bytes: TokenBucket,
}

impl Throttle {
    /// Returns the limits in force.
    pub fn limits(&self) -> RateLimits {
        RateLimits {
            iops: self.iops.get(),
            bytes: self.bytes.get(),
        }
    }

    /// Changes them, at any time. Queues that wait under the old ones must be scheduled.
    pub fn set_limits(&self, limits: RateLimits) {
        self.iops.set(limits.iops);
        self.bytes.set(limits.bytes);
    }

    /// Returns when the next request may be popped; `None` if that is now.
    #[inline]
    #[must_use]
    pub fn wait(&self, now: u64) -> Option<u64> {
        self.iops.wait(now).max(self.bytes.wait(now))
    }

    /// Counts a request and its bytes.
    #[inline]
    pub fn take(&self, now: u64, bytes: u64) {
        self.iops.take(now, 1);
        self.bytes.take(now, bytes);
    }

    /// Counts bytes of a request that was counted without them.
    #[inline]
    pub fn take_bytes(&self, now: u64, bytes: u64) {
        self.bytes.take(now, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::{Rate, RateLimits, Throttle};

    const MS: u64 = 1_000_000;

    fn iops(rate: u64, burst: u64) -> Throttle {
        let throttle = Throttle::default();
        throttle.set_limits(RateLimits {
            iops: Rate { rate, burst },
            ..RateLimits::default()
        });
        throttle
    }

    /// Takes as many as there are until `end`, jumping from wait to wait.
    fn run(throttle: &Throttle, mut now: u64, end: u64, bytes: u64) -> u64 {
        let mut count = 0;
        while now < end {
            match throttle.wait(now) {
                None => {
                    throttle.take(now, bytes);
                    count += 1;
                }
                Some(at) => {
                    assert!(at > now, "a wait that has passed");
                    now = at;
                }
            }
        }
        count
    }

    #[test]
    fn no_limit_never_waits() {
        let throttle = Throttle::default();
        assert_eq!(
            (throttle.wait(0), throttle.limits()),
            (None, RateLimits::default())
        );
        throttle.take(0, u64::MAX);
        assert_eq!(throttle.wait(0), None);
    }

    #[test]
    fn a_burst_then_the_rate() {
        let throttle = iops(1000, 50);
        // 50 at once, then one each millisecond.
        assert_eq!(run(&throttle, 7 * MS, 7 * MS + 1, 0), 50);
        assert_eq!(run(&throttle, 7 * MS + 1, 107 * MS + 1, 0), 100);
        // A rest of 20 ms earns 20; one of an hour no more than the burst.
        assert_eq!(run(&throttle, 127 * MS + 1, 127 * MS + 2, 0), 20);
        assert_eq!(run(&throttle, 3_600_000 * MS, 3_600_000 * MS + 1, 0), 50);
    }

    #[test]
    fn bytes_hold_in_the_mean_whatever_the_size() {
        for size in [512, 4096, 1 << 20, 64 << 20] {
            let throttle = Throttle::default();
            let rate = 100 << 20;
            throttle.set_limits(RateLimits {
                bytes: Rate { rate, burst: 1 << 20 },
                ..RateLimits::default()
            });
            let count = run(&throttle, 0, 10_000 * MS, size);
            let (least, most) = (10 * rate, 10 * rate + (1 << 20) + size);
            assert!((least..=most).contains(&(count * size)), "{count} of {size}");
        }
    }

    #[test]
    fn the_stricter_of_two_decides() {
        let throttle = iops(10, 1);
        throttle.set_limits(RateLimits {
            iops: Rate { rate: 10, burst: 1 },
            bytes: Rate {
                rate: 1 << 20,
                burst: 1,
            },
        });
        assert_eq!(run(&throttle, 0, 1000 * MS, 512), 10);
        assert_eq!(run(&throttle, 10_000 * MS, 14_000 * MS, 1 << 20), 4);
    }

    #[test]
    fn changes_are_felt_at_once() {
        let throttle = iops(1, 1);
        throttle.take(0, 0);
        throttle.take(0, 0);
        assert_eq!(throttle.wait(0), Some(2000 * MS));
        throttle.set_limits(RateLimits::default());
        assert_eq!(throttle.wait(0), None);
        // The extremes do not overflow.
        throttle.set_limits(RateLimits {
            iops: Rate {
                rate: 1,
                burst: u64::MAX,
            },
            bytes: Rate {
                rate: u64::MAX,
                burst: u64::MAX,
            },
        });
        throttle.take(u64::MAX, u64::MAX);
        assert_eq!(throttle.wait(u64::MAX), None);
    }

    // Queues of a disk share its limits: together they get what is allowed, no more.
    #[test]
    fn threads_share_a_limit() {
        let throttle = iops(1000, 10);
        let total: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut count = 0;
                        while throttle.wait(0).is_none() {
                            throttle.take(0, 0);
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // Each may exceed by the one that it was about to take.
        assert!((10..=13).contains(&total), "{total}");
        assert_eq!(throttle.wait(0), Some((total - 9) * MS));
    }
}
