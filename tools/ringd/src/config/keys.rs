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
    origin: &'a str,
    /// Prefix of the keys in messages: `disk[0].`, or empty for the top-level table.
    prefix: String,
    table: Table,
    directory: &'a Path,
}

impl<'a> Keys<'a> {
    /// Returns the keys of a top-level table. `origin` names its source in messages; paths are relative to
    /// `directory`.
    #[must_use]
    pub const fn new(origin: &'a str, table: Table, directory: &'a Path) -> Self {
        Self {
            origin,
            prefix: String::new(),
            table,
            directory,
        }
    }

    /// Returns the source of the table, for messages.
    #[must_use]
    pub const fn origin(&self) -> &'a str {
        self.origin
    }

    /// Returns the full name of a key, for messages.
    #[must_use]
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns the value of a key that has not been removed.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }

    /// Returns an error about the value of `key`.
    #[must_use]
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

    /// Removes a key and returns its value.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// Removes a key with text.
    ///
    /// # Errors
    /// The value is no text.
    pub fn string(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<String>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other, expected)),
        }
    }

    /// Removes a key with a truth value.
    ///
    /// # Errors
    /// The value is neither true nor false.
    pub fn boolean(&mut self, key: &str) -> anyhow::Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(other) => Err(self.bad(key, &other, "true or false")),
        }
    }

    /// Removes a key with a path and makes it absolute.
    ///
    /// # Errors
    /// The value is no text, or empty.
    pub fn path(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<PathBuf>> {
        let Some(text) = self.string(key, expected)? else {
            return Ok(None);
        };
        if text.is_empty() {
            return Err(self.bad(key, &Value::String(text), expected));
        }
        Ok(Some(self.directory.join(text)))
    }

    /// Removes a key with one of several words and returns what the word stands for.
    ///
    /// # Errors
    /// The value is none of the words.
    pub fn choice<T: DeserializeOwned>(&mut self, key: &str, names: &[&str]) -> anyhow::Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let named = value.as_str().is_some_and(|name| names.contains(&name));
        let chosen = named.then(|| T::deserialize(value.clone()).ok()).flatten();
        chosen.map(Some).ok_or_else(|| {
            let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
            self.bad(key, &value, names.join(" or "))
        })
    }

    /// Removes a key with a size and returns it in bytes, more than 0.
    ///
    /// # Errors
    /// The value is no size.
    pub fn size(&mut self, key: &str) -> anyhow::Result<Option<u64>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let bytes = value.as_str().and_then(size::parse_size);
        let bytes = bytes.filter(|bytes| *bytes != 0);
        bytes.map(Some).ok_or_else(|| self.bad(key, &value, SIZE))
    }

    /// Removes a key with a number that `T` can hold.
    ///
    /// # Errors
    /// The value is no such number.
    pub fn count<T: TryFrom<i64>>(&mut self, key: &str, expected: &str) -> anyhow::Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = value.as_integer().and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.bad(key, &value, expected))
    }

    /// Removes a section, `[key]`.
    ///
    /// # Errors
    /// The value is no table.
    pub fn section(&mut self, key: &str) -> anyhow::Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(self.inner(format!("{key}."), table))),
            Some(other) => Err(self.bad(key, &other, format!("a [{key}] section"))),
        }
    }

    /// Removes a list of sections, `[[key]]`.
    ///
    /// # Errors
    /// The value is no list of tables.
    pub fn sections(&mut self, key: &str) -> anyhow::Result<Vec<Self>> {
        let expected = format!("[[{key}]] sections");
        let list = match self.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(self.bad(key, &other, expected)),
        };
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
