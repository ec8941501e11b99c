//! [`Passt`]: passt as the other end of a stream socket. Connections of the guest are passt's own in root.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use rustix::pipe::{PipeFlags, pipe_with};

use super::program;
use crate::device::net::config::{Forward, Protocol};

/// How long it may take until its ports are open.
const TIMEOUT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// Bytes that the kernel keeps of what passt has sent and the guest not received, doubled for its own needs:
/// more than a receive window of Linux.
const SEND_BUFFER: usize = 8 << 20;

/// A passt that runs. Dropped, it ends.
pub struct Passt(Mutex<Child>);

impl Passt {
    /// Starts passt; returns it with the socket to its guest once its ports are open.
    ///
    /// # Errors
    /// There is no passt, or it ends by itself; what it says.
    pub fn start(mtu: u16, forward: &[Forward]) -> anyhow::Result<(Self, OwnedFd)> {
        let program = program::find("passt", "passt", "`user = true`")?;
        let (ours, theirs) = UnixStream::pair()?;
        // passt of Debian 12 sends as much as the guest's window allows, drops what the socket has no room
        // for, and may never send it again.
        set_socket_send_buffer_size_force(&theirs, SEND_BUFFER)
            .or_else(|_| set_socket_send_buffer_size(&theirs, SEND_BUFFER))?;
        // It writes its process ID there when it is ready, as the user `nobody`.
        let (ready, written) = pipe_with(PipeFlags::CLOEXEC)?;
        fchmod(&written, Mode::from_raw_mode(0o222))?;
        let said = File::from(memfd_create(c"passt", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", &theirs.as_raw_fd().to_string()])
            .args(["--pid", &format!("/proc/self/fd/{}", written.as_raw_fd())])
            .args(["--mtu", &mtu.to_string()])
            .args(arguments(forward))
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said.try_clone()?);
        inherit(&mut command, [theirs.as_raw_fd(), written.as_raw_fd()]);
        let child = command.spawn().context("cannot start passt")?;
        tracing::info!(pid = child.id(), "passt runs");
        let passt = Self(Mutex::new(child));
        drop((theirs, written));
        let mut descriptors = [PollFd::new(&ready, PollFlags::IN)];
        let in_time = poll(&mut descriptors, Some(&TIMEOUT)).is_ok_and(|ready| ready > 0);
        let is_ready = in_time && rustix::io::read(&ready, &mut [0; 16]).is_ok_and(|read| read > 0);
        if !is_ready {
            bail!("passt does not start: {}", last_words(said));
        }
        Ok((passt, ours.into()))
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

/// Lets a child have descriptors that are closed otherwise.
fn inherit(command: &mut Command, descriptors: [RawFd; 2]) {
    // SAFETY: fcntl may be called between fork and exec; the descriptors are open until then.
    unsafe {
        command.pre_exec(move || {
            for fd in descriptors {
                if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Returns the reason that passt has given, and what helps.
fn last_words(said: File) -> String {
    let last = program::last_line(said);
    match last.contains("interface not usable") || last.contains("external interface") {
        true => format!("{last}: root itself needs an address and a default route, which the guest gets"),
        false => last,
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
    use std::io::Write as _;

    use super::{arguments, last_words};

    #[test]
    fn the_reason_that_passt_gives() {
        let said = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            last_words(file)
        };
        let usable = said("Failed to send 1\nNo external\nExternal interface not usable\n");
        assert!(
            usable.starts_with("External interface not usable: root itself needs"),
            "{usable}"
        );
        assert_eq!(
            said("Failed to bind any port for '-t 1:2', exiting\nFailed to send 1\n"),
            "Failed to bind any port for '-t 1:2', exiting"
        );
        assert_eq!(said(""), "it gives no reason");
    }

    #[test]
    fn forwarded_ports_as_options() {
        let forward = ["2222:22", "udp:[::1]:5353:53"].map(|text| text.parse().unwrap());
        let expected = ["--tcp-ports", "2222:22", "--udp-ports", "::1/5353:53"];
        assert_eq!(arguments(&forward), expected);
    }
}
