//! A record of what reactor threads do, step by step, to find out where time goes.
//!
//! Each thread writes to a ring of its own, without locks; old records are overwritten. While recording is
//! off, as it is at first, [`event`] is one load and one branch. Stamps are those of the CPU's generic
//! counter, which a hypervisor below reads as well; on other machines, of the monotonic clock.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

/// The kind of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The thread woke up.
    Wake = 16,
    /// It services a queue.
    Service = 17,
    /// A request was popped; `value` is its head, as for the next four.
    Popped = 18,
    /// Its operation was submitted.
    Submitted = 19,
    /// Its data and its status are in guest memory.
    Completed = 20,
    /// It is published in the used ring.
    Used = 21,
    /// The interrupt for what was published is about to be sent.
    Raise = 22,
    /// The driver wants no interrupt for what was published.
    Suppressed = 23,
}

impl TryFrom<u8> for Kind {
    type Error = u8;
    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            16 => Self::Wake,
            17 => Self::Service,
            18 => Self::Popped,
            19 => Self::Submitted,
            20 => Self::Completed,
            21 => Self::Used,
            22 => Self::Raise,
            23 => Self::Suppressed,
            other => return Err(other),
        })
    }
}

/// Names a queue in the records: 24 bits of its owner's choice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TraceId(u32);

impl TraceId {
    /// Returns the id of three bytes.
    pub fn new(bytes: [u8; 3]) -> Self {
        let [first, second, third] = bytes;
        Self(u32::from_le_bytes([first, second, third, 0]))
    }
}

/// Records of one thread's ring.
pub const CAPACITY: usize = 1 << 14;

static ON: AtomicBool = AtomicBool::new(false);
static RINGS: Mutex<Vec<Arc<Ring>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: OnceCell<Arc<Ring>> = const { OnceCell::new() };
}

/// The records of one thread, written by it alone.
#[derive(Debug)]
pub struct Ring {
    name: String,
    /// Stamp and word by turns.
    words: Box<[AtomicU64]>,
    /// Records ever written.
    head: AtomicU64,
}

/// A record: the stamp, and kind, three bytes of [`TraceId`] and four of value from the lowest byte on.
pub type Raw = (u64, u64);

/// The result of reading a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The number to continue with.
    pub next: u64,
    /// Records that were overwritten before they were read.
    pub lost: u64,
}

impl Ring {
    fn new(name: String, capacity: usize) -> Self {
        Self {
            name,
            words: (0..capacity * 2).map(|_| AtomicU64::new(0)).collect(),
            head: AtomicU64::new(0),
        }
    }

    /// Returns the name of the thread.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of records ever written.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    fn capacity(&self) -> u64 {
        self.words.len() as u64 / 2
    }

    fn place(&self, number: u64) -> Option<(&AtomicU64, &AtomicU64)> {
        let at = number.checked_rem(self.capacity())? as usize * 2;
        Some((self.words.get(at)?, self.words.get(at + 1)?))
    }

    fn write(&self, stamp: u64, word: u64) {
        let number = self.head.load(Ordering::Relaxed);
        // The head is stored before the place is overwritten: `read` relies on that.
        fence(Ordering::Release);
        if let Some((first, second)) = self.place(number) {
            first.store(stamp, Ordering::Relaxed);
            second.store(word, Ordering::Relaxed);
        }
        self.head.store(number + 1, Ordering::Release);
    }

    /// Appends the records from number `from` on to `into`.
    pub fn read(&self, from: u64, into: &mut Vec<Raw>) -> Progress {
        let head = self.head();
        let begin = into.len();
        let first = from.max(head.saturating_sub(self.capacity()));
        for number in first..head {
            if let Some((stamp, word)) = self.place(number) {
                into.push((stamp.load(Ordering::Relaxed), word.load(Ordering::Relaxed)));
            }
        }
        // All is copied before the head is read again.
        fence(Ordering::Acquire);
        let now = self.head.load(Ordering::Relaxed);
        // The record that is being written may be half overwritten.
        let intact = (now + 1).saturating_sub(self.capacity());
        let bad = intact.saturating_sub(first).min(head - first);
        into.drain(begin..begin + bad as usize);
        Progress {
            next: head,
            lost: first.saturating_sub(from) + bad,
        }
    }
}

/// Records an event of a queue.
#[inline(always)]
pub fn event(kind: Kind, queue: TraceId, value: u32) {
    if ON.load(Ordering::Relaxed) {
        record(kind, queue, value);
    }
}

#[cold]
#[inline(never)]
fn record(kind: Kind, queue: TraceId, value: u32) {
    let word = u64::from(kind as u8) | u64::from(queue.0) << 8 | u64::from(value) << 32;
    let stamp = now();
    // A thread that is ending has no ring any more.
    let _ = OWN.try_with(|own| own.get_or_init(register).write(stamp, word));
}

fn lock() -> MutexGuard<'static, Vec<Arc<Ring>>> {
    RINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn register() -> Arc<Ring> {
    let name = std::thread::current().name().unwrap_or("thread").to_owned();
    let ring = Arc::new(Ring::new(name, CAPACITY));
    lock().push(ring.clone());
    ring
}

/// Turns recording on or off.
pub fn set_on(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Returns the rings of all threads that have recorded and still run.
pub fn rings() -> Vec<Arc<Ring>> {
    let mut rings = lock();
    rings.retain(|ring| Arc::strong_count(ring) > 1);
    rings.clone()
}

/// Returns the time by the clock of the stamps.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn now() -> u64 {
    let value: u64;
    // SAFETY: Linux lets programs read the virtual counter; nothing else is touched.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Returns the ticks of [`now`] per second.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn frequency() -> u64 {
    let value: u64;
    // SAFETY: as in `now`.
    unsafe {
        std::arch::asm!("mrs {}, cntfrq_el0", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    value.max(1)
}

/// Returns the time by the clock of the stamps.
#[cfg(not(target_arch = "aarch64"))]
pub fn now() -> u64 {
    crate::clock::Clock::Monotonic.now()
}

/// Returns the ticks of [`now`] per second.
#[cfg(not(target_arch = "aarch64"))]
pub fn frequency() -> u64 {
    1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::{Progress, Ring, frequency, now};

    #[test]
    fn what_is_overwritten_is_counted_as_lost() {
        let ring = Ring::new("r".into(), 8);
        let mut records = Vec::new();
        for number in 0..5 {
            ring.write(number, number << 32);
        }
        assert_eq!(ring.read(0, &mut records), Progress { next: 5, lost: 0 });
        assert_eq!(records, (0..5).map(|n| (n, n << 32)).collect::<Vec<_>>());
        for number in 5..25 {
            ring.write(number, number << 32);
        }
        records.clear();
        // 17 to 24 are there; the place of 17 is the next to be overwritten.
        assert_eq!(ring.read(5, &mut records), Progress { next: 25, lost: 13 });
        assert_eq!(records, (18..25).map(|n| (n, n << 32)).collect::<Vec<_>>());
        records.clear();
        assert_eq!(ring.read(25, &mut records), Progress { next: 25, lost: 0 });
        assert!(records.is_empty());
    }

    #[test]
    fn a_reader_beside_the_writer_sees_no_torn_record() {
        let ring = Ring::new("r".into(), 64);
        let writes = 200_000;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..writes).for_each(|number| ring.write(number, !number)));
            let (mut next, mut seen, mut lost) = (0, 0, 0);
            while next < writes {
                let mut records = Vec::new();
                let progress = ring.read(next, &mut records);
                for (stamp, word) in &records {
                    assert_eq!(*word, !stamp);
                    assert!((next..progress.next).contains(stamp));
                }
                assert_eq!(records.len() as u64 + progress.lost, progress.next - next);
                (next, seen, lost) = (progress.next, seen + records.len() as u64, lost + progress.lost);
            }
            assert_eq!(seen + lost, writes);
        });
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let ticks = now() - before;
        assert!(ticks >= frequency() / 1000, "{ticks} ticks in 2 ms");
    }
}
