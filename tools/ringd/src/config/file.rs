//! Zone files: TOML, paths relative to the file. The options of `ringctl zone start` take the same way, as a table
//! that is laid over the file's.
//!
//! Keys are taken out of the table one by one and what is left over is refused, so that each message can name the
//! key, its value and what was expected; the derived deserialisers know neither key nor value at that point.

use std::path::{Path, PathBuf};

use ringblk::{Format, HostCache};
use toml::{Table, Value};

use super::disk::names_no_file;
use super::{
    ConfigError, Cpus, DiskConfig, DiskLimits, Engine, Limit, OnCrash, OnError, OnReboot, ZoneConfig, size,
};

const KEYS: &[&str] = &[
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "cmdline",
    "on_reboot",
    "on_crash",
    "disk",
    "spare_disks",
];
const DISK_SECTIONS: &str = "[[disk]] sections";
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
const SIZE: &str = "a size in quotes such as \"512M\" or \"1G\"";

/// Reads and checks the zone file at `path`, with the keys of `over` (paths relative to the working directory,
/// made absolute by the caller) in place of the file's.
///
/// # Errors
/// The file cannot be read, is not TOML, or describes no possible zone.
pub fn load(path: &Path, over: Table) -> Result<ZoneConfig, ConfigError> {
    let origin = path.display().to_string();
    let unreadable = |cause| ConfigError::Unreadable {
        origin: origin.clone(),
        cause,
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let directory = std::path::absolute(path).map_err(unreadable)?;
    let directory = directory.parent().unwrap_or(Path::new("/"));
    parse(&origin, &text, directory, over)
}

/// Parses the text of a zone file. Paths in it are relative to `directory`.
///
/// # Errors
/// As [`load`].
pub fn parse(origin: &str, text: &str, directory: &Path, over: Table) -> Result<ZoneConfig, ConfigError> {
    let mut table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax {
            origin: origin.to_owned(),
            cause: error.to_string().trim_end().to_owned(),
        })?;
    table.extend(over);
    from_table(origin, table, directory)
}

/// Makes a zone of a table alone, as the command line does.
///
/// # Errors
/// The table describes no possible zone.
pub fn from_table(origin: &str, table: Table, directory: &Path) -> Result<ZoneConfig, ConfigError> {
    let mut keys = Keys {
        origin,
        prefix: String::new(),
        table,
        directory,
    };
    keys.refuse_unknown(KEYS)?;
    let name = keys.string("name", "the zone's name in quotes")?;
    let config = ZoneConfig {
        origin: origin.to_owned(),
        name: keys.required("name", name, "the zone's name in quotes")?,
        cpus: keys.cpus()?,
        memory: keys.memory()?,
        kernel: {
            let kernel = keys.path("kernel", "the path of a kernel image")?;
            keys.required("kernel", kernel, "the path of a kernel image")?
        },
        initrd: keys.path("initrd", "the path of an initial RAM disk")?,
        cmdline: keys
            .string("cmdline", "the kernel's command line in quotes")?
            .unwrap_or_default(),
        on_reboot: keys
            .choice(
                "on_reboot",
                &[("restart", OnReboot::Restart), ("stop", OnReboot::Stop)],
            )?
            .unwrap_or_default(),
        on_crash: keys
            .choice(
                "on_crash",
                &[
                    ("stop", OnCrash::Stop),
                    ("restart", OnCrash::Restart),
                    ("hold", OnCrash::Hold),
                ],
            )?
            .unwrap_or_default(),
        disk: keys.disks()?,
        spare_disks: keys
            .count("spare_disks", "how many drives without a medium to add")?
            .unwrap_or(0),
    };
    config.check()?;
    Ok(config)
}

/// Makes disks of a list of tables, as the command line does.
///
/// # Errors
/// One of them describes no disk.
pub fn disks(origin: &str, list: Vec<Value>, directory: &Path) -> Result<Vec<DiskConfig>, ConfigError> {
    Keys {
        origin,
        prefix: String::new(),
        table: Table::new(),
        directory,
    }
    .disk_list(list)
}

/// Keys of one table not yet taken.
struct Keys<'a> {
    origin: &'a str,
    /// `disk[0].`, or nothing at the top.
    prefix: String,
    table: Table,
    directory: &'a Path,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn bad(&self, key: &str, value: &Value, expected: impl ToString) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin.to_owned(),
            key: self.name(key),
            value: value.to_string().trim().to_owned(),
            expected: expected.to_string(),
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing {
            origin: self.origin.to_owned(),
            key: self.name(key),
            expected: expected.to_owned(),
        })
    }

    fn string(&mut self, key: &str, expected: &str) -> Result<Option<String>, ConfigError> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, &other, expected)),
        }
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(other) => Err(self.bad(key, &other, "true or false")),
        }
    }

    fn path(&mut self, key: &str, expected: &str) -> Result<Option<PathBuf>, ConfigError> {
        let Some(text) = self.string(key, expected)? else {
            return Ok(None);
        };
        if text.is_empty() {
            return Err(self.bad(key, &Value::String(text), expected));
        }
        Ok(Some(self.directory.join(text)))
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let chosen = choices.iter().find(|(name, _)| value.as_str() == Some(name));
        if let Some((_, chosen)) = chosen {
            return Ok(Some(*chosen));
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| super::quoted(name)).collect();
        Err(self.bad(key, &value, names.join(" or ")))
    }

    fn cpus(&mut self) -> Result<Cpus, ConfigError> {
        const EXPECTED: &str = "how many CPUs, or a list of CPU numbers such as [2, 3]";
        let value = self.table.remove("cpus");
        let value = self.required("cpus", value, EXPECTED)?;
        let number = |value: &Value| value.as_integer().and_then(|number| u32::try_from(number).ok());
        let cpus = match &value {
            Value::Integer(_) => number(&value).map(Cpus::Count),
            Value::Array(list) => list
                .iter()
                .map(number)
                .collect::<Option<Vec<u32>>>()
                .map(Cpus::List),
            _ => None,
        };
        cpus.ok_or_else(|| self.bad("cpus", &value, EXPECTED))
    }

    fn memory(&mut self) -> Result<u64, ConfigError> {
        let bytes = self.size("memory")?;
        self.required("memory", bytes, SIZE)
    }

    /// Bytes, more than none.
    fn size(&mut self, key: &str) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let bytes = value.as_str().and_then(size::parse_size);
        let bytes = bytes.filter(|bytes| *bytes != 0);
        bytes.map(Some).ok_or_else(|| self.bad(key, &value, SIZE))
    }

    /// A number that fits.
    fn count<T: TryFrom<i64>>(&mut self, key: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let number = value.as_integer().and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.bad(key, &value, expected))
    }

    fn disks(&mut self) -> Result<Vec<DiskConfig>, ConfigError> {
        match self.table.remove("disk") {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => self.disk_list(list),
            Some(other) => Err(self.bad("disk", &other, DISK_SECTIONS)),
        }
    }

    fn disk_list(&self, list: Vec<Value>) -> Result<Vec<DiskConfig>, ConfigError> {
        let mut disks = Vec::new();
        for (index, entry) in list.into_iter().enumerate() {
            let Value::Table(table) = entry else {
                return Err(self.bad(&format!("disk[{index}]"), &entry, DISK_SECTIONS));
            };
            let prefix = format!("disk[{index}].");
            disks.push(disk(Keys {
                origin: self.origin,
                prefix,
                table,
                directory: self.directory,
            })?);
        }
        Ok(disks)
    }

    /// Refuses keys that do not exist. Called first: a misspelt key explains why the right one is missing.
    fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let mut unknown = self
            .table
            .iter()
            .filter(|(key, _)| !known.contains(&key.as_str()));
        let Some((key, value)) = unknown.next() else {
            return Ok(());
        };
        Err(ConfigError::UnknownKey {
            origin: self.origin.to_owned(),
            key: self.name(key),
            value: value.to_string().trim().to_owned(),
            known: known.join(", "),
        })
    }
}

/// The disk of a vhost-user-blk server, and nothing beside it that is the server's affair.
fn served(keys: &mut Keys<'_>, has_path: bool) -> Result<Option<PathBuf>, ConfigError> {
    let socket = keys.path("vhost_user", "the path of a vhost-user-blk server's socket")?;
    let Some(socket) = socket else {
        return Ok(None);
    };
    let other = ["engine", "format", "cache"].into_iter();
    let other = has_path.then_some("path").into_iter().chain(other);
    for key in other {
        if key == "path" || keys.table.contains_key(key) {
            return Err(ConfigError::BadValue {
                origin: keys.origin.to_owned(),
                key: keys.name("vhost_user"),
                value: super::quoted(&socket.display().to_string()),
                expected: format!("no key {key} beside it: the server has the image"),
            });
        }
    }
    Ok(Some(ringblk::remote::path(&socket)))
}

fn disk(mut keys: Keys<'_>) -> Result<DiskConfig, ConfigError> {
    const PATH: &str = "the path of an image or a block device";
    keys.refuse_unknown(DISK_KEYS)?;
    // Relative to the zone file's directory, unless it names no file.
    let plain = keys.table.get("path").and_then(Value::as_str).map(PathBuf::from);
    let path = keys.path("path", PATH)?;
    let path = plain.filter(|plain| names_no_file(plain)).or(path);
    let path = served(&mut keys, path.is_some())?.or(path);
    let path = keys.required("path", path, PATH)?;
    let disk = DiskConfig {
        readonly: keys.boolean("readonly")?.unwrap_or(false),
        serial: keys.string("serial", "a serial number in quotes")?,
        engine: keys
            .choice(
                "engine",
                &[("io_uring", Engine::IoUring), ("threads", Engine::Threads)],
            )?
            .unwrap_or_default(),
        format: keys
            .choice("format", &[("raw", Format::Raw), ("qcow2", Format::Qcow2)])?
            .unwrap_or_default(),
        cache: keys
            .choice(
                "cache",
                &[("none", HostCache::None), ("writeback", HostCache::Writeback)],
            )?
            .unwrap_or_default(),
        queues: keys.count("queues", "how many queues")?,
        discard: keys.boolean("discard")?.unwrap_or(true),
        on_error: keys
            .choice(
                "on_error",
                &[("report", OnError::Report), ("stop", OnError::Stop)],
            )?
            .unwrap_or_default(),
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
    };
    Ok(disk)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
