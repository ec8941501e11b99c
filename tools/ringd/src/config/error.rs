//! Why a description is refused. Each message names source, key, value and what was expected.

use std::fmt::Display;

use anyhow::anyhow;

/// Returns the error that `key` of the description in `origin` has another value than `expected`.
pub fn bad(origin: &str, key: impl Display, value: impl Display, expected: impl Display) -> anyhow::Error {
    anyhow!("{origin}: {key} = {value}: expected {expected}")
}

/// Returns `text` in quotes, as a zone file has it.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}
