//! [`ConfigError`]: why a description is refused. Each message names source, key, value and what was
//! expected.

/// Why a description is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The zone file cannot be read.
    #[error("{origin}: cannot read the zone file: {cause}")]
    Unreadable {
        /// Path of the zone file.
        origin: String,
        /// The system's error.
        cause: std::io::Error,
    },
    /// The zone file is not TOML.
    #[error("{origin}: not valid TOML: {cause}")]
    Syntax {
        /// Path of the zone file.
        origin: String,
        /// The parser's error, with line and column.
        cause: String,
    },
    /// A required key is missing.
    #[error("{origin}: {key} is missing: expected {expected}")]
    Missing {
        /// Zone file or "command line".
        origin: String,
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key} = {value}: expected one of {known}")]
    UnknownKey {
        /// Zone file or "command line".
        origin: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Keys that exist there.
        known: String,
    },
    /// A value that names something that cannot be used.
    #[error("{origin}: {key} = {value}: {cause}")]
    Unusable {
        /// Zone file or "command line".
        origin: String,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A value out of range or of the wrong type.
    #[error("{origin}: {key} = {value}: expected {expected}")]
    BadValue {
        /// Zone file or "command line".
        origin: String,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What was expected.
        expected: String,
    },
}

impl ConfigError {
    /// Returns a [`Self::BadValue`].
    #[must_use]
    pub fn bad(origin: &str, key: impl Into<String>, value: impl ToString, expected: impl ToString) -> Self {
        Self::BadValue {
            origin: origin.to_owned(),
            key: key.into(),
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }
}

/// Returns `text` as TOML writes it.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}
