//! Negative controls: a part of the device is left out, so that the tests that need it can be shown to
//! notice.
//!
//! A feature leaves it out of a daemon. In a test program (feature `fakes`, debug assertions) the environment
//! variable `RINGVISOR_SABOTAGE` does, with the features' names: no other program has to be built.

/// Returns whether the environment asks to leave out `part`.
#[cfg(all(debug_assertions, any(test, feature = "fakes")))]
pub fn requested(part: &str) -> bool {
    static PARTS: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("RINGVISOR_SABOTAGE").unwrap_or_default());
    PARTS.split_whitespace().any(|word| word == part)
}

/// Returns whether the environment asks to leave out `part`: not of this program.
#[cfg(not(all(debug_assertions, any(test, feature = "fakes"))))]
#[inline(always)]
pub fn requested(_part: &str) -> bool {
    false
}
