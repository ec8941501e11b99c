//! [`RngConfig`]: the `[rng]` section of a zone file, or the option `--rng`.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::error::{bad, quoted};
use crate::config::keys::Keys;
use crate::config::size::format_size;

const KEYS: &[&str] = &["bps"];

/// An entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// Bytes per second; no limit if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<u64>,
}

impl RngConfig {
    /// Takes the device from a zone file's keys.
    ///
    /// # Errors
    /// A key of the section is wrong.
    pub fn from_keys(keys: &mut Keys<'_>) -> anyhow::Result<Option<Self>> {
        let Some(mut keys) = keys.section("rng")? else {
            return Ok(None);
        };
        keys.refuse_unknown(KEYS)?;
        let bps = keys.size("bps")?;
        Ok(Some(Self { bps }))
    }

    /// Checks everything that can be checked without the machine.
    ///
    /// # Errors
    /// The limit is 0.
    pub fn check(&self, origin: &str) -> anyhow::Result<()> {
        match self.bps {
            Some(0) => {
                let expected = "more than 0; without the key there is no limit";
                Err(bad(origin, "rng.bps", quoted(&format_size(0)), expected))
            }
            _ => Ok(()),
        }
    }
}

/// Returns `[KEY=VALUE,...]` as the section that a zone file would hold. What is no key is refused by the
/// parser of the section.
pub fn section(option: &str) -> Value {
    let pairs = option.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    Value::Table(Table::from_iter(
        pairs.map(|(key, value)| (key.to_owned(), Value::String(value.into()))),
    ))
}
