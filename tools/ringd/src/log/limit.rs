//! [`Limit`]: a limit for log lines that are alike, because a guest can cause some of them at any rate.
//!
//! Lines are alike if they come from one place in the source and name the same zone, or the same path where
//! there is no zone. A line that passes after others did not says how many they were.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use crate::limits;

/// Lines that pass at once.
const BURST: u32 = 20;
/// Time for each further line.
const PERIOD: Duration = Duration::from_secs(5);
/// Most kinds of lines that are remembered.
const KINDS: usize = 4096;

/// Writes a line of the limit's own.
pub type Say = Box<dyn Fn(&str) + Send + Sync>;

/// A filter of a log.
pub struct Limit {
    kinds: Mutex<HashMap<(Identifier, u64), Bucket>>,
    say: Say,
}

/// The lines of one kind.
struct Bucket {
    lines: u32,
    since: Instant,
    left_out: u64,
}

impl Limit {
    /// Returns a limit that tells by `say` what was left out.
    pub fn new(say: Say) -> Self {
        Self {
            kinds: Mutex::default(),
            say,
        }
    }

    /// Returns whether a line of this kind passes; if so, how many before it did not.
    fn passes(&self, kind: (Identifier, u64), now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            kinds.clear();
        }
        let bucket = kinds.entry(kind).or_insert(Bucket {
            lines: BURST,
            since: now,
            left_out: 0,
        });
        let periods = now.saturating_duration_since(bucket.since).as_secs() / PERIOD.as_secs();
        if periods > 0 {
            let earned = u32::try_from(periods).unwrap_or(u32::MAX);
            bucket.lines = bucket.lines.saturating_add(earned).min(BURST);
            bucket.since = now;
        }
        match bucket.lines.checked_sub(1) {
            Some(left) => {
                bucket.lines = left;
                Some(std::mem::take(&mut bucket.left_out))
            }
            None => {
                bucket.left_out += 1;
                None
            }
        }
    }
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more wants all.
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut about = About::default();
        event.record(&mut about);
        let Some(left_out) = self.passes((metadata.callsite(), about.hash()), Instant::now()) else {
            limits::count(&limits::LOG_LINES);
            return false;
        };
        if left_out > 0 {
            (self.say)(&format!(
                "({left_out} more lines like the next one were left out)\n"
            ));
        }
        true
    }
}

/// What a line is about.
#[derive(Default)]
struct About {
    zone: String,
    path: String,
}

impl About {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let about = if self.zone.is_empty() {
            &self.path
        } else {
            &self.zone
        };
        about.hash(&mut hasher);
        hasher.finish()
    }
}

impl Visit for About {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "zone" => &mut self.zone,
            "path" => &mut self.path,
            _ => return,
        };
        // Writing to a string does not fail.
        let _ = write!(text, "{value:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::prelude::*;

    use super::{BURST, Limit};

    /// Collects what is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_zone_has_its_share_of_lines() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(Limit::new(Box::new(|_| {})));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let broken = |zone: u8| tracing::warn!(zone, "a queue is broken");
            (0..1000).for_each(|_| broken(1));
            broken(2);
            (0..1000).for_each(|_| tracing::error!(zone = "a", path = "x", "it failed"));
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("zone=1"), BURST as usize);
        assert_eq!(count("zone=2"), 1);
        assert_eq!(count("it failed"), BURST as usize);
    }

    #[test]
    fn what_was_left_out_is_said_later() {
        use tracing::callsite::Callsite as _;
        let limit = Limit::new(Box::new(|_| {}));
        let callsite =
            tracing::callsite!(name: "test", kind: tracing::metadata::Kind::EVENT, fields: message);
        let kind = || (callsite.metadata().callsite(), 7);
        let now = std::time::Instant::now();
        let passed = (0..100).filter(|_| limit.passes(kind(), now).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limit.passes(kind(), now + super::PERIOD), Some(80));
        assert_eq!(limit.passes(kind(), now + super::PERIOD), None);
        assert_eq!(limit.passes(kind(), now + 2 * super::PERIOD), Some(1));
    }
}
