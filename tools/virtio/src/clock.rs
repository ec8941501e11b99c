//! Time as queues see it: nanoseconds of a monotonic clock, or of one that a test sets.

use std::sync::LazyLock;
#[cfg(any(test, feature = "fakes"))]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Instant;

/// All monotonic clocks of the process count from here, so that their times can be compared.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A source of time.
#[derive(Clone, Default, Debug)]
pub enum Clock {
    /// The system's monotonic clock, from its first use in this process.
    #[default]
    Monotonic,
    /// Stands still until it is set.
    #[cfg(any(test, feature = "fakes"))]
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// Returns the nanoseconds so far.
    #[inline]
    pub fn now(&self) -> u64 {
        match self {
            // It overflows after 584 years.
            Self::Monotonic => START.elapsed().as_nanos() as u64,
            #[cfg(any(test, feature = "fakes"))]
            Self::Manual(time) => time.load(Ordering::Relaxed),
        }
    }
}
