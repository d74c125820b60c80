//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic while a lock is held would be a bug of ours, not a reason to stop serving others: the
/// data are plain counters and queues.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
