//! [`Drain`]: counts queues that are leaving the reactor, and calls back when all have left.

use std::sync::Arc;

use parking_lot::Mutex;
use ringvirtio::Callback;

/// Counts the queues of a device that are leaving the reactor.
#[derive(Clone, Default)]
pub(super) struct Drain(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    leaving: usize,
    waiting: Vec<Callback>,
}

/// One queue that is leaving; dropped when it has left, also by a reactor that ends.
pub(super) struct Leaving(Drain);

impl Drain {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock())
    }

    /// Counts one more queue that is leaving.
    pub fn begin(&self) -> Leaving {
        self.with(|state| state.leaving += 1);
        Leaving(self.clone())
    }

    /// Calls `then` once no queue is leaving: at once if none is.
    pub fn when_empty(&self, then: Callback) {
        let at_once = self.with(|state| {
            if state.leaving == 0 {
                return Some(then);
            }
            state.waiting.push(then);
            None
        });
        if let Some(then) = at_once {
            then();
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let due = self.0.with(|state| {
            state.leaving = state.leaving.saturating_sub(1);
            if state.leaving == 0 {
                std::mem::take(&mut state.waiting)
            } else {
                Vec::new()
            }
        });
        for then in due {
            then();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ringvirtio::Callback;

    use super::Drain;

    #[test]
    fn whoever_waits_is_called_when_the_last_queue_has_left() {
        let drain = Drain::default();
        let called = Arc::new(AtomicUsize::new(0));
        let count = |by: usize| -> Callback {
            let called = called.clone();
            Box::new(move || {
                called.fetch_add(by, Ordering::Relaxed);
            })
        };
        drain.when_empty(count(1));
        assert_eq!(called.load(Ordering::Relaxed), 1);
        let (first, second) = (drain.begin(), drain.begin());
        drain.when_empty(count(10));
        drain.when_empty(count(100));
        drop(first);
        assert_eq!(called.load(Ordering::Relaxed), 1);
        drop(second);
        assert_eq!(called.load(Ordering::Relaxed), 111);
        drain.when_empty(count(1000));
        assert_eq!(called.load(Ordering::Relaxed), 1111);
    }
}
