//! Named points between the steps of a request, at which tests abandon the device as a kill would.
//!
//! Without the `fakes` feature, [`step`] is nothing.

/// The end of a step.
#[cfg(not(any(test, feature = "fakes")))]
#[inline(always)]
pub fn step(_name: &'static str) {}

#[cfg(any(test, feature = "fakes"))]
pub use armed::step;
#[cfg(any(test, feature = "fakes"))]
pub use armed::{Killed, arm, disarm};

#[cfg(any(test, feature = "fakes"))]
mod armed {
    use std::cell::Cell;
    use std::panic::resume_unwind;

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// What unwinds from the step at which the device "was killed".
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Killed(pub &'static str);

    /// From now on, on this thread, `steps` steps pass and the next one unwinds with [`Killed`].
    pub fn arm(steps: u64) {
        LEFT.set(Some(steps));
    }

    /// No step unwinds any more. Returns whether none had.
    pub fn disarm() -> bool {
        LEFT.take().is_some()
    }

    /// The end of a step. Nothing without debug assertions: benchmarks are built with the feature.
    #[inline]
    pub fn step(name: &'static str) {
        if cfg!(debug_assertions) {
            pass(name);
        }
    }

    fn pass(name: &'static str) {
        match LEFT.get() {
            None => {}
            Some(0) => {
                LEFT.set(None);
                resume_unwind(Box::new(Killed(name)));
            }
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }
}
