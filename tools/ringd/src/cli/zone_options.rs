//! A zone on the command line: a zone file, options, or a file with options that replace its keys.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use toml::{Table, Value};

use super::definitions::Definitions;
use super::status::Invalid;
use crate::config::{ZoneConfig, file};
use crate::device;

/// A zone file, options, or both: an option takes the place of the file's key. Disks are added to the file's.
#[derive(Args, Debug, Default)]
pub struct ZoneOptions {
    /// The zone file (TOML), or the name of a zone that is defined.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name; without a file, "zone" if not given.
    #[arg(long)]
    pub name: Option<String>,
    /// How many CPUs, or which: `2`, or `2,3` or `[2]` for a list of root's CPU numbers.
    #[arg(long)]
    pub cpus: Option<String>,
    /// Size of its memory: "512M", "1G".
    #[arg(long)]
    pub memory: Option<String>,
    /// Kernel: an arm64 Image, also gzip or EFI zboot, an ELF file or a flat binary.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<String>,
    /// Firmware in flash, such as u-boot.bin or QEMU_EFI.fd, in place of a kernel.
    #[arg(long, value_name = "PATH")]
    pub firmware: Option<String>,
    /// File with the firmware's variables.
    #[arg(long, value_name = "PATH")]
    pub variables: Option<String>,
    /// Address of a flat binary, such as 0x40280000.
    #[arg(long, value_name = "ADDRESS")]
    pub load: Option<String>,
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
    /// Its devices.
    #[command(flatten)]
    pub devices: device::Options,
}

impl ZoneOptions {
    /// Returns the zone that this describes.
    ///
    /// # Errors
    /// It describes no zone; the message names file or command line, key, value and what was expected.
    pub fn config(&self, defined: &Definitions<'_>) -> anyhow::Result<ZoneConfig> {
        self.described(defined).map_err(|error| Invalid(error).into())
    }

    fn described(&self, defined: &Definitions<'_>) -> anyhow::Result<ZoneConfig> {
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
        put("firmware", path(&self.firmware));
        put("variables", path(&self.variables));
        put("load", self.load.as_deref().map(address));
        put("initrd", path(&self.initrd));
        put("cmdline", text(&self.cmdline));
        put("on_reboot", text(&self.on_reboot));
        put("on_crash", text(&self.on_crash));
        self.devices.put(&mut table);
        let mut config = match &self.file {
            None => file::from_table("command line", table, &here)?,
            Some(path) => file::load(&named(path, defined), table)?,
        };
        self.devices.extend(&mut config.devices, &here)?;
        config.check()?;
        Ok(config)
    }
}

/// Returns the file of a zone that is defined, where no file of the name is here.
fn named(path: &Path, defined: &Definitions<'_>) -> PathBuf {
    let known = path.to_str().filter(|_| !path.exists());
    let known = known.and_then(|name| defined.existing(name).ok());
    known.unwrap_or_else(|| path.to_owned())
}

/// Returns a hexadecimal or decimal number. What is none is refused by the parser of the table.
fn address(text: &str) -> Value {
    let number = match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_or_else(|_| Value::String(text.into()), Value::Integer)
}

/// Returns a number as a count; with commas or brackets it is a list. What is neither is refused by the
/// parser of the table.
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use ringblk::{EngineKind, OnError};

    use super::{Definitions, ZoneOptions};
    use crate::config::Cpus;
    use crate::device;

    fn disks(disks: &[&str]) -> device::Options {
        device::Options {
            disk: disks.iter().map(|&text| text.into()).collect(),
            ..device::Options::default()
        }
    }

    fn options(file: Option<PathBuf>) -> ZoneOptions {
        let text = |text: &str| Some(text.to_owned());
        ZoneOptions {
            file,
            cpus: text("1"),
            memory: text("256M"),
            kernel: text("/k/Image"),
            devices: disks(&[
                "/d/rootfs.img",
                "/d/ro.img,readonly,serial=s1,engine=threads,bps=10M,iops=100,iops_burst=7,on_error=stop",
            ]),
            ..ZoneOptions::default()
        }
    }

    #[test]
    fn options_alone_make_a_zone() {
        let zone = options(None).config(&Definitions(Path::new("/none"))).unwrap();
        assert_eq!(
            (zone.origin.as_str(), zone.name.as_str()),
            ("command line", "zone")
        );
        assert_eq!((zone.cpus, zone.memory), (Cpus::Count(1), 256 << 20));
        assert_eq!(zone.kernel, std::path::Path::new("/k/Image"));
        assert_eq!(zone.devices.disk.len(), 2);
        assert!(!zone.devices.disk[0].readonly);
        assert_eq!(
            (zone.devices.disk[1].readonly, zone.devices.disk[1].engine),
            (true, EngineKind::Threads)
        );
        assert_eq!(zone.devices.disk[1].serial.as_deref(), Some("s1"));
        let limits = zone.devices.disk[1].limits;
        assert_eq!((limits.bps.rate, limits.bps.burst()), (Some(10 << 20), 1 << 20));
        assert_eq!((limits.iops.rate, limits.iops.burst()), (Some(100), 7));
        assert_eq!(
            (zone.devices.disk[1].on_error, zone.devices.spare_disks),
            (OnError::Stop, 0)
        );
    }

    #[test]
    fn options_lie_over_a_file_and_disks_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("z.toml");
        let text = "name = \"f\"\ncpus = 3\nmemory = \"1G\"\nkernel = \"k\"\n[[disk]]\npath = \"a.img\"\n";
        std::fs::write(&path, text).unwrap();
        let zone = options(Some(path.clone()))
            .config(&Definitions(Path::new("/none")))
            .unwrap();
        assert_eq!((zone.name.as_str(), zone.memory), ("f", 256 << 20));
        assert_eq!(zone.devices.disk.len(), 3);
        assert_eq!(zone.devices.disk[0].path, directory.path().join("a.img"));
        let zone = ZoneOptions {
            file: Some(path),
            ..ZoneOptions::default()
        }
        .config(&Definitions(Path::new("/none")))
        .unwrap();
        assert_eq!((zone.cpus, zone.devices.disk.len()), (Cpus::Count(3), 1));
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
            .config(&Definitions(Path::new("/none")));
            assert_eq!(zone.ok().map(|zone| zone.cpus), expected, "{text}");
        }
    }

    #[test]
    fn an_entropy_device_has_an_optional_limit() {
        let with = |option: Option<&str>| {
            ZoneOptions {
                devices: device::Options {
                    rng: option.map(Into::into),
                    ..device::Options::default()
                },
                ..options(None)
            }
            .config(&Definitions(Path::new("/none")))
        };
        assert_eq!(with(None).unwrap().devices.rng, None);
        assert_eq!(with(Some("")).unwrap().devices.rng.unwrap().bps, None);
        assert_eq!(
            with(Some("bps=2M")).unwrap().devices.rng.unwrap().bps,
            Some(2 << 20)
        );
        for (option, expected) in [
            ("bps=fast", "rng.bps = \"fast\": expected a size"),
            ("quick", "unknown key rng.quick = \"\": expected one of bps"),
        ] {
            let message = with(Some(option)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn mistakes_name_the_command_line() {
        let bad = ZoneOptions {
            memory: Some("lots".into()),
            ..options(None)
        };
        let message = bad
            .config(&Definitions(Path::new("/none")))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("command line: memory = \"lots\": expected a size"),
            "{message}"
        );
        for (disk, expected) in [
            (
                "a.img,fast",
                "command line: disk = \"a.img,fast\": expected PATH[",
            ),
            (
                "a.img,readonly=no",
                "command line: disk[0].readonly = \"no\": expected true or false",
            ),
            (
                "a.img,iops=fast",
                "command line: disk[0].iops = \"fast\": expected requests a second",
            ),
            (
                "a.img,bps=0",
                "command line: disk[0].bps = \"0\": expected a size",
            ),
            (
                "a.img,colour=red",
                "command line: unknown key disk[0].colour = \"red\": expected one of path,",
            ),
            (
                "a.img,iops_burst=7",
                "command line: disk[0].iops_burst = 7: expected the key iops beside it",
            ),
            (
                "a.img,queues=17",
                "command line: disk[0].queues = 17: expected 1 to 16 queues",
            ),
        ] {
            let bad = ZoneOptions {
                devices: disks(&[disk]),
                ..options(None)
            };
            let message = bad
                .config(&Definitions(Path::new("/none")))
                .unwrap_err()
                .to_string();
            assert!(message.starts_with(expected), "{disk}: {message}");
        }
    }
}
