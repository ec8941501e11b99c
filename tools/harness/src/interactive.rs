//! The machine with a user at root's console: `make run`.

use std::io::IsTerminal;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use image::cmd;

use crate::machine::{Login, Machine, Mode};
use crate::options::MachineOptions;
use crate::project::Project;

/// Boots the machine, starts the zone of `zone` and leaves the user on root's shell. Returns QEMU's exit
/// status.
///
/// # Errors
/// The machine cannot be prepared or started, or QEMU reported an error.
pub fn run(project: &Project, options: &MachineOptions, zone: Option<String>) -> Result<()> {
    let board = options.board(&project.dir)?;
    let login = Login::new(project)?;
    cmd::step(&format!("to log into the guest: {}", login.command()));
    let mode = Mode::Run {
        zone,
        login: Some(login),
    };
    let machine = Machine::prepare(project, &board, options, &mode)?;
    cmd::step("booting; Ctrl-A X ends QEMU at any time");
    let mut command = machine.command(&["-nographic"]);
    let _terminal = Terminal::save();
    if !std::io::stdin().is_terminal() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", machine.program()))?;
    // Without a terminal, input is what is piped in. The pipe stays open after its end: QEMU's console goes
    // on.
    if let Some(mut pipe) = child.stdin.take() {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut pipe);
            std::thread::park();
        });
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{}: {status}", machine.program());
    }
    Ok(())
}

/// The terminal's settings, put back when dropped, however QEMU ended.
#[derive(Debug)]
pub struct Terminal(Option<String>);

impl Terminal {
    /// Saves the settings, if there is a terminal.
    pub fn save() -> Self {
        Self(stty(&["-g"]))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            stty(&[settings.trim()]);
        }
    }
}

fn stty(arguments: &[&str]) -> Option<String> {
    if !std::io::stdin().is_terminal() {
        return None;
    }
    cmd::text(cmd::command("stty").args(arguments).stdin(Stdio::inherit())).ok()
}
