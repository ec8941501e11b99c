//! Runs a script in root without a user: `make exec`, and the boots of the system tests. [`Stop`] is why a
//! machine stopped, and the exit status that means.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result};

use crate::console::{Chunk, Line, Lines, Printer, Reader};
use crate::machine::{Machine, Mode};
use crate::options::MachineOptions;
use crate::project::Project;
use crate::{cpu, symbols};

/// How long a machine has to power off after its script.
const POWER_OFF: Duration = Duration::from_secs(20);
/// How much of a panic's message is waited for.
const PANIC_MESSAGE: Duration = Duration::from_secs(2);

/// Runs `script` as `make exec` does, the console on standard output.
///
/// # Errors
/// The machine cannot be prepared or started.
pub fn exec(
    project: &Project,
    options: &MachineOptions,
    script: &Path,
    files: Option<PathBuf>,
    limit: Duration,
) -> Result<Stop> {
    let script = fs::read(script).with_context(|| format!("SCRIPT={}: cannot be read", script.display()))?;
    let board = options.board(&project.dir)?;
    let machine = Machine::prepare(project, &board, options, &Mode::Exec { script, files })?;
    let mut printer = Printer::new(std::io::stdout());
    let mut panic = String::new();
    let stop = watch(&machine, limit, |line, _| {
        match line {
            Line::Panic(text) => panic.clone_from(text),
            Line::Text(text) if !panic.is_empty() => {
                panic.push('\n');
                panic.push_str(text);
            }
            _ => {}
        }
        match printer.line(line) {
            Ok(()) => Next::Continue,
            Err(_) => Next::Stop,
        }
    })?;
    let offsets = symbols::offsets(&panic);
    if !offsets.is_empty() {
        match symbols::resolve(&project.hypervisor_elf(), &offsets) {
            Ok(lines) => eprintln!("harness: the hypervisor's backtrace:\n{}", lines.join("\n")),
            Err(error) => eprintln!("harness: the backtrace cannot be resolved: {error:#}"),
        }
    }
    Ok(stop)
}

/// What the reader of the lines wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Continue.
    Continue,
    /// Continue, with a new time limit from now.
    Within(Duration),
    /// Stop the machine.
    Stop,
}

/// The process of a running machine.
#[derive(Debug)]
pub struct Process {
    /// The console's input.
    pub input: ChildStdin,
    id: u32,
}

impl Process {
    /// Returns the CPU time that the machine has taken so far.
    pub fn cpu(&self) -> Duration {
        cpu::used(self.id)
    }

    /// Returns what the machine has taken since `start`, when its CPU time was `cpu`.
    pub fn took(&self, start: Instant, cpu: Duration) -> cpu::Took {
        cpu::Took::since(start, cpu, self.id)
    }
}

/// Starts `machine` and hands every line to `seen` with its process, until the machine stops, the time is up
/// or `seen` says so.
///
/// # Errors
/// QEMU cannot be started.
pub fn watch(
    machine: &Machine,
    mut limit: Duration,
    mut seen: impl FnMut(&Line, &mut Process) -> Next,
) -> Result<Stop> {
    let mut qemu = Qemu::start(machine)?;
    let mut process = Process {
        input: qemu.0.stdin.take().context("no pipe to QEMU")?,
        id: qemu.0.id(),
    };
    let reader = Reader::start(qemu.0.stdout.take().context("no pipe from QEMU")?);
    let mut lines = Lines::new(machine.nonce.clone());
    let mut deadline = Instant::now() + limit;
    let mut stop = None;
    loop {
        let got = match reader.next(deadline) {
            Chunk::Data(data) => lines.push(&data),
            Chunk::End => break,
            Chunk::Nothing if Instant::now() < deadline => continue,
            Chunk::Nothing => {
                return Ok(match stop {
                    Some(Stop::Script(status)) => Stop::NoPowerOff(status),
                    Some(stop) => stop,
                    None => Stop::Timeout(limit),
                });
            }
        };
        for line in got {
            match seen(&line, &mut process) {
                Next::Continue => {}
                Next::Within(time) if stop.is_none() => {
                    limit = time;
                    deadline = Instant::now() + time;
                }
                Next::Within(_) => {}
                Next::Stop => return Ok(Stop::Ended("console output closed".into())),
            }
            let (why, grace) = match line {
                Line::Status(status) => (Stop::Script(status), POWER_OFF),
                Line::Restarted => (Stop::Restarted, POWER_OFF),
                Line::Panic(text) => (Stop::Panic(text), PANIC_MESSAGE),
                _ => continue,
            };
            if stop.is_none() {
                stop = Some(why);
                deadline = Instant::now() + grace;
            }
        }
    }
    if let Some(line) = lines.finish() {
        seen(&line, &mut process);
    }
    let status = qemu.0.wait()?;
    Ok(stop.unwrap_or_else(|| Stop::Ended(status.to_string())))
}

/// A running QEMU, killed when dropped.
struct Qemu(Child);

impl Qemu {
    fn start(machine: &Machine) -> Result<Self> {
        let mut command = machine.command(&["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", machine.program))?;
        Ok(Self(child))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The script ended with this status and the machine powered off.
    Script(u8),
    /// The script ended with this status, but the machine did not power off.
    NoPowerOff(u8),
    /// Root's kernel or the hypervisor panicked: the line that said so.
    Panic(String),
    /// The machine restarted though the script had not asked for it.
    Restarted,
    /// The time was up, and how much of it there was.
    Timeout(Duration),
    /// QEMU ended before the script did.
    Ended(String),
}

impl Stop {
    /// Returns the status for the shell: the script's own, 124 as `timeout` has it, 121 for a panic, else
    /// 125.
    pub fn code(&self) -> u8 {
        match self {
            Self::Script(status) => *status,
            Self::NoPowerOff(0) | Self::Ended(_) => 125,
            Self::NoPowerOff(status) => *status,
            Self::Panic(_) | Self::Restarted => 121,
            Self::Timeout(_) => 124,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Script(status) => write!(f, "the script ended with status {status}"),
            Self::NoPowerOff(status) => {
                write!(
                    f,
                    "the script ended with status {status}, but the machine did not power off"
                )
            }
            Self::Panic(line) => write!(f, "panic: {line}"),
            Self::Restarted => f.write_str("root restarted though the script had not asked for it"),
            Self::Timeout(limit) => write!(f, "timeout: not finished after {} s", limit.as_secs()),
            Self::Ended(why) => write!(f, "QEMU ended before the script did: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stop;

    #[test]
    fn no_failure_has_status_zero() {
        for stop in [
            Stop::Script(3),
            Stop::NoPowerOff(0),
            Stop::NoPowerOff(7),
            Stop::Panic(String::new()),
            Stop::Restarted,
            Stop::Timeout(Duration::from_secs(1)),
            Stop::Ended(String::new()),
        ] {
            assert_ne!(stop.code(), 0, "{stop}");
        }
        assert_eq!(Stop::Script(0).code(), 0);
        assert_eq!(Stop::Timeout(Duration::from_secs(1)).code(), 124);
    }
}
