//! Disks in a zone file (`[[disk]]`) and on the command line (`PATH[,KEY=VALUE...]`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml::{Table, Value};

use super::config::{DiskConfig, DiskLimits, Limit, names_no_file};
use crate::config::error::{bad, quoted};
use crate::config::keys::Keys;

const DISK_KEYS: &[&str] = &[
    "path",
    "vhost_user",
    "readonly",
    "serial",
    "engine",
    "format",
    "cache",
    "queues",
    "discard",
    "on_error",
    "iops",
    "iops_burst",
    "bps",
    "bps_burst",
];
/// The origin of disks that options describe.
const COMMAND_LINE: &str = "command line";

/// Takes the disks from a zone file's keys.
///
/// # Errors
/// A key of a disk is wrong.
pub fn disks(keys: &mut Keys<'_>) -> anyhow::Result<Vec<DiskConfig>> {
    keys.sections("disk")?.into_iter().map(disk).collect()
}

/// Takes the number of drives without a medium from a zone file's keys.
///
/// # Errors
/// It is no number.
pub fn spare_disks(keys: &mut Keys<'_>) -> anyhow::Result<u32> {
    let spare = keys.count("spare_disks", "how many drives without a medium to add")?;
    Ok(spare.unwrap_or(0))
}

/// Returns the disks that options describe, their paths relative to `directory`.
///
/// # Errors
/// One of them describes no disk.
pub fn from_options(options: &[String], directory: &Path) -> anyhow::Result<Vec<DiskConfig>> {
    let disks: anyhow::Result<Vec<Value>> = options.iter().map(|text| table(text, directory)).collect();
    let section = Table::from_iter([("disk".to_owned(), Value::Array(disks?))]);
    self::disks(&mut Keys::new(COMMAND_LINE, section, directory))
}

/// Returns the one disk that an argument describes, its path relative to the working directory.
///
/// # Errors
/// It describes no disk.
pub fn from_argument(text: &str) -> anyhow::Result<DiskConfig> {
    let here = std::env::current_dir().context("cannot find the working directory")?;
    let disks = from_options(&[text.to_owned()], &here)?;
    disks.into_iter().next().context("no disk is described")
}

/// Returns `PATH[,KEY=VALUE...]` as the table that a zone file would hold. `readonly` alone means true. A
/// value of the wrong type is refused by the parser of the table.
fn table(text: &str, here: &Path) -> anyhow::Result<Value> {
    let mut table = Table::new();
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if !path.is_empty() {
        let path = if names_no_file(Path::new(path)) {
            path.to_owned()
        } else {
            here.join(path).display().to_string()
        };
        table.insert("path".into(), Value::String(path));
    }
    for part in parts {
        let (key, value) = match part.split_once('=') {
            None if part == "readonly" => (part, "true"),
            Some(pair) => pair,
            None => {
                let expected = "PATH[,KEY=VALUE...], keys as in a zone file";
                return Err(bad(COMMAND_LINE, "disk", quoted(text), expected));
            }
        };
        let text = || Value::String(value.into());
        let value = match key {
            "readonly" | "discard" => value.parse().map_or_else(|_| text(), Value::Boolean),
            "queues" | "iops" | "iops_burst" => value.parse().map_or_else(|_| text(), Value::Integer),
            _ => text(),
        };
        table.insert(key.into(), value);
    }
    Ok(Value::Table(table))
}

/// Takes the disk of a vhost-user-blk server. Keys that are the server's business are refused beside it.
fn remote(keys: &mut Keys<'_>, has_path: bool) -> anyhow::Result<Option<PathBuf>> {
    let socket = keys.path("vhost_user", "the path of a vhost-user-blk server's socket")?;
    let Some(socket) = socket else {
        return Ok(None);
    };
    let other = ["engine", "format", "cache"].into_iter();
    let other = has_path.then_some("path").into_iter().chain(other);
    for key in other {
        if key == "path" || keys.peek(key).is_some() {
            let value = quoted(&socket.display().to_string());
            let expected = format!("no key {key} beside it: the server has the image");
            return Err(bad(keys.origin, keys.name("vhost_user"), value, expected));
        }
    }
    Ok(Some(ringblk::remote::path(&socket)))
}

fn disk(mut keys: Keys<'_>) -> anyhow::Result<DiskConfig> {
    const PATH: &str = "the path of an image or a block device";
    keys.refuse_unknown(DISK_KEYS)?;
    // Relative to the zone file's directory, unless it names no file.
    let plain = keys.peek("path").and_then(Value::as_str).map(PathBuf::from);
    let path = keys.path("path", PATH)?;
    let path = plain.filter(|plain| names_no_file(plain)).or(path);
    let path = remote(&mut keys, path.is_some())?.or(path);
    let path = path.ok_or_else(|| keys.missing("path", PATH))?;
    Ok(DiskConfig {
        readonly: keys.boolean("readonly")?.unwrap_or(false),
        serial: keys.string("serial", "a serial number in quotes")?,
        engine: keys
            .choice("engine", &["io_uring", "threads"])?
            .unwrap_or_default(),
        format: keys.choice("format", &["raw", "qcow2"])?,
        cache: keys.choice("cache", &["none", "writeback"])?.unwrap_or_default(),
        queues: keys.count("queues", "how many queues")?,
        discard: keys.boolean("discard")?.unwrap_or(true),
        on_error: keys.choice("on_error", &["report", "stop"])?.unwrap_or_default(),
        limits: DiskLimits {
            iops: Limit {
                rate: keys.count("iops", "requests a second")?,
                burst: keys.count("iops_burst", "how many requests at once after a rest")?,
            },
            bps: Limit {
                rate: keys.size("bps")?,
                burst: keys.size("bps_burst")?,
            },
        },
        ..DiskConfig::new(path)
    })
}
