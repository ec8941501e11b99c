//! `ringd --supervise`: a process that starts the daemon and starts it again whenever it ends.
//!
//! Kept so small that nothing in it can fail while the daemon runs: it holds no lock, no device and no memory
//! of a zone, reads nothing that a guest or a client wrote, and does nothing but wait for signals. If it is
//! killed, the daemon keeps running.
//!
//! Once the daemon serves, the next one is started, too, and waits to take over ([`standby`]): starting a
//! program would be most of a guest's pause. A service manager that started the supervisor reads from it that
//! the daemon serves and answers ([`notify`]).

pub mod notify;
pub mod standby;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::instance;
use crate::signals::{ENDING, Signals, WATCHED};
use notify::Manager;
use standby::{Program, Reserve};

/// A daemon that ends earlier than this after its start died quickly.
const MIN_UPTIME: Duration = Duration::from_millis(500);
/// First pause after a quick death; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause if the daemon had begun to serve: zones wait for it.
const PAUSE_SERVING: Duration = Duration::from_millis(500);
/// Longest pause if it never did: starting it more often would only keep root busy.
const PAUSE_FAILING: Duration = Duration::from_secs(10);
/// How long the daemon may take to end after a signal that ends it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Decides how long to wait before the daemon is started again.
#[derive(Debug, Default)]
struct BackOff {
    quick: u32,
}

impl BackOff {
    /// Returns the pause after a daemon that lived this long and was ready or not.
    fn after(&mut self, lived: Duration, ready: bool) -> Duration {
        if lived >= MIN_UPTIME && ready {
            self.quick = 0;
            return Duration::ZERO;
        }
        let longest = if ready { PAUSE_SERVING } else { PAUSE_FAILING };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.quick.min(16));
        self.quick = self.quick.saturating_add(1);
        pause.min(longest)
    }
}

/// Keeps a daemon running until a signal says that both are to end. `arguments` are the daemon's.
///
/// # Errors
/// Signals cannot be blocked, or the run directory cannot be written.
pub fn run(run_dir: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let signals = Signals::block(&WATCHED).context("cannot block signals")?;
    // Before any process can know of this supervisor and record another program for it.
    let _ = fs::remove_file(program_file(run_dir));
    if let Some(pid) = instance::orphan(run_dir) {
        tracing::warn!(pid, "a daemon runs whose supervisor was killed: it is replaced");
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    instance::record_supervisor(run_dir).context("cannot record the supervisor's process")?;
    let own = std::env::current_exe().context("cannot find this program")?;
    let mut back_off = BackOff::default();
    let mut reserve = Reserve::new(arguments);
    let mut manager = Manager::new(run_dir);
    loop {
        let path = upgraded(run_dir).unwrap_or_else(|| own.clone());
        // Not the report of an earlier daemon.
        let _ = fs::write(run_dir.join("state"), "starting\n");
        let start = Instant::now();
        let child = match reserve.take(&Program::at(&path)) {
            Some(child) => Ok(child),
            None => notify::unmanaged(&path).args(arguments).spawn(),
        };
        let ended = match child {
            Ok(child) => attend(child, &signals, || {
                let path = upgraded(run_dir).unwrap_or_else(|| own.clone());
                let ready = is_ready(run_dir);
                let later = manager.report(ready);
                reserve.keep(&Program::at(&path), ready).min(later)
            })?,
            Err(error) => {
                tracing::error!(program = %path.display(), %error, "cannot start the daemon");
                Ended::Died("was not started".into())
            }
        };
        let why = match ended {
            Ended::Requested(signal) => {
                tracing::info!(signal, "daemon exited on signal");
                let _ = fs::remove_file(run_dir.join("supervisor"));
                return Ok(());
            }
            Ended::Aborted => bail!("SIGABRT, as from a service manager's watchdog: the daemon was killed"),
            Ended::Died(why) => why,
        };
        let lived = start.elapsed();
        let pause = back_off.after(lived, is_ready(run_dir));
        tracing::warn!(why, ?lived, ?pause, "the daemon died: starting it again");
        if let Some(signal) = wait_unless_signalled(&signals, pause) {
            tracing::info!(signal, "supervisor exiting");
            return Ok(());
        }
    }
}

/// Whether the daemon serves.
fn is_ready(run_dir: &Path) -> bool {
    fs::read_to_string(run_dir.join("state")).is_ok_and(|text| text.trim() == instance::READY)
}

/// Why the daemon ended.
enum Ended {
    /// A signal to the supervisor.
    Requested(i32),
    /// SIGABRT to the supervisor, with which a service manager ends what does not answer.
    Aborted,
    /// Otherwise.
    Died(String),
}

/// Whether the signal is to end the daemon.
fn ends(signal: i32) -> bool {
    ENDING.contains(&signal)
}

/// Waits for the daemon's end and passes signals on to it. `poll` returns when to call it again at the
/// latest.
fn attend(mut child: Child, signals: &Signals, mut poll: impl FnMut() -> Duration) -> anyhow::Result<Ended> {
    let mut asked = None::<(i32, Instant)>;
    loop {
        let status = child.try_wait().context("cannot wait for the daemon")?;
        if let Some(status) = status {
            return Ok(match asked {
                Some((signal, _)) => Ended::Requested(signal),
                None => Ended::Died(cause(status)),
            });
        }
        if let Some((_, since)) = asked
            && since.elapsed() > SHUTDOWN_TIMEOUT
        {
            let _ = child.kill();
        }
        let Some(signal) = signals.next(poll()) else {
            continue;
        };
        if signal == libc::SIGCHLD {
            continue;
        }
        if signal == libc::SIGABRT {
            // Its last system call may take long to return: the next daemon waits for it.
            let _ = child.kill();
            return Ok(Ended::Aborted);
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
            let _ = kill_process(pid, signal);
        }
        if ends(signal) {
            notify::stopping();
            asked.get_or_insert((signal, Instant::now()));
        }
    }
}

/// Sleeps; returns early with a signal that ends the supervisor.
fn wait_unless_signalled(signals: &Signals, pause: Duration) -> Option<i32> {
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        if let Some(signal) = signals.next(left).filter(|signal| ends(*signal)) {
            return Some(signal);
        }
    }
}

/// Returns how a process ended, for people.
pub fn cause(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// Returns the path of the file with the program of the last upgrade.
pub fn program_file(run_dir: &Path) -> PathBuf {
    run_dir.join("program")
}

/// Returns the program of the last upgrade, if it still exists.
fn upgraded(run_dir: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(
        fs::read_to_string(program_file(run_dir))
            .ok()?
            .trim_end_matches('\n'),
    );
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BackOff, PAUSE_FAILING, PAUSE_SERVING};

    #[test]
    fn quick_deaths_are_followed_by_longer_pauses() {
        let mut back_off = BackOff::default();
        let ms = Duration::from_millis;
        assert_eq!(back_off.after(ms(900), true), ms(0));
        assert_eq!(back_off.after(ms(10), true), ms(50));
        assert_eq!(back_off.after(ms(10), true), ms(100));
        for _ in 0..40 {
            assert!(back_off.after(ms(10), true) <= PAUSE_SERVING);
        }
        assert_eq!(back_off.after(ms(700), true), ms(0));
        let pauses: Vec<Duration> = (0..10).map(|_| back_off.after(ms(900), false)).collect();
        assert_eq!(pauses.first(), Some(&ms(50)));
        assert_eq!(pauses.last(), Some(&PAUSE_FAILING));
    }
}
