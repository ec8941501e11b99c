//! An interrupt line between a device and the GIC: [`Line`].

use crate::sync::{AtomicU8, Ordering, mutated};

const HIGH: u8 = 1 << 0;
/// The line rose since the GIC last propagated it.
const ROSE: u8 = 1 << 1;

/// The level of a device's interrupt line, latched on its way to the GIC.
///
/// A device must not hold its own lock while the level propagates to the GIC, which may wait for the GIC's
/// lock and kicks other CPUs. So the level is latched under the device's lock ([`Line::latch`]); after its
/// release, the same CPU takes the GIC's lock, reads the transitions ([`Line::transitions`]) and applies them
/// to the GIC's input. Of two CPUs either can come first: the later one finds nothing new, and the GIC ends
/// with the level that was latched last. An edge is never lost: a line that fell and rose meanwhile falls and
/// rises for the GIC, too.
#[derive(Debug)]
pub struct Line(AtomicU8);

impl Line {
    /// Returns a line that is low.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// As above, for loom, whose atomics cannot be constants.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Latches a level, under the device's lock. Returns whether it changed: then [`Line::transitions`] must
    /// follow.
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

    /// Returns the levels that the GIC's input must take, one after the other; the last is the line's level
    /// now. Called under the GIC's lock.
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
    fn the_gic_takes_the_level_of_the_line() {
        let line = Line::new();
        assert_eq!(line.transitions(), [false]);
        assert!(line.latch(true) && !line.latch(true));
        assert_eq!(line.transitions(), [false, true]);
        assert_eq!(line.transitions(), [true]);
        assert!(line.latch(false) && !line.latch(false));
        assert_eq!(line.transitions(), [false]);
    }

    #[test]
    fn edges_before_a_propagation_are_one_edge() {
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
