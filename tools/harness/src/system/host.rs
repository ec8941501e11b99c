//! Runs a test script on the host: for what is seen from outside the machine.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::catalog::{Script, test_name};
use super::report::Report;
use crate::options::MachineOptions;
use crate::project::Project;

/// Runs `script` with `HARNESS` (this program), `PROJECT` and the machine's variables set.
pub fn run(project: &Project, machine: &MachineOptions, script: &Script, report: &Report) {
    let name = test_name("host", script);
    let started = Instant::now();
    let mut command = Command::new("timeout");
    command
        .args(["-k", "10", &script.timeout.as_secs().to_string(), "bash"])
        .arg(&script.path);
    command
        .stdin(Stdio::null())
        .current_dir(&project.dir)
        .env("PROJECT", &project.dir);
    command.env("HARNESS", project.harness());
    for (variable, value) in [
        ("BOARD", &machine.board),
        ("HYPERVISOR", &machine.hypervisor),
        ("QEMU", &machine.qemu),
        ("CPU", &machine.cpu),
        ("ROOT_KERNEL", &machine.root_kernel),
    ] {
        command.env(variable, value.as_deref().unwrap_or_default());
    }
    let result = command.output();
    match result {
        Err(error) => report.failed(&name, &format!("cannot be run: {error}"), ""),
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            match out.status.code() {
                Some(0) => report.passed(&name, started.elapsed(), &text),
                Some(124 | 137) => report.failed(&name, &late(script.timeout), &text),
                _ => report.failed(&name, &out.status.to_string(), &text),
            }
        }
    }
}

/// Returns the reason of a test that did not end in time.
pub fn late(limit: Duration) -> String {
    format!("not done after {} s", limit.as_secs())
}
