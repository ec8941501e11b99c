//! [`Affinity`]: the CPU that the reactor's thread is to run on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How often the interrupt's CPU is read.
const PERIOD: Duration = Duration::from_secs(1);

/// The CPU that takes the control device's interrupt.
///
/// Linux 6.12 handles a uio interrupt in a thread of its own, on the CPU that took it. That thread wakes the
/// reactor's, and as its CPU is not idle at that moment, the scheduler places the reactor on another: an IPI,
/// which EL2 has to pass on, and a CPU that has to come out of its idle state first. On the same CPU the
/// reactor is next.
///
/// The interrupt moves when a zone takes its CPU. Linux then lets the thread run anywhere, until its affinity
/// is set again.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Names the CPU that takes the interrupt.
    list: File,
    asked: Option<Instant>,
}

impl Affinity {
    /// Returns the affinity to an interrupt. `list` is read again and again:
    /// `/proc/irq/N/effective_affinity_list`.
    pub const fn new(list: File) -> Self {
        Self { list, asked: None }
    }

    /// Returns the one CPU that takes the interrupt, `Some(None)` if there is no such; `None` less than
    /// [`PERIOD`] after the last call.
    pub fn ask(&mut self) -> Option<Option<usize>> {
        let now = Instant::now();
        if self.asked.is_some_and(|asked| now.duration_since(asked) < PERIOD) {
            return None;
        }
        self.asked = Some(now);
        Some(self.interrupt())
    }

    fn interrupt(&self) -> Option<usize> {
        let mut text = [0; 16];
        // A list that fills it may be longer.
        let len = self
            .list
            .read_at(&mut text, 0)
            .ok()
            .filter(|&len| len < text.len())?;
        std::str::from_utf8(text.get(..len)?).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Affinity;

    #[test]
    fn the_interrupt_is_followed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut affinity = Affinity::new(file.reopen().unwrap());
        for (text, cpu) in [
            ("0\n", Some(0)),
            ("13\n", Some(13)),
            ("", None),
            ("0-1\n", None),
            ("x", None),
            ("18446744073709551616\n", None),
        ] {
            std::fs::write(file.path(), text).unwrap();
            affinity.asked = None;
            assert_eq!(affinity.ask(), Some(cpu), "{text:?}");
            assert_eq!(affinity.ask(), None, "not before it is time again");
        }
    }
}
