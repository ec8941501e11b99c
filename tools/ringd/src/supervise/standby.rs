//! The next daemon, started while the last one serves: a broker and a worker that have come as far as they
//! can without the run lock, and wait for a text line on the broker's standard input.
//!
//! It is used only if it is the program that would be started now. Otherwise, or if it has ended, a daemon is
//! started.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use super::notify;
use crate::signals::ENDING;

/// How often to check whether the daemon serves: then a standby is to be started soon.
const POLL: Duration = Duration::from_millis(50);
/// How often to check the program when there is a standby, or none can be started.
const POLL_LATER: Duration = Duration::from_secs(1);
/// How long to wait once the daemon serves: its first requests come first.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause after a standby that ended by itself.
const RETRY: Duration = Duration::from_secs(10);

/// A program as it is in its file: another file of the same name is another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    /// Device, inode, size, time of the last change; `None` if there is no file.
    file: Option<(u64, u64, u64, i64, i64)>,
}

impl Program {
    /// Returns the program in the file at `path` now.
    pub fn at(path: &Path) -> Self {
        let identity = |file: fs::Metadata| {
            (
                file.dev(),
                file.ino(),
                file.size(),
                file.ctime(),
                file.ctime_nsec(),
            )
        };
        Self {
            path: path.to_owned(),
            file: fs::metadata(path).ok().map(identity),
        }
    }
}

/// A daemon that waits for its turn.
struct Standby {
    child: Child,
    turn: ChildStdin,
    program: Program,
}

/// Where the next daemon is kept. Dropped, it ends.
pub struct Reserve {
    arguments: Vec<String>,
    standby: Option<Standby>,
    /// Not to be started before.
    next: Option<Instant>,
    /// Since when the daemon serves.
    ready: Option<Instant>,
}

impl Reserve {
    /// Returns a place without a standby. `arguments` are the daemon's.
    pub fn new(arguments: &[String]) -> Self {
        Self {
            arguments: ["--standby".to_owned()]
                .into_iter()
                .chain(arguments.iter().cloned())
                .collect(),
            standby: None,
            next: None,
            ready: None,
        }
    }

    /// Lets the standby take over and returns it, if there is one of this program.
    pub fn take(&mut self, program: &Program) -> Option<Child> {
        self.ready = None;
        let standby = self.standby.take()?;
        if standby.program != *program {
            standby.end();
            return None;
        }
        let Standby {
            mut child, mut turn, ..
        } = standby;
        match turn.write_all(b"\n") {
            Ok(()) => {
                tracing::info!("the next daemon, kept ready, takes over");
                Some(child)
            }
            // It has ended.
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                None
            }
        }
    }

    /// Starts a standby of this program once the daemon is ready, unless there is one; returns when to call
    /// it again at the latest.
    pub fn keep(&mut self, program: &Program, ready: bool) -> Duration {
        if let Some(standby) = &mut self.standby {
            match standby.child.try_wait() {
                Ok(None) if standby.program == *program => return POLL_LATER,
                Ok(None) => self.end(),
                status => {
                    let signal = status.as_ref().ok().and_then(|ended| (*ended)?.signal());
                    match signal.filter(|signal| ENDING.contains(signal)) {
                        // As all processes of the daemon may be.
                        Some(signal) => tracing::info!(signal, "the next daemon was asked to end"),
                        None => tracing::warn!(?status, "the next daemon, kept ready, has ended"),
                    }
                    self.standby = None;
                    self.next = Some(Instant::now() + RETRY);
                }
            }
        }
        if self.next.is_some_and(|next| Instant::now() < next) {
            return POLL_LATER;
        }
        if !ready {
            self.ready = None;
            return POLL;
        }
        if self.ready.get_or_insert_with(Instant::now).elapsed() < SETTLE {
            return POLL;
        }
        let spawned = notify::unmanaged(&program.path)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .spawn();
        match spawned {
            Ok(mut child) => {
                self.standby = child.stdin.take().map(|turn| Standby {
                    child,
                    turn,
                    program: program.clone(),
                });
            }
            Err(error) => {
                tracing::warn!(program = %program.path.display(), %error, "cannot start the next daemon ahead");
                self.next = Some(Instant::now() + RETRY);
            }
        }
        POLL_LATER
    }

    fn end(&mut self) {
        if let Some(standby) = self.standby.take() {
            standby.end();
        }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.end();
    }
}

impl Standby {
    /// Its worker follows it.
    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
