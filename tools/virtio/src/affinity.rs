//! Where threads run.
//!
//! A reactor can be bound to one CPU ([`bind`]). What Linux derives from it must not be: threads that it
//! starts inherit its CPUs and call [`run_anywhere`]; the workers of its ring inherit them too, and get a
//! mask of their own without that CPU. (Linux intersects a worker's mask with the CPUs that its creator asked
//! for, unless they have none in common.)

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Returns the CPUs, on line or not, that the process's first thread may use: that one is never bound.
fn allowed() -> io::Result<CpuSet> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cpus = list.map(parse).filter(|cpus| cpus.count() > 0);
    cpus.ok_or_else(|| io::Error::other("no list of CPUs in /proc/self/status"))
}

/// Parses a list as `0-3,6`.
fn parse(list: &str) -> CpuSet {
    let mut cpus = CpuSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            for cpu in first..=last.min(CpuSet::MAX_CPU - 1) {
                cpus.set(cpu);
            }
        }
    }
    cpus
}

/// Lets this thread run where the process's first thread may: the thread that started it may be bound to one
/// CPU.
pub fn run_anywhere() {
    // Without it the thread is slower, no more.
    let _ = allowed().and_then(|cpus| Ok(sched_setaffinity(None, &cpus)?));
}

/// Keeps the calling thread on a CPU, and by `keep_workers_on` the workers of its ring on all others; with
/// `None` lets it run anywhere.
///
/// # Errors
/// The system refused; then the thread may run anywhere.
pub(crate) fn bind(
    cpu: Option<usize>,
    keep_workers_on: impl FnOnce(&CpuSet) -> io::Result<()>,
) -> io::Result<()> {
    let mut own = CpuSet::new();
    let cpu = cpu.filter(|&cpu| cpu < CpuSet::MAX_CPU);
    if let Some(cpu) = cpu {
        own.set(cpu);
        if sched_getaffinity(None)? == own {
            return Ok(());
        }
    }
    let mut others = allowed()?;
    let result = match cpu.filter(|&cpu| others.is_set(cpu)) {
        None => Ok(sched_setaffinity(None, &others)?),
        Some(cpu) => {
            others.unset(cpu);
            // On a machine of one CPU there is no other for them.
            let workers = if others.count() > 0 {
                keep_workers_on(&others)
            } else {
                Ok(())
            };
            workers.and_then(|()| Ok(sched_setaffinity(None, &own)?))
        }
    };
    if result.is_err() {
        run_anywhere();
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use io_uring::{opcode, types};
    use rustix::thread::{CpuSet, sched_getaffinity};

    use super::{allowed, bind, parse, run_anywhere};
    use crate::waiter::Waiter;
    use crate::waiter::uring::Uring;

    /// The last CPU of a set: of those that are on line, where the set is what `sched_getaffinity` gave.
    fn last(cpus: &CpuSet) -> usize {
        (0..CpuSet::MAX_CPU).rfind(|&cpu| cpus.is_set(cpu)).unwrap()
    }

    #[test]
    fn lists_of_cpus() {
        let cpus = |list: &str| {
            let set = parse(list);
            (0..CpuSet::MAX_CPU)
                .filter(|&cpu| set.is_set(cpu))
                .collect::<Vec<_>>()
        };
        assert_eq!(cpus("\t0-3,6\n"), [0, 1, 2, 3, 6]);
        assert_eq!(cpus("5"), [5]);
        assert!(cpus("2-1,x,,7-").is_empty());
        assert_eq!(cpus("1022-99999999"), [1022, 1023]);
    }

    #[cfg_attr(miri, ignore = "Miri has no io_uring")]
    #[test]
    fn a_thread_is_kept_and_those_it_starts_are_not() {
        let here = || sched_getaffinity(None).unwrap();
        let before = here();
        let cpu = last(&before);
        let waiter = Waiter::new(true, 8).unwrap();
        waiter.bind(Some(cpu)).unwrap();
        assert!(here().count() == 1 && here().is_set(cpu));
        let (inherited, anywhere) = std::thread::spawn(move || {
            let inherited = here().count();
            run_anywhere();
            (inherited, here())
        })
        .join()
        .unwrap();
        assert_eq!((inherited, anywhere), (1, before));
        // No CPU of this process.
        waiter.bind(Some(CpuSet::MAX_CPU)).unwrap();
        assert_eq!(here(), before);
        bind(Some(cpu), |_| Ok(())).unwrap();
        bind(None, |_| Ok(())).unwrap();
        assert_eq!(here(), before);
    }

    // A sync is never done on the spot: it goes to a worker of the ring.
    #[cfg_attr(miri, ignore = "Miri has no io_uring")]
    #[test]
    fn workers_of_a_ring_run_elsewhere() {
        let all = allowed().unwrap();
        let cpu = last(&sched_getaffinity(None).unwrap());
        let Ok(mut ring) = Uring::new(8) else {
            return;
        };
        bind(Some(cpu), |workers| ring.keep_workers_on(workers)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let name = format!("iou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
        let workers = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            // One that has ended meanwhile is none.
            let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
            status
                .filter(|status| status.lines().next() == Some(&format!("Name:\t{name}")))
                .filter_map(|status| Some(parse(status.split("Cpus_allowed_list:").nth(1)?.lines().next()?)))
                .collect::<Vec<_>>()
        };
        let mut seen = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while seen.is_empty() {
            assert!(Instant::now() < deadline, "no worker {name} was seen");
            let sync = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
            // SAFETY: no memory, and the file stays open.
            unsafe { ring.push(sync, 0) };
            let mut done = Vec::new();
            while done.is_empty() {
                ring.wait(None, &mut Vec::new()).unwrap();
                ring.reap(&mut done);
            }
            assert_eq!(done[0].result, 0);
            seen = workers();
        }
        let mut others = all;
        others.unset(cpu);
        let wanted = if others.count() > 0 { others } else { all };
        assert!(seen.iter().all(|cpus| *cpus == wanted), "{seen:?}");
        bind(None, |_| Ok(())).unwrap();
    }
}
