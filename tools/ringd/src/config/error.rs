//! Why a description is refused. Each message names source, key, value and what was expected.

use std::fmt::Display;

/// A value, or a key, that a description should not have.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {what}")]
pub struct Mistake {
    origin: String,
    what: String,
    /// The key's full name, such as `disk[0].path`.
    pub key: String,
    /// The keys that there are, if this one is unknown.
    pub known: Vec<String>,
}

/// Returns the error that `key` of the description in `origin` has another value than `expected`.
pub fn bad(origin: &str, key: impl Display, value: impl Display, expected: impl Display) -> anyhow::Error {
    mistake(
        origin,
        key.to_string(),
        format!("{key} = {value}: expected {expected}"),
    )
}

/// Returns the error that `key` is missing.
pub fn missing(origin: &str, key: String, expected: impl Display) -> anyhow::Error {
    let what = format!("{key} is missing: expected {expected}");
    mistake(origin, key, what)
}

/// Returns the error that there is no such key as `key`, but `known`.
pub fn unknown(origin: &str, key: String, value: impl Display, known: &[&str]) -> anyhow::Error {
    let list = known.join(", ");
    Mistake {
        origin: origin.into(),
        what: format!("unknown key {key} = {value}: expected one of {list}"),
        key,
        known: known.iter().map(|&key| key.into()).collect(),
    }
    .into()
}

fn mistake(origin: &str, key: String, what: String) -> anyhow::Error {
    Mistake {
        origin: origin.into(),
        what,
        key,
        known: Vec::new(),
    }
    .into()
}

/// Returns `text` in quotes, as a zone file has it.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}
