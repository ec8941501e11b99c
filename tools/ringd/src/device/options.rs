//! [`Options`]: the options of `ringctl zone run` and `zone start` that describe devices.

use std::path::Path;

use clap::Args;
use toml::{Table, Value};

use super::config::Configs;
use super::{disk, net, rng};

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
        Ok(())
    }
}
