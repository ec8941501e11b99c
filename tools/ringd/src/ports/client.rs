//! [`Keeper`]: the broker's side of the keeper.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::{Reply, Request, socket};
use crate::broker::wire;

/// How often a keeper that ends just now is replaced by another.
const ATTEMPTS: usize = 5;

/// The keeper, which is started when something is to be kept and ends when nothing is.
pub struct Keeper {
    run_dir: PathBuf,
    program: PathBuf,
    /// Its arguments, after those of its role.
    options: Vec<String>,
}

impl Keeper {
    /// Returns the keeper of a run directory; `program` with `options` is this daemon.
    pub fn new(run_dir: PathBuf, program: PathBuf, options: Vec<String>) -> Self {
        Self {
            run_dir,
            program,
            options,
        }
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// Why it failed: an error of the system, or one that holds a [`crate::device::net::opener::PortError`].
    pub fn call(&self, request: &Request) -> io::Result<Option<File>> {
        self.call_with(request, None)
    }

    /// As [`Self::call`], and sends a descriptor.
    ///
    /// # Errors
    /// As there.
    pub fn call_with(&self, request: &Request, file: Option<&File>) -> io::Result<Option<File>> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for _ in 0..ATTEMPTS {
            let exchanged = match UnixStream::connect(socket(&self.run_dir)) {
                Ok(stream) => exchange(&stream, request, file),
                // Without one, nothing is kept.
                Err(_) if request.lets_go() => return Ok(None),
                Err(_) => {
                    self.start()?;
                    continue;
                }
            };
            match exchanged {
                Ok((Reply::Done, file)) => return Ok(file),
                Ok((Reply::Failed(why), _)) => return Err(io::Error::other(why)),
                // It ended before it had read the request.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts a keeper unless there is one, ahead of a request: it need not be waited for then.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn prepare(&self) -> io::Result<()> {
        match UnixStream::connect(socket(&self.run_dir)) {
            Ok(_) => Ok(()),
            Err(_) => self.start(),
        }
    }

    /// Starts a keeper, in a session of its own. It gets its socket, which takes connections at once.
    fn start(&self) -> io::Result<()> {
        let path = socket(&self.run_dir);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(&self.program);
        command
            // Not taken for a daemon by those who look at processes' names.
            .arg0("ringd-ports")
            .arg("--keep-ports")
            .args(&self.options)
            .stdin(OwnedFd::from(listener));
        // SAFETY: setsid may be called between fork and exec.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
        }
        command.spawn().map(drop)
    }
}

fn exchange(
    stream: &UnixStream,
    request: &Request,
    file: Option<&File>,
) -> io::Result<(Reply, Option<File>)> {
    wire::send(stream, request, file)?;
    wire::receive(stream)
}
