//! [`Passt`]: passt as the other end of a stream socket. Connections of the guest are passt's own in root.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::bail;
use parking_lot::Mutex;

use super::program;
use crate::device::net::config::{Forward, Protocol};

/// A passt that runs. Dropped, it ends.
pub struct Passt(Mutex<Child>);

impl Passt {
    /// Starts passt; returns it with the socket to its guest.
    ///
    /// # Errors
    /// There is no passt, or it cannot be started.
    pub fn start(mtu: u16, forward: &[Forward]) -> anyhow::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        let fd = theirs.as_raw_fd();
        let program = program::find("passt", "passt", "`user = true`")?;
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", &fd.to_string()])
            .args(["--mtu", &mtu.to_string()])
            .args(arguments(forward))
            .stdin(Stdio::null());
        // SAFETY: fcntl may be called between fork and exec; the descriptor is open until then.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        match command.spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), "passt runs");
                Ok((Self(Mutex::new(child)), ours.into()))
            }
            Err(error) => bail!("cannot start passt: {error}"),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        !matches!(self.0.lock().try_wait(), Ok(None))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let child = self.0.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Returns the options that forward ports: `-t ADDRESS/PORT:GUEST`.
fn arguments(forward: &[Forward]) -> Vec<String> {
    let mut arguments = Vec::new();
    for one in forward {
        let option = match one.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let address = one
            .address
            .map_or_else(String::new, |address| format!("{address}/"));
        arguments.push(option.into());
        arguments.push(format!("{address}{}:{}", one.port, one.guest));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn forwarded_ports_as_options() {
        let forward = ["2222:22", "udp:[::1]:5353:53"].map(|text| text.parse().unwrap());
        let expected = ["--tcp-ports", "2222:22", "--udp-ports", "::1/5353:53"];
        assert_eq!(arguments(&forward), expected);
    }
}
