//! [`Control`]: what may be changed of a disk while its queues work. Read by the queues, set by anyone, no locks.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::throttle::Throttle;

/// What becomes of a request whose I/O fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest gets IOERR.
    #[default]
    Report,
    /// The request stays in flight and its queue takes no more, until someone has it tried again. A failed
    /// `fdatasync` is reported all the same: trying again does not bring back what the kernel has dropped.
    Stop,
}

/// The switches of a disk.
#[derive(Debug)]
pub struct Control {
    writeback: AtomicBool,
    stop_on_error: AtomicBool,
    stopped: Stopped,
    /// Limits of requests and bytes.
    pub throttle: Throttle,
}

/// Whether a queue has stopped, and who wants to know.
#[derive(Default)]
struct Stopped {
    happened: AtomicBool,
    tell: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.happened.fmt(f)
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            writeback: AtomicBool::new(true),
            stop_on_error: AtomicBool::new(false),
            stopped: Stopped::default(),
            throttle: Throttle::default(),
        }
    }
}

impl Control {
    /// The configuration's `writeback` byte: whether completed writes may wait for a flush, where the driver may
    /// choose (CONFIG_WCE).
    #[must_use]
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// The driver has written the byte. Returns whether that is a change; the disk's queues must be kicked then.
    pub fn set_writeback(&self, writeback: bool) -> bool {
        self.writeback.swap(writeback, Ordering::Relaxed) != writeback
    }

    /// What becomes of failed requests.
    #[must_use]
    pub fn on_error(&self) -> OnError {
        if self.stop_on_error.load(Ordering::Relaxed) {
            OnError::Stop
        } else {
            OnError::Report
        }
    }

    /// For requests that fail from now on; those already held are tried again by
    /// [`ReactorHandle::retry`](crate::ReactorHandle::retry) only.
    pub fn set_on_error(&self, on_error: OnError) {
        self.stop_on_error
            .store(on_error == OnError::Stop, Ordering::Relaxed);
    }

    /// Whom to tell that a failed request has stopped a queue, on the reactor's thread. Only the first call counts.
    pub fn on_stop(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.stopped.tell.set(tell);
    }

    /// Whether a failed request has ever stopped a queue.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped.happened.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stopped(&self) {
        self.stopped.happened.store(true, Ordering::Relaxed);
        if let Some(tell) = self.stopped.tell.get() {
            tell();
        }
    }
}
