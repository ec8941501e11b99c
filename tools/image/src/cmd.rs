//! Runs external programs and turns their failure into an error that names the whole command.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns a command that reads nothing and whose messages are in English, so that they can be parsed.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Returns the command as a person would type it, for messages.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        if arg.is_empty() || arg.contains([' ', '\'', '"', '$', '\n', ';', '&', '|', '(', ')']) {
            let _ = write!(line, " '{}'", arg.replace('\'', "'\\''"));
        } else {
            let _ = write!(line, " {arg}");
        }
    }
    line
}

/// Runs `command` with its output on our standard error.
///
/// # Errors
/// The program is missing or its status is not zero.
pub fn run(command: &mut Command) -> Result<()> {
    command.stdout(std::io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot start: {}", shown(command)))?;
    if !status.success() {
        bail!("{status}: {}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; what it writes to standard error becomes part of the
/// error.
///
/// # Errors
/// The program is missing or its status is not zero.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = command
        .output()
        .with_context(|| format!("cannot start: {}", shown(command)))?;
    if !out.status.success() {
        bail!(
            "{}: {}\n{}",
            out.status,
            shown(command),
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(out.stdout)
}

/// Runs `command` as [`output`] does and returns text.
///
/// # Errors
/// As [`output`], and output that is not UTF-8.
pub fn text(command: &mut Command) -> Result<String> {
    let line = shown(command);
    String::from_utf8(output(command)?).with_context(|| format!("output is not UTF-8: {line}"))
}

/// Tells the user of a long step, on standard error.
pub fn step(message: &str) {
    eprintln!("==> {message}");
}

#[cfg(test)]
mod tests {
    use super::{command, output, run};

    #[test]
    fn failure_names_the_command_and_its_message() {
        let error = output(command("sh").args(["-c", "echo broken >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("sh -c 'echo broken >&2; exit 3'"), "{error}");
        assert!(error.contains("broken"), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = format!("{:#}", run(&mut command("/nonexistent/program")).unwrap_err());
        assert!(error.contains("cannot start: /nonexistent/program"), "{error}");
    }
}
