//! [`RngQueue`]: the queue of an entropy device. Each request completes while it is serviced. [`Rng`]: the
//! device: the source of its bytes and their rate limit.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::stats::{QueueSnapshot, QueueStats};
use ringvirtio::throttle::Throttle;
use ringvirtio::virtio::{
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, feature,
};
use ringvirtio::{Context, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};
use rustix::rand::{GetRandomFlags, getrandom};

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
        queue.name = "rng".into();
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
        if let Some(deadline) = self.rng.throttle.wait(now) {
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
        self.rng.throttle.take(now, len as u64);
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
        if self.queue.paused || self.queue.is_broken() {
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

/// The device ID (virtio 1.2, 5).
pub const DEVICE_ID: u32 = 4;
/// Largest queue size offered: drivers have few requests outstanding.
pub const QUEUE_SIZE_MAX: u16 = 64;

/// Fills a buffer with random bytes, without waiting.
pub type Source = Box<dyn Fn(&mut [u8]) -> io::Result<()> + Send + Sync>;

/// An entropy device.
pub struct Rng {
    source: Source,
    /// The rate limits.
    pub throttle: Throttle,
}

impl Rng {
    /// Returns a device whose bytes come from getrandom(2), without a limit.
    pub fn new() -> Arc<Self> {
        Self::with_source(Box::new(fill))
    }

    /// Returns a device whose bytes come from `source`.
    pub fn with_source(source: Source) -> Arc<Self> {
        Arc::new(Self {
            source,
            throttle: Throttle::default(),
        })
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// No random bytes are available now.
    pub fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        (self.source)(bytes)
    }
}

/// Fills `bytes` from the kernel's generator. Once that is seeded, up to 256 bytes are returned in one call
/// (getrandom(2)); before, the call fails instead of blocking the reactor.
fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Returns the features that the device offers; it works with any subset of them.
pub fn features() -> u64 {
    [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
    ]
    .iter()
    .fold(0, |all, &number| all | feature(number))
}

ringvirtio::counters! {
    /// Counters of a queue since it was created.
    RngStats =>
    /// A snapshot of [`RngStats`].
    RngSnapshot {
        /// Requests completed.
        requests,
        /// Random bytes written.
        bytes,
        /// Times that the host had no random bytes.
        starved,
        ;
        /// The counters of the virtqueue.
        queue: Arc<QueueStats> => QueueSnapshot,
    }
}

impl RngSnapshot {
    /// Returns all counters by name, those of the virtqueue included.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters().chain(self.queue.counters())
    }
}
