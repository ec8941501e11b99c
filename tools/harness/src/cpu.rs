//! What a child process took: wall time, and CPU time, which says more on a machine that has other work.

use std::fmt;
use std::fs;
use std::io;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// What something took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// Wall time.
    pub wall: Duration,
    /// CPU time, user and system, of all processes.
    pub cpu: Duration,
}

impl Took {
    /// Returns what passed since `start`, when the process `pid` had taken `cpu`.
    pub fn since(start: Instant, cpu: Duration, pid: u32) -> Self {
        Self {
            wall: start.elapsed(),
            cpu: used(pid).saturating_sub(cpu),
        }
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, cpu) = (self.wall.as_secs_f64(), self.cpu.as_secs_f64());
        write!(f, "{wall:.1} s, {cpu:.1} s of CPU")
    }
}

/// Returns the CPU time of a process and of those of its children that it has waited for (proc_pid_stat(5));
/// none if there is no such process.
pub fn used(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name is in parentheses and may have any character; what follows it begins with field 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(14 - 3)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(ticks * 1000 / per_second)
}

/// Waits for a child that was started at `start`.
///
/// # Errors
/// It cannot be waited for.
pub fn wait(child: &mut Child, start: Instant) -> io::Result<(ExitStatus, Took)> {
    // Its numbers go when it is reaped.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    }
    let took = Took::since(start, Duration::ZERO, child.id());
    Ok((child.wait()?, took))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::{Took, used, wait};

    #[test]
    fn the_time_of_a_childs_children_counts() {
        let busy = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done'; exit 3";
        let start = Instant::now();
        let mut child = Command::new("sh").args(["-c", busy]).spawn().unwrap();
        let (status, took) = wait(&mut child, start).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(took.cpu >= Duration::from_millis(20), "{took}");
        assert_eq!(used(child.id()), Duration::ZERO, "it is gone");
    }

    #[test]
    fn results_have_tenths_of_seconds() {
        let took = Took {
            wall: Duration::from_millis(12_345),
            cpu: Duration::from_millis(20_000),
        };
        assert_eq!(took.to_string(), "12.3 s, 20.0 s of CPU");
    }
}
