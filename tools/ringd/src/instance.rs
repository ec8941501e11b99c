//! Which daemon runs: the lock that makes it the only one, and what other processes can find out about it.
//!
//! A process that was killed keeps its files open, and so its locks, until its last system call has returned.
//! One that waits for a device may take long for that. So a process that finds the lock taken checks its
//! holder: it fails if the holder lives, and waits if it is dying ([`take_lock`]).

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use rustix::fs::FlockOperation;

use crate::regular;

/// How often a lock that a dying daemon holds is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How often a message says what is waited for.
pub const REMINDER: Duration = Duration::from_secs(5);
/// The text of [`State`] when requests are answered.
pub const READY: &str = "ready";

/// The condition of a process, as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none, or another program has its number.
    Gone,
    /// It was killed, but a system call of it has not returned.
    Dying,
    /// It is stopped, by SIGSTOP or by a debugger.
    Stopped,
    /// It runs or sleeps.
    Alive,
}

/// Returns the condition of the `ringd` process `pid`.
pub fn condition(pid: u32) -> Condition {
    condition_below(Path::new("/proc"), pid)
}

fn condition_below(proc: &Path, pid: u32) -> Condition {
    let Ok(text) = fs::read_to_string(proc.join(pid.to_string()).join("status")) else {
        return Condition::Gone;
    };
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("", str::trim)
    };
    if field("Name:") != "ringd" {
        return Condition::Gone;
    }
    const SIGKILL: u64 = 1 << 8;
    let killed = ["SigPnd:", "ShdPnd:"].iter().any(|name| {
        let pending = u64::from_str_radix(field(name), 16).unwrap_or(0);
        pending & SIGKILL != 0
    });
    match field("State:").as_bytes().first() {
        Some(b'Z' | b'X') => Condition::Dying,
        _ if killed => Condition::Dying,
        Some(b'T' | b't') => Condition::Stopped,
        _ => Condition::Alive,
    }
}

/// Returns the path of a file with a process number.
fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Records this process as the supervisor.
///
/// # Errors
/// The directory cannot be written.
pub fn record_supervisor(run_dir: &Path) -> io::Result<()> {
    fs::write(run_dir.join("supervisor"), format!("{}\n", std::process::id()))
}

/// What is known of the daemon of a run directory when no process listens at its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// No daemon, and no supervisor that would start one.
    NotRunning,
    /// A daemon runs but does not answer yet: its process and its own report.
    Starting(u32, String),
    /// It was killed and its last I/O has not completed.
    Dying(u32),
    /// It is stopped.
    Stopped(u32),
    /// The supervisor, process and state, is about to start one.
    Between(u32, Condition),
}

/// Returns what is known of the daemon of a run directory.
pub fn look(run_dir: &Path) -> Absence {
    let daemon = read_pid(&run_dir.join("lock")).map(|pid| (pid, condition(pid)));
    let supervisor = read_pid(&run_dir.join("supervisor")).map(|pid| (pid, condition(pid)));
    match (daemon, supervisor) {
        (Some((pid, Condition::Alive)), _) => {
            let state = fs::read_to_string(run_dir.join("state")).unwrap_or_default();
            Absence::Starting(pid, state.trim().to_owned())
        }
        (Some((pid, Condition::Stopped)), _) => Absence::Stopped(pid),
        (_, Some((pid, condition @ (Condition::Alive | Condition::Stopped)))) => {
            Absence::Between(pid, condition)
        }
        (Some((pid, Condition::Dying)), _) => Absence::Dying(pid),
        _ => Absence::NotRunning,
    }
}

/// The file `state`, in which a daemon that does not answer yet reports what it does.
pub struct State {
    file: Mutex<File>,
}

impl State {
    /// Opens the file.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn new(run_dir: &Path) -> io::Result<Self> {
        let path: PathBuf = run_dir.join("state");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        Ok(Self {
            file: Mutex::new(file),
        })
    }

    /// Reports `text` from now on. Nothing depends on it, so a failure to write it is ignored.
    pub fn set(&self, text: &str) {
        let file = self.file.lock();
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all_at(format!("{text}\n").as_bytes(), 0));
    }
}

/// Holds the lock that makes this the only daemon, as long as the file or a duplicate of it lives. Waits for
/// a daemon that is dead already.
///
/// # Errors
/// Another daemon runs; the message names its process.
pub fn take_lock(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join("lock");
    let mut file = regular::open_private(&path).with_context(|| format!("cannot open {}", path.display()))?;
    // A process that can open the file can lock it and delay the next take-over. An earlier version created
    // it readable for all users.
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot restrict {}", path.display()))?;
    let begin = Instant::now();
    let mut said = None::<Instant>;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        let _ = file.read_to_string(&mut text);
        let pid = text.trim().parse().unwrap_or(0);
        match condition_of_holder(pid) {
            Condition::Alive => {
                bail!("ringd is running already as process {pid}; there can be only one")
            }
            Condition::Stopped => bail!(
                "ringd is running already as process {pid}, which is stopped; `kill -CONT {pid}` continues it, \
                 `kill -KILL {pid}` makes room for another"
            ),
            Condition::Gone | Condition::Dying => {}
        }
        if said.is_none_or(|said| said.elapsed() >= REMINDER) && begin.elapsed() > RETRY_INTERVAL * 5 {
            tracing::warn!(
                pid,
                waited = ?begin.elapsed(),
                "the last daemon is dead, but I/O that it began has not completed: waiting for it"
            );
            said = Some(Instant::now());
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
    if said.is_some() {
        tracing::info!(waited = ?begin.elapsed(), "the last daemon's I/O has ended");
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// In tests the program has another name.
#[cfg(test)]
fn condition_of_holder(pid: u32) -> Condition {
    match condition(pid) {
        Condition::Gone if pid == std::process::id() => Condition::Alive,
        condition => condition,
    }
}

#[cfg(not(test))]
fn condition_of_holder(pid: u32) -> Condition {
    condition(pid)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::{Absence, Condition, READY, State, condition_below, look, take_lock};

    // torture c7
    #[test]
    fn a_second_daemon_is_refused_by_the_first_ones_number() {
        let directory = tempfile::tempdir().unwrap();
        let first = take_lock(directory.path()).unwrap();
        let message = take_lock(directory.path()).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            message,
            format!("ringd is running already as process {pid}; there can be only one")
        );
        drop(first);
        take_lock(directory.path()).unwrap();
    }

    // torture i1
    #[test]
    fn other_users_cannot_open_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(take_lock(directory.path()).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_lock_whose_holder_is_dead_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let held = take_lock(directory.path()).unwrap();
        // As after the death of a process whose descriptors are still open: the number is no live daemon's.
        fs::write(directory.path().join("lock"), "4194305\n").unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| take_lock(directory.path()).map(drop));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!next.is_finished());
            drop(held);
            next.join().unwrap().unwrap();
        });
    }

    #[test]
    fn conditions_of_a_process() {
        let proc = tempfile::tempdir().unwrap();
        let put = |text: &str| {
            fs::create_dir_all(proc.path().join("7")).unwrap();
            fs::write(proc.path().join("7/status"), text).unwrap();
            condition_below(proc.path(), 7)
        };
        assert_eq!(condition_below(proc.path(), 7), Condition::Gone);
        let none = "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";
        let kill = "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n";
        let text =
            |name: &str, state: &str, pending: &str| format!("Name:\t{name}\nState:\t{state}\n{pending}");
        assert_eq!(put(&text("ringd", "S (sleeping)", none)), Condition::Alive);
        assert_eq!(put(&text("ringd", "T (stopped)", none)), Condition::Stopped);
        assert_eq!(put(&text("ringd", "D (disk sleep)", kill)), Condition::Dying);
        assert_eq!(put(&text("ringd", "Z (zombie)", none)), Condition::Dying);
        assert_eq!(put(&text("sh", "S (sleeping)", none)), Condition::Gone);
    }

    #[test]
    fn a_state_replaces_the_last_one() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::new(directory.path()).unwrap();
        state.set("taking over: something long");
        state.set(READY);
        assert_eq!(
            fs::read_to_string(directory.path().join("state")).unwrap(),
            "ready\n"
        );
        assert_eq!(look(directory.path()), Absence::NotRunning);
    }
}
