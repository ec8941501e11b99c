//! Locking mutexes that outlast a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data is valid even if a holder has panicked.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
