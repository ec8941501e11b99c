//! Where the reactor's thread runs: [`Place`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How often is asked whether the interrupt has moved.
const PERIOD: Duration = Duration::from_secs(1);

/// Keeps the thread on the CPU that takes the control device's interrupt.
///
/// Linux (from 6.12) handles a uio interrupt in a thread of its own, on the CPU that took it. That thread wakes the reactor's,
/// and as its CPU is not idle at that moment, the scheduler places the reactor on another: an IPI, which EL2 has to pass on,
/// and a CPU that has to come out of its idle state first. On the same CPU the reactor is next. Whatever else wants that
/// CPU can go to another.
///
/// The interrupt moves when a zone takes its CPU. Linux then lets the thread run anywhere, until [`Place::follow`] has seen it.
#[derive(Debug)]
pub(super) struct Place {
    /// Says which CPU takes the interrupt.
    list: File,
    /// Where the thread may run if it is kept nowhere.
    allowed: CpuSet,
    /// Where it is kept.
    cpu: Option<usize>,
    asked: Option<Instant>,
}

impl Place {
    /// `list` is read again and again: `/proc/irq/N/effective_affinity_list`. The calling thread may run wherever the
    /// reactor's may. `None` if the system does not tell where that is.
    pub fn new(list: File) -> Option<Self> {
        Some(Self {
            list,
            allowed: sched_getaffinity(None).ok()?,
            cpu: None,
            asked: None,
        })
    }

    /// Moves the calling thread, the reactor's, to where the interrupt is now, if it is time to ask.
    pub fn follow(&mut self) {
        let now = Instant::now();
        if self.asked.is_some_and(|asked| now.duration_since(asked) < PERIOD) {
            return;
        }
        self.asked = Some(now);
        let wanted = self.interrupt().filter(|&cpu| self.allowed.is_set(cpu));
        if wanted == self.cpu {
            return;
        }
        let mut cpus = CpuSet::new();
        match wanted {
            Some(cpu) => cpus.set(cpu),
            None => cpus = self.allowed,
        }
        match sched_setaffinity(None, &cpus) {
            Ok(()) => tracing::debug!(cpu = ?wanted, "the reactor follows the interrupt"),
            // Such as a cpuset that leaves this CPU out: then Linux places the thread.
            Err(error) => tracing::debug!(cpu = ?wanted, %error, "the reactor cannot follow the interrupt"),
        }
        self.cpu = wanted;
    }

    /// The one CPU that takes the interrupt.
    fn interrupt(&self) -> Option<usize> {
        let mut text = [0; 16];
        let len = self.list.read_at(&mut text, 0).ok()?;
        let text = text.get(..len).and_then(|text| std::str::from_utf8(text).ok())?;
        text.trim().parse().ok().filter(|&cpu| cpu < CpuSet::MAX_CPU)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_follows_the_interrupt() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let says = |text: &str| std::fs::write(file.path(), text).unwrap();
        let mut place = Place::new(file.reopen().unwrap()).unwrap();
        let allowed = place.allowed;
        let some: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let forbidden = (0..CpuSet::MAX_CPU).find(|&cpu| !allowed.is_set(cpu)).unwrap();
        let (first, last) = (*some.first().unwrap(), *some.last().unwrap());
        let mut follow = || {
            place.asked = None;
            place.follow();
            let now = sched_getaffinity(None).unwrap();
            (now.count(), now.is_set(first), now.is_set(last))
        };
        let everywhere = (allowed.count(), true, true);

        says(&format!("{first}\n"));
        assert_eq!(follow(), (1, true, first == last));
        says(&format!("{last}\n"));
        assert_eq!(follow(), (1, first == last, true));
        for anywhere in [
            String::new(),
            "0-1\n".into(),
            "x".into(),
            format!("{forbidden}\n"),
            "4294967296\n".into(),
        ] {
            says(&format!("{first}\n"));
            let _ = follow();
            says(&anywhere);
            assert_eq!(follow(), everywhere, "{anywhere:?}");
        }
        // Not before it is time again.
        says(&format!("{first}\n"));
        place.follow();
        assert_eq!(sched_getaffinity(None).unwrap().count(), allowed.count());
    }
}
