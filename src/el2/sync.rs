//! The locks of EL2: those of `spin`, whose waiting CPU yields.
//!
//! Each is held for a bounded number of instructions and never across an entry into a guest.

use super::arch;

/// How a CPU waits for a lock: YIELD beside the ISB that [`core::hint::spin_loop`] is.
///
/// On silicon YIELD marks a spin-wait loop; an emulator that runs one CPU at a time switches to the next one.
/// Without it QEMU 7.2 under `-icount` runs the waiting CPU up to each timer deadline, and never the one that
/// holds the lock.
#[derive(Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        arch::relax();
    }
}

/// A mutual exclusion lock. CPUs get it in the order in which they began to wait, so a wait is bounded by
/// what the others hold it for.
pub type Mutex<T> = spin::mutex::TicketMutex<T, Yield>;
/// A lock for several readers or one writer.
pub type RwLock<T> = spin::rwlock::RwLock<T, Yield>;
/// Write access to the data of a [`RwLock`].
pub type RwLockWriteGuard<'a, T> = spin::rwlock::RwLockWriteGuard<'a, T, Yield>;
/// A value that is initialised once.
pub type Once<T> = spin::once::Once<T, Yield>;
