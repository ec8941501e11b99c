//! Runs a test script on the host: for what is seen from outside the machine.

use std::io::{self, Read as _, Seek as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::catalog::{Script, test_name};
use super::report::Report;
use crate::cpu::{self, Took};
use crate::options::MachineOptions;
use crate::project::Project;

/// Runs `script` with `HARNESS` (this program), `PROJECT` and the machine's variables set.
pub fn run(project: &Project, machine: &MachineOptions, script: &Script, report: &Report) {
    let name = test_name("host", script);
    let mut command = Command::new("timeout");
    command
        .args(["-k", "10", &script.timeout.as_secs().to_string(), "bash"])
        .arg(&script.path);
    command.current_dir(&project.dir).env("PROJECT", &project.dir);
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
    match output(&mut command) {
        Err(error) => report.failed(&name, &format!("cannot be run: {error}"), ""),
        Ok((status, took, text)) => match status.code() {
            Some(0) => report.passed(&name, took, &text),
            Some(124 | 137) => report.failed(&name, &late(script.timeout), &text),
            _ => report.failed(&name, &status.to_string(), &text),
        },
    }
}

/// Runs `command` to its end. Returns what it printed on standard output and error, too.
fn output(command: &mut Command) -> io::Result<(ExitStatus, Took, String)> {
    let mut file = tempfile::tempfile()?;
    command.stdin(Stdio::null());
    command.stdout(file.try_clone()?).stderr(file.try_clone()?);
    let start = Instant::now();
    let (status, took) = cpu::wait(&mut command.spawn()?, start)?;
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok((status, took, String::from_utf8_lossy(&text).into_owned()))
}

/// Returns the reason of a test that did not end in time.
pub fn late(limit: Duration) -> String {
    format!("not done after {} s", limit.as_secs())
}
