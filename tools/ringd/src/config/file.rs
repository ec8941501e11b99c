//! Zone files: TOML, paths relative to the file. The options of `ringctl zone start` take the same way, as a
//! table whose keys replace the file's.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use toml::{Table, Value};

use super::boot::Boot;
use super::keys::{Keys, SIZE};
use super::zone::{Cpus, FlashConfig, ZoneConfig};
use crate::device::config::Configs;
use crate::regular;

/// Most bytes of a zone file.
const SIZE_MAX: u64 = 1 << 20;

const KEYS: &[&str] = &[
    "name",
    "cpus",
    "memory",
    "kernel",
    "firmware",
    "variables",
    "load",
    "initrd",
    "cmdline",
    "on_reboot",
    "on_crash",
    "boot",
];

/// What a zone file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneFile {
    /// The zone, for the daemon.
    pub config: ZoneConfig,
    /// Whether and when it starts with the machine.
    pub boot: Boot,
}

/// Reads and checks the zone file at `path`, with the keys of `over` (paths relative to the working
/// directory, made absolute by the caller) in place of the file's.
///
/// # Errors
/// The file cannot be read, is not TOML, or describes no possible zone.
pub fn load(path: &Path, over: Table) -> anyhow::Result<ZoneConfig> {
    let (text, directory) = read(path)?;
    parse(&path.display().to_string(), &text, &directory, over)
}

/// Reads and checks the zone file at `path` alone.
///
/// # Errors
/// As [`load`].
pub fn load_file(path: &Path) -> anyhow::Result<ZoneFile> {
    let (text, directory) = read(path)?;
    parse_file(&path.display().to_string(), &text, &directory)
}

/// Returns the text of the zone file at `path`, and its directory.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> anyhow::Result<(String, PathBuf)> {
    let origin = path.display();
    let unreadable = |cause| anyhow!("{origin}: cannot read the zone file: {cause}");
    let text = regular::read_to_string(path, SIZE_MAX).map_err(unreadable)?;
    let directory = std::path::absolute(path).map_err(unreadable)?;
    Ok((text, directory.parent().unwrap_or(Path::new("/")).to_owned()))
}

/// Parses the text of a zone file. Paths in it are relative to `directory`.
///
/// # Errors
/// As [`load`].
pub fn parse(origin: &str, text: &str, directory: &Path, over: Table) -> anyhow::Result<ZoneConfig> {
    let mut table = table(origin, text)?;
    table.extend(over);
    from_table(origin, table, directory)
}

/// Parses the text of a zone file alone.
///
/// # Errors
/// As [`load`].
pub fn parse_file(origin: &str, text: &str, directory: &Path) -> anyhow::Result<ZoneFile> {
    file_from_table(origin, table(origin, text)?, directory)
}

/// Parses TOML.
///
/// # Errors
/// It is none.
pub fn table(origin: &str, text: &str) -> anyhow::Result<Table> {
    text.parse().map_err(|error: toml::de::Error| {
        anyhow!("{origin}: not valid TOML: {}", error.to_string().trim_end())
    })
}

/// Makes a zone of a table alone, as the command line does.
///
/// # Errors
/// The table describes no possible zone.
pub fn from_table(origin: &str, table: Table, directory: &Path) -> anyhow::Result<ZoneConfig> {
    Ok(file_from_table(origin, table, directory)?.config)
}

/// Makes what a zone file says of a table.
///
/// # Errors
/// The table describes no possible zone.
pub fn file_from_table(origin: &str, table: Table, directory: &Path) -> anyhow::Result<ZoneFile> {
    let mut keys = Keys::new(origin, table, directory);
    keys.refuse_unknown(&[KEYS, Configs::KEYS].concat())?;
    const NAME: &str = "the zone's name in quotes";
    const KERNEL: &str = "the path of a kernel, or firmware in its place";
    const LOAD: &str = "an address such as 0x40280000";
    let name = keys.string("name", NAME)?;
    let (firmware, flash) = flash(&mut keys)?.unzip();
    let config = ZoneConfig {
        origin: origin.to_owned(),
        name: name.ok_or_else(|| keys.missing("name", NAME))?,
        cpus: cpus(&mut keys)?,
        memory: keys.size("memory")?.ok_or_else(|| keys.missing("memory", SIZE))?,
        kernel: match firmware {
            Some(firmware) => firmware,
            None => keys
                .path("kernel", KERNEL)?
                .ok_or_else(|| keys.missing("kernel", KERNEL))?,
        },
        flash,
        load: keys.get("load", LOAD, |value| value.as_integer()?.try_into().ok())?,
        initrd: keys.path("initrd", "the path of an initial RAM disk")?,
        cmdline: keys
            .string("cmdline", "the kernel's command line in quotes")?
            .unwrap_or_default(),
        on_reboot: keys
            .choice("on_reboot", &["restart", "stop"])?
            .unwrap_or_default(),
        on_crash: keys
            .choice("on_crash", &["stop", "restart", "hold"])?
            .unwrap_or_default(),
        devices: Configs::from_keys(&mut keys)?,
    };
    let boot = Boot::from_keys(&mut keys)?;
    config.check()?;
    Ok(ZoneFile { config, boot })
}

/// Returns the path of the firmware, if there is one, and its flash.
fn flash(keys: &mut Keys<'_>) -> anyhow::Result<Option<(PathBuf, FlashConfig)>> {
    for (key, expected) in [
        ("kernel", "kernel or firmware, not both"),
        ("variables", "variables beside firmware only"),
    ] {
        let clash = (key == "kernel") == keys.peek("firmware").is_some();
        if let Some(value) = keys.peek(key).filter(|_| clash).cloned() {
            return Err(keys.bad(key, &value, expected));
        }
    }
    let Some(firmware) = keys.path("firmware", "the path of the firmware's flat image")? else {
        return Ok(None);
    };
    let variables = keys.path("variables", "the path of a file with the firmware's variables")?;
    Ok(Some((firmware, FlashConfig { variables })))
}

fn cpus(keys: &mut Keys<'_>) -> anyhow::Result<Cpus> {
    const EXPECTED: &str = "how many CPUs, or a list of CPU numbers such as [2, 3]";
    let number = |value: &Value| value.as_integer().and_then(|number| u32::try_from(number).ok());
    let cpus = keys.get("cpus", EXPECTED, |value| match value {
        Value::Integer(_) => number(value).map(Cpus::Count),
        Value::Array(list) => list.iter().map(number).collect::<Option<_>>().map(Cpus::List),
        _ => None,
    })?;
    cpus.ok_or_else(|| keys.missing("cpus", EXPECTED))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
