//! A zone on the command line: a zone file, options, or a file with options over it.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use toml::{Table, Value};

use crate::config::{ConfigError, ZoneConfig, file};

/// A zone file, options, or both: an option takes the place of the file's key. Disks are added to the file's.
#[derive(Args, Debug, Default)]
pub struct ZoneOptions {
    /// The zone file (TOML).
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name; without a file, "zone" if not given.
    #[arg(long)]
    pub name: Option<String>,
    /// How many CPUs, or which: "2", or "2,3" or "[2]" for a list of root's CPU numbers.
    #[arg(long)]
    pub cpus: Option<String>,
    /// Size of its memory: "512M", "1G".
    #[arg(long)]
    pub memory: Option<String>,
    /// Kernel: an arm64 Image, also gzip or EFI zboot, or a flat binary.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<String>,
    /// Initial RAM disk.
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// What a reset does: restart or stop.
    #[arg(long, value_name = "POLICY")]
    pub on_reboot: Option<String>,
    /// What a crash does: stop, restart or hold.
    #[arg(long, value_name = "POLICY")]
    pub on_crash: Option<String>,
    /// A disk: PATH[,readonly][,serial=TEXT][,engine=io_uring|threads]. May be given more than once.
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,
}

impl ZoneOptions {
    /// The zone that this describes.
    ///
    /// # Errors
    /// It describes none; the message names file or command line, key, value and what was expected.
    pub fn config(&self) -> anyhow::Result<ZoneConfig> {
        let here = std::env::current_dir().context("cannot find the working directory")?;
        let mut table = Table::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                table.insert(key.into(), value);
            }
        };
        let text = |option: &Option<String>| option.clone().map(Value::String);
        // Absolute here, because the file's paths are relative to the file.
        let path = |option: &Option<String>| {
            option
                .as_ref()
                .map(|path| Value::String(here.join(path).display().to_string()))
        };
        let name = match (&self.file, &self.name) {
            (None, None) => Some(Value::String("zone".into())),
            (_, name) => text(name),
        };
        put("name", name);
        put("cpus", self.cpus.as_deref().map(cpus));
        put("memory", text(&self.memory));
        put("kernel", path(&self.kernel));
        put("initrd", path(&self.initrd));
        put("cmdline", text(&self.cmdline));
        put("on_reboot", text(&self.on_reboot));
        put("on_crash", text(&self.on_crash));
        let disks: Result<Vec<Value>, ConfigError> = self.disk.iter().map(|text| disk(text, &here)).collect();
        let disks = disks?;
        let Some(path) = &self.file else {
            if !disks.is_empty() {
                table.insert("disk".into(), Value::Array(disks));
            }
            return Ok(file::from_table("command line", table, &here)?);
        };
        let mut config = file::load(path, table)?;
        if !disks.is_empty() {
            let more = file::disks("command line", disks, &here)?;
            config.disk.extend(more);
            config.check()?;
        }
        Ok(config)
    }
}

/// A number is a count; with commas or brackets it is a list. What is neither is left for the parser to refuse.
fn cpus(text: &str) -> Value {
    if let Ok(count) = text.parse::<i64>() {
        return Value::Integer(count);
    }
    let inner = text.trim_start_matches('[').trim_end_matches(']');
    let list: Result<Vec<Value>, _> = inner
        .split(',')
        .map(|cpu| cpu.trim().parse::<i64>().map(Value::Integer))
        .collect();
    list.map_or_else(|_| Value::String(text.into()), Value::Array)
}

fn disk(text: &str, here: &std::path::Path) -> Result<Value, ConfigError> {
    let mut table = Table::new();
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if !path.is_empty() {
        table.insert(
            "path".into(),
            Value::String(here.join(path).display().to_string()),
        );
    }
    for part in parts {
        let (key, value) = match part.split_once('=') {
            None if part == "readonly" => (part, Value::Boolean(true)),
            Some(("readonly", value)) => (
                "readonly",
                value
                    .parse()
                    .map_or_else(|_| Value::String(value.into()), Value::Boolean),
            ),
            Some((key @ ("serial" | "engine"), value)) => (key, Value::String(value.into())),
            _ => {
                return Err(ConfigError::BadValue {
                    origin: "command line".into(),
                    key: "disk".into(),
                    value: crate::config::quoted(text),
                    expected: "PATH[,readonly][,serial=TEXT][,engine=io_uring|threads]".into(),
                });
            }
        };
        table.insert(key.into(), value);
    }
    Ok(Value::Table(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cpus, Engine};

    fn options(file: Option<PathBuf>) -> ZoneOptions {
        let text = |text: &str| Some(text.to_owned());
        ZoneOptions {
            file,
            cpus: text("1"),
            memory: text("256M"),
            kernel: text("/k/Image"),
            disk: vec![
                "/d/rootfs.img".into(),
                "/d/ro.img,readonly,serial=s1,engine=threads".into(),
            ],
            ..ZoneOptions::default()
        }
    }

    #[test]
    fn options_alone_make_a_zone() {
        let zone = options(None).config().unwrap();
        assert_eq!(
            (zone.origin.as_str(), zone.name.as_str()),
            ("command line", "zone")
        );
        assert_eq!((zone.cpus, zone.memory), (Cpus::Count(1), 256 << 20));
        assert_eq!(zone.kernel, std::path::Path::new("/k/Image"));
        assert_eq!(zone.disk.len(), 2);
        assert!(!zone.disk[0].readonly);
        assert_eq!(
            (zone.disk[1].readonly, zone.disk[1].engine),
            (true, Engine::Threads)
        );
        assert_eq!(zone.disk[1].serial.as_deref(), Some("s1"));
    }

    #[test]
    fn options_lie_over_a_file_and_disks_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("z.toml");
        let text = "name = \"f\"\ncpus = 3\nmemory = \"1G\"\nkernel = \"k\"\n[[disk]]\npath = \"a.img\"\n";
        std::fs::write(&path, text).unwrap();
        let zone = options(Some(path.clone())).config().unwrap();
        assert_eq!((zone.name.as_str(), zone.memory), ("f", 256 << 20));
        assert_eq!(zone.disk.len(), 3);
        assert_eq!(zone.disk[0].path, directory.path().join("a.img"));
        let zone = ZoneOptions {
            file: Some(path),
            ..ZoneOptions::default()
        }
        .config()
        .unwrap();
        assert_eq!((zone.cpus, zone.disk.len()), (Cpus::Count(3), 1));
    }

    #[test]
    fn cpus_may_be_a_count_or_a_list() {
        for (text, expected) in [
            ("2", Some(Cpus::Count(2))),
            ("2,3", Some(Cpus::List(vec![2, 3]))),
            ("[2]", Some(Cpus::List(vec![2]))),
            ("x", None),
            ("1,y", None),
        ] {
            let zone = ZoneOptions {
                cpus: Some(text.into()),
                ..options(None)
            }
            .config();
            assert_eq!(zone.ok().map(|zone| zone.cpus), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_name_the_command_line() {
        let bad = ZoneOptions {
            memory: Some("lots".into()),
            ..options(None)
        };
        let message = bad.config().unwrap_err().to_string();
        assert!(
            message.starts_with("command line: memory = \"lots\": expected a size"),
            "{message}"
        );
        let bad = ZoneOptions {
            disk: vec!["a.img,fast".into()],
            ..options(None)
        };
        let message = bad.config().unwrap_err().to_string();
        assert!(
            message.starts_with("command line: disk = \"a.img,fast\": expected PATH["),
            "{message}"
        );
    }
}
