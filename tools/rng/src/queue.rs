//! [`RngQueue`]: the queue of an entropy device. Each request completes while it is serviced.

use std::collections::VecDeque;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::{Context, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use crate::rng::Rng;
use crate::stats::RngStats;

/// Maximum bytes of a request. It bounds a round of [`ringvirtio::queue::MAX_BATCH`] requests to 64 KiB, and
/// getrandom(2) fills as many without interruption.
pub const MAX_BYTES: usize = 256;
/// How long to wait, in nanoseconds, when the host has no random bytes.
const RETRY: u64 = 100_000_000;

/// The queue of an entropy device.
pub struct RngQueue {
    queue: VirtQueue,
    rng: Arc<Rng>,
    stats: Arc<RngStats>,
    readable: Buffers,
    writable: Buffers,
    /// Heads that an earlier daemon had popped, to be serviced again.
    restart: VecDeque<u16>,
}

/// The result of servicing a request.
enum Step {
    /// It was completed.
    Done,
    /// It must wait until the queue's deadline.
    Wait,
}

impl RngQueue {
    /// Creates the queue of a device. Requests that the log has in flight are serviced again first.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn new(rng: Arc<Rng>, setup: QueueSetup) -> Result<Self, SetupError> {
        let mut queue = VirtQueue::new(setup)?;
        queue.set_name("rng".into());
        let ram = queue.ram().clone();
        Ok(Self {
            stats: Arc::new(RngStats {
                queue: queue.stats().clone(),
                ..RngStats::default()
            }),
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram),
            restart: queue.take_restart().into(),
            queue,
            rng,
        })
    }

    /// Returns the counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<RngStats> {
        &self.stats
    }

    /// Services again the requests that an earlier daemon had popped. Returns how many completed.
    fn restart_requests(&mut self) -> u16 {
        let mut count = 0;
        while let Some(&head) = self.restart.front() {
            match self.request(head, false) {
                Ok(Step::Done) => {
                    self.restart.pop_front();
                    self.stats.queue.restarted.add(1);
                    count += 1;
                }
                Ok(Step::Wait) => break,
                Err(fault) => {
                    self.queue.fail(fault);
                    break;
                }
            }
        }
        count
    }

    fn pop_round(&mut self) {
        self.queue.begin_round();
        while self.queue.has_next() {
            match self.queue.peek().and_then(|head| self.request(head, true)) {
                Ok(Step::Done) => {}
                Ok(Step::Wait) => break,
                Err(fault) => {
                    self.queue.fail(fault);
                    break;
                }
            }
        }
        self.queue.end_round();
    }

    /// Reads a request's chain once and completes the request with random bytes. `pop`: it is still in the
    /// available ring.
    fn request(&mut self, head: u16, pop: bool) -> Result<Step, QueueFault> {
        let now = self.queue.now();
        if let Some(deadline) = self.rng.throttle().wait(now) {
            self.queue.wait_until(deadline);
            return Ok(Step::Wait);
        }
        self.readable.clear();
        self.writable.clear();
        self.queue.walk(head, &mut self.readable, &mut self.writable)?;
        if self.readable.total() > 0 {
            return Err(QueueFault::Request(head, "bytes to read, for an entropy device"));
        }
        if self.writable.total() == 0 {
            return Err(QueueFault::Request(head, "no room for a byte"));
        }
        let mut bytes = [0; MAX_BYTES];
        let len = usize::try_from(self.writable.total()).map_or(MAX_BYTES, |room| room.min(MAX_BYTES));
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        if self.rng.fill(bytes).is_err() {
            self.stats.starved.add(1);
            self.queue.wait_until(now.saturating_add(RETRY));
            return Ok(Step::Wait);
        }
        if pop {
            self.queue.accept(head);
        }
        self.queue.start();
        self.rng.throttle().take(now, len as u64);
        self.writable.write_front(bytes);
        self.queue.complete(head, len as u32);
        self.stats.requests.add(1);
        self.stats.bytes.add(len as u64);
        Ok(Step::Done)
    }
}

impl QueueHandler for RngQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn service(&mut self, _cx: &mut Context<'_>) {
        self.queue.begin_service();
        if self.queue.is_paused() || self.queue.is_broken() {
            return;
        }
        let restarted = self.restart_requests();
        if self.restart.is_empty() && !self.queue.is_broken() {
            self.pop_round();
        }
        self.queue.end_service(restarted);
    }

    /// No operation is ever submitted.
    fn complete(&mut self, _tag: u64, _result: i32, _cx: &mut Context<'_>) {}
}
