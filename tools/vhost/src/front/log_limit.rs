//! [`LogLimit`]: a rate limit for log lines about a server, which may come, go and misbehave at any rate.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Most log lines of a period.
const LINES: u32 = 20;
/// Length of a period.
const PERIOD: Duration = Duration::from_secs(10);

/// A rate limit for log lines.
#[derive(Default)]
pub struct LogLimit(Mutex<Option<Period>>);

struct Period {
    begin: Instant,
    lines: u32,
}

impl LogLimit {
    /// Counts a log line, and returns whether it may be logged.
    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut period = self.0.lock();
        let fresh = Period { begin: now, lines: 0 };
        let period = match &mut *period {
            Some(period) if now.saturating_duration_since(period.begin) < PERIOD => period,
            other => other.insert(fresh),
        };
        period.lines = period.lines.saturating_add(1);
        if period.lines == LINES {
            tracing::warn!("too many log lines about a disk's server: no more for {PERIOD:?}");
        }
        period.lines < LINES
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::LogLimit;

    #[test]
    fn log_lines_about_a_server_are_limited() {
        let (limit, begin) = (LogLimit::default(), Instant::now());
        let logged = |from: u64| {
            let times = (0..1000).map(|ms| begin + Duration::from_millis(from + ms));
            times.filter(|&now| limit.allows_at(now)).count()
        };
        assert_eq!(logged(0), 19);
        assert_eq!(logged(5_000), 0);
        assert_eq!(logged(10_000), 19);
    }
}
