//! [`Control`]: a disk's settings that can change while its queues are active. Lock-free: the queues read
//! them, any thread sets them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ringvirtio::throttle::Throttle;
use serde::{Deserialize, Serialize};

/// What happens to a request whose I/O fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest gets IOERR.
    #[default]
    Report,
    /// The request stays in flight and its queue pops no more, until it is retried. A failed `fdatasync` is
    /// reported all the same: a retry does not bring back the pages that the kernel has dropped.
    Stop,
}

/// A disk's settings.
#[derive(Default)]
pub struct Control {
    write_through: AtomicBool,
    stop_on_error: AtomicBool,
    /// A failed request has stopped a queue.
    stopped: AtomicBool,
    on_stop: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Limits of requests and bytes.
    pub throttle: Throttle,
}

impl Control {
    /// Returns the `writeback` byte of the configuration space (5.2.5): whether completed writes may stay in
    /// a cache until a flush, where the driver can choose (CONFIG_WCE).
    pub fn writeback(&self) -> bool {
        !self.write_through.load(Ordering::Relaxed)
    }

    /// Sets the `writeback` byte. Returns whether it has changed; the caller then schedules the disk's
    /// queues.
    pub fn set_writeback(&self, writeback: bool) -> bool {
        self.write_through.swap(!writeback, Ordering::Relaxed) == writeback
    }

    /// Returns what happens to failed requests.
    pub fn on_error(&self) -> OnError {
        if self.stop_on_error.load(Ordering::Relaxed) {
            OnError::Stop
        } else {
            OnError::Report
        }
    }

    /// Sets what happens to requests that fail from now on. Requests that are already held are retried only
    /// by [`Commands::retry`](ringvirtio::Commands::retry).
    pub fn set_on_error(&self, on_error: OnError) {
        self.stop_on_error
            .store(on_error == OnError::Stop, Ordering::Relaxed);
    }

    /// Sets the callback for a queue that stops because of a failed request. It runs on the reactor's thread.
    /// Only the first call has an effect.
    pub fn on_stop(&self, callback: Box<dyn Fn() + Send + Sync>) {
        let _ = self.on_stop.set(callback);
    }

    /// Returns whether a failed request has ever stopped a queue.
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Records that a failed request has stopped a queue.
    pub(crate) fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(callback) = self.on_stop.get() {
            callback();
        }
    }
}
