//! The locks of EL2: those of `spin`, with a wait that lets others go first.
//!
//! All are held for a bounded number of instructions and never across an entry into a guest.

use super::arch;

/// How a CPU waits for a lock.
///
/// YIELD beside the ISB that [`core::hint::spin_loop`] is. On silicon it says that this is a spin-wait loop; an emulator
/// that runs one CPU at a time goes on with the next one. Without it QEMU 7.2 under `-icount` runs the CPU that waits up to
/// each deadline of a timer, and the one that holds the lock never.
#[derive(Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        arch::relax();
    }
}

/// A lock.
pub type Mutex<T> = spin::mutex::Mutex<T, Yield>;
/// A lock for many readers or one writer.
pub type RwLock<T> = spin::rwlock::RwLock<T, Yield>;
/// Write access to what a [`RwLock`] holds.
pub type RwLockWriteGuard<'a, T> = spin::rwlock::RwLockWriteGuard<'a, T, Yield>;
/// What is initialised once.
pub type Once<T> = spin::once::Once<T, Yield>;
