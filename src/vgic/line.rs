//! An interrupt line between a device and the GIC: [`Line`].

use crate::sync::{AtomicU8, Ordering, mutated};

const HIGH: u8 = 1 << 0;
/// It rose since the GIC looked.
const ROSE: u8 = 1 << 1;

/// The level a device gives its line, on the way to the GIC.
///
/// A device has a lock of its own and must not keep it while the GIC is told, which may wait for the GIC's lock and kicks
/// other CPUs. So it notes the level under its lock ([`Line::latch`]); when that is free again, the same CPU takes the
/// GIC's, asks what became of the line ([`Line::transitions`]) and has the GIC follow. Of two CPUs either can come first: the
/// later one finds nothing new, and the GIC ends with the level that was noted last. An edge is never lost: a line that
/// fell and rose meanwhile falls and rises for the GIC, too.
#[derive(Debug)]
pub struct Line(AtomicU8);

impl Line {
    /// A line that is low.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// The same for loom, whose atomics are not made in constants.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Notes a level, under the device's lock. True if it is another than before: then [`Line::transitions`] has to follow.
    pub fn latch(&self, high: bool) -> bool {
        // Only the holder of the device's lock changes HIGH.
        if (self.0.load(Ordering::Relaxed) & HIGH != 0) == high {
            return false;
        }
        if high {
            let rose = if mutated("line_rose") { 0 } else { ROSE };
            self.0.fetch_or(HIGH | rose, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!HIGH, Ordering::AcqRel);
        }
        true
    }

    /// The levels that the GIC's input has to have, one after the other; the last is the line's level now. Under the
    /// GIC's lock.
    #[must_use]
    pub fn transitions(&self) -> &'static [bool] {
        let seen = if mutated("line_stale") {
            self.0.swap(0, Ordering::AcqRel)
        } else {
            self.0.fetch_and(!ROSE, Ordering::AcqRel)
        };
        match (seen & ROSE != 0, seen & HIGH != 0) {
            (true, true) => &[false, true],
            (true, false) if mutated("line_pulse") => &[false],
            (true, false) => &[false, true, false],
            (false, true) => &[true],
            (false, false) => &[false],
        }
    }
}

#[cfg(not(loom))]
impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Line;

    #[test]
    fn the_gic_follows_the_line() {
        let line = Line::new();
        assert_eq!(line.transitions(), [false]);
        assert!(line.latch(true) && !line.latch(true));
        assert_eq!(line.transitions(), [false, true]);
        assert_eq!(line.transitions(), [true]);
        assert!(line.latch(false) && !line.latch(false));
        assert_eq!(line.transitions(), [false]);
    }

    #[test]
    fn what_happened_before_the_gic_looked_is_one_edge() {
        let line = Line::new();
        let _ = (
            line.latch(true),
            line.transitions(),
            line.latch(false),
            line.latch(true),
        );
        assert_eq!(line.transitions(), [false, true]);
        let _ = (line.latch(false), line.latch(true), line.latch(false));
        assert_eq!(line.transitions(), [false, true, false]);
    }
}
