//! `ringctl doctor`: what this machine lacks to run zones, and what to do about it.
//!
//! Nothing is changed and nothing is required: without hypervisor or daemon it says so. All paths are below a
//! root directory, which the tests replace. [`host`] checks root Linux, the control device
//! and EL2.

mod check;
mod host;

#[cfg(test)]
mod tests;

use std::path::Path;

use crate::control::client::{Client, ClientError};
use crate::control::protocol::{InfoReport, Reply, Request};
use host::Machine;

pub use check::{Check, Verdict, text};

/// Makes all checks, below `root` (`/` outside of tests), with the daemon at `socket`.
pub fn examine(root: &Path, socket: &Path) -> Vec<Check> {
    Machine::new(root).examine(socket)
}

impl Machine<'_> {
    fn examine(&self, socket: &Path) -> Vec<Check> {
        let mut checks = vec![self.machine(), self.user()];
        checks.extend(self.hypervisor());
        checks.push(self.driver());
        checks.push(self.config());
        checks.push(self.huge_pages());
        checks.push(self.hugetlbfs());
        checks.push(self.cpus());
        checks.push(self.io_uring());
        checks.push(daemon(socket));
        checks
    }
}

fn daemon(socket: &Path) -> Check {
    let name = "daemon";
    let ask = || -> Result<InfoReport, ClientError> {
        match Client::connect(socket)?.ask(&Request::Info {})? {
            Reply::Info(info) => Ok(info),
            other => Err(ClientError::unexpected(&other)),
        }
    };
    let own = env!("CARGO_PKG_VERSION");
    match ask() {
        Ok(info) if info.ringd_version == own => {
            let InfoReport {
                ringd_version,
                ringd_pid,
                zones,
                ..
            } = info;
            Check::good(
                name,
                format!("{ringd_version}, process {ringd_pid}, {zones} zones"),
            )
        }
        Ok(info) => Check::wrong(
            name,
            format!("ringd is {}, ringctl {own}", info.ringd_version),
            "use ringd and ringctl of one release; a new ringd takes the zones of the old one over",
        ),
        Err(ClientError::NotRunning(_)) => Check::advice(name, "not running", "start it: ringd --daemonize"),
        Err(error) => Check::wrong(name, error.to_string(), "see ringd.log in its run directory"),
    }
}
