//! Programs of root that the keeper starts.

use std::env;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

/// Where programs of administrators are, also for a daemon that was started with a user's path.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Returns where a program of a Debian package is; `purpose` is what needs it.
///
/// # Errors
/// There is none.
pub fn find(name: &str, package: &str, purpose: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(MORE.map(PathBuf::from));
    let found = directories
        .map(|directory| directory.join(name))
        .find(|file| is_program(file));
    match found {
        Some(file) => Ok(file),
        None => bail!("there is no {name}, which {purpose} needs: `apt-get install {package}`"),
    }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns a command that starts a program. It ends with the keeper, unless it becomes another user; by a
/// signal that cannot be blocked, as others are by the keeper's.
pub fn command(program: &Path) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
}

/// Returns the last line that a program has written to a file: why it has ended.
pub fn last_line(mut said: File) -> String {
    let mut text = String::new();
    let _ = said.rewind();
    let _ = said.read_to_string(&mut text);
    // passt says each of its lines to the system's log, too, and that this cannot be reached.
    let mut lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    lines
        .next_back()
        .unwrap_or("it gives no reason")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn programs_are_found_or_named() {
        assert!(find("sh", "dash", "this").unwrap().is_absolute());
        let error = find("nosuchprogram", "nosuch", "DHCP").unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no nosuchprogram, which DHCP needs: `apt-get install nosuch`"
        );
    }
}
