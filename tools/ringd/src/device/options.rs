//! [`Options`]: the options of `ringctl zone run` and `zone start` that describe devices.

use std::path::{Path, PathBuf};

use clap::Args;
use toml::{Table, Value};

use super::config::Configs;
use super::{console, disk, net, rng};

/// Devices on the command line.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// A disk: PATH[,KEY=VALUE...], keys as in a zone file. May be given more than once.
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,
    /// Drives without a medium to add, for `disk attach`.
    #[arg(long, value_name = "COUNT")]
    pub spare_disks: Option<u32>,
    /// Give the guest an entropy device, optionally with a limit: --rng or --rng=bps=SIZE.
    #[arg(long, value_name = "KEY=VALUE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub rng: Option<String>,
    /// A network device: KEY=VALUE[,KEY=VALUE...], keys as in a zone file: bridge=ringvisor0, or user. May be
    /// given more than once.
    #[arg(long, value_name = "NET")]
    pub net: Vec<String>,
    /// A console beside the UART, hvc0 in the guest: KEY[=VALUE],..., keys as in a zone file: pty, or
    /// socket=PATH, and log=PATH. May be given more than once.
    #[arg(long, value_name = "CONSOLE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub console: Vec<String>,
    /// The file that has the output of the UART.
    #[arg(long, value_name = "PATH")]
    pub console_log: Option<PathBuf>,
}

impl Options {
    /// Puts the options that replace keys of a zone file into `table`.
    pub fn put(&self, table: &mut Table) {
        if let Some(count) = self.spare_disks {
            table.insert("spare_disks".into(), Value::Integer(count.into()));
        }
        if let Some(option) = &self.rng {
            table.insert("rng".into(), rng::config::section(option));
        }
    }

    /// Adds devices to those of a zone file. Paths are relative to `directory`.
    ///
    /// # Errors
    /// An option describes no device.
    pub fn extend(&self, configs: &mut Configs, directory: &Path) -> anyhow::Result<()> {
        configs
            .disk
            .extend(disk::keys::from_options(&self.disk, directory)?);
        configs.net.extend(net::keys::from_options(&self.net)?);
        configs
            .console
            .extend(console::config::from_options(&self.console, directory)?);
        if let Some(log) = &self.console_log {
            configs.console_log = Some(directory.join(log));
        }
        Ok(())
    }
}
