//! [`ZoneConfig`]: a zone as its user describes it.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use ringvisor::abi::machine::{FLASH_BLOCKS, RAM_BASE};
use ringvisor::abi::{MAX_VCPUS, NAME_LEN};
use serde::{Deserialize, Serialize};

use super::error::{bad, quoted};
use super::size::format_size;
use crate::device::config::Configs;

/// Bytes of a huge page, the unit in which memory is donated.
pub const BLOCK: u64 = 2 << 20;
/// Least memory of a zone: device tree, kernel and a stack need a few blocks.
pub const MIN_MEMORY: u64 = 4 * BLOCK;
/// Most memory of a zone: what lies between RAM's base and the end of the guest's address space, far from
/// both.
pub const MAX_MEMORY: u64 = 64 << 30;

/// A zone as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneConfig {
    /// Where the description came from, for messages: a file's path or "command line".
    pub origin: String,
    /// Name, unique among the zones.
    pub name: String,
    /// Physical CPUs, or how many.
    pub cpus: Cpus,
    /// Bytes of RAM, a multiple of [`BLOCK`].
    pub memory: u64,
    /// What runs first, absolute: a kernel, or with `flash` the firmware.
    pub kernel: PathBuf,
    /// Flash, of a zone with firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<FlashConfig>,
    /// Guest-physical address of a flat binary; without it, where QEMU puts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<u64>,
    /// Initial RAM disk, absolute.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// What PSCI SYSTEM_RESET does.
    pub on_reboot: OnReboot,
    /// What a crash does.
    pub on_crash: OnCrash,
    /// Its devices.
    #[serde(flatten)]
    pub devices: Configs,
}

/// Flash with firmware.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashConfig {
    /// File with the firmware's variables, absolute; without one they last as long as the zone.
    pub variables: Option<PathBuf>,
}

/// The CPUs of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cpus {
    /// This many, chosen by the daemon.
    Count(u32),
    /// These, by root Linux's numbers; the first becomes vCPU 0.
    List(Vec<u32>),
}

impl Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::List(list) => write!(f, "{list:?}"),
        }
    }
}

impl Cpus {
    /// Returns the number of vCPUs.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(count) => usize::try_from(*count).unwrap_or(usize::MAX),
            Self::List(list) => list.len(),
        }
    }
}

/// What happens when the guest asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReboot {
    /// Load it again and start it.
    #[default]
    Restart,
    /// End the zone; commands that wait for it report that it did not power off.
    Stop,
}

/// What happens when the guest crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// End it.
    #[default]
    Stop,
    /// Load it again and start it.
    Restart,
    /// Keep it for inspection until `zone stop`.
    Hold,
}

/// Whether a zone may have this name, which becomes part of file names.
pub fn is_zone_name(name: &str) -> bool {
    let name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name_starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    name_starts && name.len() < NAME_LEN && name.chars().all(name_char)
}

impl ZoneConfig {
    /// Returns an error about `key`.
    pub fn bad(&self, key: &str, value: impl Display, expected: impl Display) -> anyhow::Error {
        bad(&self.origin, key, value, expected)
    }

    /// Returns the key of [`Self::kernel`].
    pub const fn kernel_key(&self) -> &'static str {
        if self.flash.is_some() {
            "firmware"
        } else {
            "kernel"
        }
    }

    /// Returns the path of the file with the firmware's variables.
    pub fn variables(&self) -> Option<&Path> {
        self.flash.as_ref()?.variables.as_deref()
    }

    /// Returns the bytes of flash memory, which lie behind RAM in the zone's file of huge pages.
    pub const fn flash_memory(&self) -> u64 {
        match self.flash {
            Some(_) => FLASH_BLOCKS as u64 * BLOCK,
            None => 0,
        }
    }

    /// Returns the bytes that the zone is donated: RAM and flash.
    pub const fn donated(&self) -> u64 {
        self.memory.saturating_add(self.flash_memory())
    }

    /// Returns an error about what the path under `key` names.
    pub fn unusable(&self, key: &str, path: &Path, cause: impl Display) -> anyhow::Error {
        self.unusable_value(key, quoted(&path.display().to_string()), cause)
    }

    /// Returns an error about what the value under `key` asks for.
    pub fn unusable_value(&self, key: &str, value: impl Display, cause: impl Display) -> anyhow::Error {
        anyhow!("{}: {key} = {value}: {cause}", self.origin)
    }

    /// Returns the error that something failed that has to do with the zone as a whole.
    pub fn failed(&self, cause: impl Display) -> anyhow::Error {
        anyhow!("zone {}: {cause}", self.name)
    }

    /// Checks everything that can be checked without the machine. Both `ringctl` and the daemon do so: the
    /// daemon does not trust what arrives on its socket.
    ///
    /// # Errors
    /// The first value that is out of range or contradicts another.
    pub fn check(&self) -> anyhow::Result<()> {
        if !is_zone_name(&self.name) {
            let most = NAME_LEN - 1;
            let expected =
                format!("1 to {most} letters, digits, '-', '_' or '.', beginning with a letter or digit");
            return Err(self.bad("name", quoted(&self.name), expected));
        }
        self.check_cpus()?;
        if self.memory < MIN_MEMORY || self.memory > MAX_MEMORY || !self.memory.is_multiple_of(BLOCK) {
            let expected = format!(
                "a multiple of 2M between {} and {}",
                format_size(MIN_MEMORY),
                format_size(MAX_MEMORY)
            );
            return Err(self.bad("memory", quoted(&format_size(self.memory)), expected));
        }
        absolute(self, self.kernel_key(), &self.kernel)?;
        self.check_flash()?;
        if let Some(load) = self.load {
            let end = RAM_BASE.saturating_add(self.memory);
            if !(RAM_BASE..end).contains(&load) || !load.is_multiple_of(4) {
                let expected = format!("a multiple of 4 within RAM, {RAM_BASE:#x} to {end:#x}");
                return Err(self.bad("load", format!("{load:#x}"), expected));
            }
        }
        if let Some(initrd) = &self.initrd {
            absolute(self, "initrd", initrd)?;
        }
        if self.cmdline.len() > MAX_CMDLINE || self.cmdline.contains('\0') {
            let expected = format!("at most {MAX_CMDLINE} bytes without NUL");
            return Err(self.bad("cmdline", quoted(&self.cmdline), expected));
        }
        self.devices.check(&self.origin)
    }

    fn check_flash(&self) -> anyhow::Result<()> {
        let Some(flash) = &self.flash else {
            return Ok(());
        };
        if let Some(variables) = &flash.variables {
            absolute(self, "variables", variables)?;
        }
        let loads = "no such key beside firmware, which loads a kernel itself";
        if let Some(load) = self.load {
            return Err(self.bad("load", format!("{load:#x}"), loads));
        }
        if let Some(initrd) = &self.initrd {
            return Err(self.bad("initrd", quoted(&initrd.display().to_string()), loads));
        }
        if !self.cmdline.is_empty() {
            return Err(self.bad("cmdline", quoted(&self.cmdline), loads));
        }
        Ok(())
    }

    fn check_cpus(&self) -> anyhow::Result<()> {
        match &self.cpus {
            Cpus::Count(count) => {
                if *count == 0 || usize::try_from(*count).is_ok_and(|count| count > MAX_VCPUS) {
                    let expected = format!("1 to {MAX_VCPUS} CPUs");
                    return Err(self.bad("cpus", count, expected));
                }
            }
            Cpus::List(list) => {
                if list.is_empty() || list.len() > MAX_VCPUS {
                    let expected = format!("a list of 1 to {MAX_VCPUS} CPU numbers");
                    return Err(self.bad("cpus", format!("{list:?}"), expected));
                }
                if list.contains(&0) {
                    let expected = "CPUs other than 0, which root keeps";
                    return Err(self.bad("cpus", format!("{list:?}"), expected));
                }
                let mut seen = BTreeSet::new();
                if let Some(twice) = list.iter().find(|cpu| !seen.insert(**cpu)) {
                    let expected = format!("each CPU once, but {twice} is there twice");
                    return Err(self.bad("cpus", format!("{list:?}"), expected));
                }
            }
        }
        Ok(())
    }
}

/// Most bytes of a command line: the limit of arm64 Linux (COMMAND_LINE_SIZE, less the NUL).
pub const MAX_CMDLINE: usize = 2047;

fn absolute(config: &ZoneConfig, key: &str, path: &Path) -> anyhow::Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(config.bad(key, quoted(&path.display().to_string()), "an absolute path"))
}
