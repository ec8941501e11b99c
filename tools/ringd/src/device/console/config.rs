//! [`ConsoleConfig`]: a `[[console]]` section of a zone file, or an option `--console`.

use std::path::{Path, PathBuf};

use ringconsole::PORTS_MAX;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::error::{bad, quoted};
use crate::config::keys::Keys;

const KEYS: &[&str] = &["pty", "socket", "log"];
/// The origin of consoles that options describe.
const COMMAND_LINE: &str = "command line";
/// Longest path of a Unix socket: `sun_path` without its final zero.
const SOCKET_MAX: usize = 107;

/// A console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Its other end; `ringctl zone console` alone if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// The file that has its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

impl ConsoleConfig {
    /// Returns the key of its other end and its value, for messages.
    pub fn shown(&self) -> (&'static str, String) {
        match &self.end {
            Some(End::Socket(path)) => ("socket", quoted(&path.display().to_string())),
            Some(End::Pty) | None => ("pty", "true".into()),
        }
    }
}

/// The other end of a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A pty with a name in the run directory.
    Pty,
    /// A Unix stream socket that listens.
    Socket(PathBuf),
}

/// Takes the consoles from a zone file's keys.
///
/// # Errors
/// A key of a console is wrong.
pub fn consoles(keys: &mut Keys<'_>) -> anyhow::Result<Vec<ConsoleConfig>> {
    keys.sections("console")?.into_iter().map(console).collect()
}

fn console(mut keys: Keys<'_>) -> anyhow::Result<ConsoleConfig> {
    keys.refuse_unknown(KEYS)?;
    let given = keys.peek("socket").cloned();
    let pty = keys.boolean("pty")?.unwrap_or(false);
    let socket = keys.path("socket", "the path of a socket that is to be made")?;
    let end = match (pty, socket) {
        (true, Some(_)) => {
            let value = given.unwrap_or(Value::Boolean(true));
            return Err(keys.bad("socket", &value, "only one of pty and socket"));
        }
        (true, None) => Some(End::Pty),
        (false, socket) => socket.map(End::Socket),
    };
    Ok(ConsoleConfig {
        end,
        log: log(&mut keys, "log")?,
    })
}

/// Takes the path of a log file.
///
/// # Errors
/// It is none.
pub fn log(keys: &mut Keys<'_>, key: &str) -> anyhow::Result<Option<PathBuf>> {
    keys.path(key, "the path of a log file")
}

/// Checks a zone's consoles; `console_log` is the log of the PL011.
///
/// # Errors
/// There are too many, or two would write to the same file or socket.
pub fn check_all(consoles: &[ConsoleConfig], console_log: Option<&Path>, origin: &str) -> anyhow::Result<()> {
    if consoles.len() > PORTS_MAX {
        let expected = format!("at most {PORTS_MAX}");
        return Err(bad(origin, "console", consoles.len(), &expected));
    }
    for (index, console) in consoles.iter().enumerate() {
        let before = consoles.get(..index).unwrap_or_default();
        let path = |path: &Path| quoted(&path.display().to_string());
        if let Some(End::Socket(socket)) = &console.end {
            let key = format!("console[{index}].socket");
            if before.iter().any(|other| other.end == console.end) {
                let expected = "a socket that no other console of the zone has";
                return Err(bad(origin, key, path(socket), expected));
            }
            if socket.as_os_str().len() > SOCKET_MAX {
                let expected = format!("at most {SOCKET_MAX} bytes, with the zone file's directory");
                return Err(bad(origin, key, path(socket), &expected));
            }
        }
        let mut others = before
            .iter()
            .map(|other| other.log.as_deref())
            .chain([console_log]);
        if let Some(log) = console
            .log
            .as_deref()
            .filter(|log| others.any(|other| other == Some(*log)))
        {
            let key = format!("console[{index}].log");
            let expected = "a file that no other console of the zone has";
            return Err(bad(origin, key, path(log), expected));
        }
    }
    Ok(())
}

/// Returns the consoles that options describe: `KEY[=VALUE],...`. Paths are relative to `directory`.
///
/// # Errors
/// One of them describes no console.
pub fn from_options(options: &[String], directory: &Path) -> anyhow::Result<Vec<ConsoleConfig>> {
    let sections = options.iter().map(|text| section(text)).collect();
    let table = Table::from_iter([("console".to_owned(), Value::Array(sections))]);
    consoles(&mut Keys::new(COMMAND_LINE, table, directory))
}

/// Returns an option as the section that a zone file would hold; `pty` alone means true.
fn section(option: &str) -> Value {
    let pairs = option.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        None if pair == "pty" => (pair, Value::Boolean(true)),
        Some(("pty", value)) => (
            "pty",
            value
                .parse()
                .map_or_else(|_| Value::String(value.into()), Value::Boolean),
        ),
        Some((key, value)) => (key, Value::String(value.into())),
        None => (pair, Value::String(String::new())),
    });
    Value::Table(Table::from_iter(
        pairs.map(|(key, value)| (key.to_owned(), value)),
    ))
}
