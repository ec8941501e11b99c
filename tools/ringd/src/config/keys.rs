//! [`Keys`]: a TOML table taken apart key by key.
//!
//! Unknown keys are refused, then keys are removed one by one, so that each message can name the key, its
//! value and what was expected; the derived deserialisers know neither key nor value at that point.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::error::{bad, quoted};
use super::size;

/// What a size is to look like.
pub const SIZE: &str = "a size in quotes such as \"512M\" or \"1G\"";

/// The keys of one table that have not been removed yet.
pub struct Keys<'a> {
    /// The source of the table, for messages.
    pub origin: &'a str,
    /// Prefix of the keys in messages: `disk[0].`, or empty for the top-level table.
    prefix: String,
    table: Table,
    directory: &'a Path,
}

impl<'a> Keys<'a> {
    /// Returns the keys of a top-level table. `origin` names its source in messages; paths are relative to
    /// `directory`.
    pub const fn new(origin: &'a str, table: Table, directory: &'a Path) -> Self {
        Self {
            origin,
            prefix: String::new(),
            table,
            directory,
        }
    }

    /// Returns the full name of a key, for messages.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns the value of a key that has not been removed.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }

    /// Returns an error about the value of `key`.
    pub fn bad(&self, key: &str, value: &Value, expected: impl Display) -> anyhow::Error {
        bad(self.origin, self.name(key), value.to_string().trim(), expected)
    }

    /// Returns the error that a key is missing.
    pub fn missing(&self, key: &str, expected: &str) -> anyhow::Error {
        anyhow!(
            "{}: {} is missing: expected {expected}",
            self.origin,
            self.name(key)
        )
    }

    /// Removes a key and returns what `convert` makes of its value.
    ///
    /// # Errors
    /// It makes nothing of it: the value is not as `expected`.
    pub fn get<T>(
        &mut self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let converted = convert(&value);
        converted.map(Some).ok_or_else(|| self.bad(key, &value, expected))
    }

    /// Removes a key with text.
    ///
    /// # Errors
    /// The value is no text.
    pub fn string(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<String>> {
        self.get(key, expected, |value| value.as_str().map(str::to_owned))
    }

    /// Removes a key with a truth value.
    ///
    /// # Errors
    /// The value is neither true nor false.
    pub fn boolean(&mut self, key: &str) -> anyhow::Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    /// Removes a key with a path and makes it absolute.
    ///
    /// # Errors
    /// The value is no text, or empty.
    pub fn path(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<PathBuf>> {
        let directory = self.directory;
        self.get(key, expected, |value| {
            let text = value.as_str().filter(|text| !text.is_empty());
            text.map(|text| directory.join(text))
        })
    }

    /// Removes a key with one of several words and returns what the word stands for.
    ///
    /// # Errors
    /// The value is none of the words.
    pub fn choice<T: DeserializeOwned>(&mut self, key: &str, words: &[&str]) -> anyhow::Result<Option<T>> {
        let expected: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        self.get(key, &expected.join(" or "), |value| {
            let named = value.as_str().is_some_and(|word| words.contains(&word));
            named.then(|| T::deserialize(value.clone()).ok()).flatten()
        })
    }

    /// Removes a key with a size and returns it in bytes, more than 0.
    ///
    /// # Errors
    /// The value is no size.
    pub fn size(&mut self, key: &str) -> anyhow::Result<Option<u64>> {
        self.get(key, SIZE, |value| {
            let bytes = value.as_str().and_then(size::parse_size);
            bytes.filter(|bytes| *bytes != 0)
        })
    }

    /// Removes a key with a number that `T` can hold.
    ///
    /// # Errors
    /// The value is no such number.
    pub fn count<T: TryFrom<i64>>(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<T>> {
        self.get(key, expected, |value| T::try_from(value.as_integer()?).ok())
    }

    /// Removes a section, `[key]`.
    ///
    /// # Errors
    /// The value is no table.
    pub fn section(&mut self, key: &str) -> anyhow::Result<Option<Self>> {
        let table = self.get(key, &format!("a [{key}] section"), |value| {
            value.as_table().cloned()
        })?;
        Ok(table.map(|table| self.inner(format!("{key}."), table)))
    }

    /// Removes a list of sections, `[[key]]`.
    ///
    /// # Errors
    /// The value is no list of tables.
    pub fn sections(&mut self, key: &str) -> anyhow::Result<Vec<Self>> {
        let expected = format!("[[{key}]] sections");
        let list = self
            .get(key, &expected, |value| value.as_array().cloned())?
            .unwrap_or_default();
        let one = |(index, entry)| match entry {
            Value::Table(table) => Ok(self.inner(format!("{key}[{index}]."), table)),
            other => Err(self.bad(&format!("{key}[{index}]"), &other, &expected)),
        };
        list.into_iter().enumerate().map(one).collect()
    }

    fn inner(&self, prefix: String, table: Table) -> Self {
        Self {
            prefix,
            table,
            ..*self
        }
    }

    /// Refuses keys other than `known`. Called before any is removed: a misspelt key explains why the right
    /// one is missing.
    ///
    /// # Errors
    /// There is one; the message lists `known`.
    pub fn refuse_unknown(&self, known: &[&str]) -> anyhow::Result<()> {
        let mut unknown = self
            .table
            .iter()
            .filter(|(key, _)| !known.contains(&key.as_str()));
        let Some((key, value)) = unknown.next() else {
            return Ok(());
        };
        let (origin, key, value) = (self.origin, self.name(key), value.to_string());
        let known = known.join(", ");
        bail!(
            "{origin}: unknown key {key} = {}: expected one of {known}",
            value.trim()
        )
    }
}
