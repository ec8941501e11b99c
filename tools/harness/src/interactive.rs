//! The machine with a user at root's console: `make run`; and under `gdb-multiarch`, stopped at its first
//! instruction: `make gdb`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use image::cmd;

use crate::board::Board;
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
        .with_context(|| format!("cannot start {}", machine.program))?;
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
        bail!("{}: {status}", machine.program);
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

/// Starts machine and debugger. With `batch`, gdb runs that file of commands, and root boots as for `make
/// run`, its console in a file; otherwise gdb has the terminal. Returns gdb's exit status.
///
/// # Errors
/// The machine cannot be prepared, or QEMU or gdb cannot be started.
pub fn debug(project: &Project, options: &MachineOptions, batch: Option<&Path>) -> Result<u8> {
    let board = options.board(&project.dir)?;
    let mode = Mode::Run {
        zone: Some("linux.toml".into()),
        login: None,
    };
    let machine = Machine::prepare(project, &board, options, &mode)?;
    // The path of a Unix socket has little room, so it is not in the run's directory.
    let sockets = tempfile::Builder::new().prefix("ringvisor-").tempdir()?;
    let socket = sockets.path().join("gdb");
    let console = project.dir.join("build/gdb-console.log");
    let chardev = format!("socket,id=gdb,server=on,wait=off,path={}", socket.display());
    let serial = format!("file:{}", console.display());
    let mut qemu = machine.command(&[
        "-S",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        &serial,
        "-chardev",
        &chardev,
        "-gdb",
        "chardev:gdb",
    ]);
    let mut qemu = qemu
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", machine.program))?;

    let _terminal = Terminal::save();
    let result = gdb(project, &board, &socket, batch);
    // It may have ended by itself already.
    let _ = qemu.kill();
    let _ = qemu.wait();
    eprintln!("==> root's console is in {}", console.display());
    result
}

fn gdb(project: &Project, board: &Board, socket: &Path, batch: Option<&Path>) -> Result<u8> {
    for _ in 0..100 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let mut gdb = Command::new("gdb-multiarch");
    gdb.current_dir(&project.dir).args(["-q", "-nx"]);
    let elf = project.hypervisor_elf();
    for line in [
        "set confirm off".to_owned(),
        "set pagination off".to_owned(),
        "set architecture aarch64".to_owned(),
        // A busy host answers late; after two seconds, the default, answers and questions would not match any
        // more.
        "set remotetimeout 120".to_owned(),
        format!(
            "add-symbol-file {} -o {:#x}",
            elf.display(),
            board.load.hypervisor
        ),
        format!("target remote {}", socket.display()),
        format!("source {}", project.dir.join("tools/gdb/ringvisor.gdb").display()),
    ] {
        gdb.args(["-ex", &line]);
    }
    if let Some(batch) = batch {
        gdb.stdin(Stdio::null()).args(["-batch", "-x"]).arg(batch);
    }
    let status = gdb.status().context("cannot start gdb-multiarch")?;
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(125))
}
