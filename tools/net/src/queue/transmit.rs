//! [`TransmitQueue`]: packets from the driver.
//!
//! A packet is sent while it is in the available ring, popped once the port has it, and completed at once: a
//! daemon that is killed has sent at most one packet that is not in the log as done, which the next one sends
//! again before all others. So a queue begins where it ended, in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::{Context, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use crate::backend::{NetBackend, PollState};
use crate::config::{ETHERNET_HEADER, TRANSMIT_MAX};
use crate::device::{Net, View};
use crate::port::{HEADER, PARTS_MAX};
use crate::stats::NetStats;

/// How long to wait, in nanoseconds, for room in a port that cannot be polled for it.
const RETRY: u64 = 1_000_000;

/// The transmit queue of a pair.
pub struct TransmitQueue {
    queue: VirtQueue,
    net: Arc<Net>,
    pair: u16,
    view: View,
    version: u64,
    stats: Arc<NetStats>,
    readable: Buffers,
    writable: Buffers,
    /// Heads that an earlier daemon had popped.
    restart: VecDeque<u16>,
    poll: PollState,
    /// A completion asks for service.
    woken: bool,
}

/// What became of a packet.
enum Step {
    /// It was completed.
    Done,
    /// A limit keeps it until then.
    Limit(u64),
    /// The port has no room.
    NoRoom,
}

impl TransmitQueue {
    /// Creates the queue. Packets that the log has in flight are sent first.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn new(net: Arc<Net>, pair: u16, setup: QueueSetup) -> Result<Self, SetupError> {
        let mut queue = VirtQueue::new(setup)?;
        queue.set_name(net.config().name.clone());
        let ram = queue.ram().clone();
        let (version, view) = (net.version(), net.view());
        Ok(Self {
            stats: Arc::new(NetStats {
                queue: queue.stats().clone(),
                ..NetStats::default()
            }),
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram),
            restart: queue.take_restart().into(),
            queue,
            net,
            pair,
            view,
            version,
            poll: PollState::default(),
            woken: false,
        })
    }

    /// Returns the counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<NetStats> {
        &self.stats
    }

    /// Sends the packet at a head, or drops it. `pop`: it is still in the available ring.
    fn packet(&mut self, head: u16, pop: bool) -> Result<Step, QueueFault> {
        let now = self.queue.now();
        if let Some(at) = self.net.transmit_throttle().wait(now) {
            return Ok(Step::Limit(at));
        }
        self.readable.clear();
        self.writable.clear();
        self.queue.walk(head, &mut self.readable, &mut self.writable)?;
        if self.writable.total() > 0 {
            return Err(QueueFault::Request(
                head,
                "bytes to write, in a packet to be sent",
            ));
        }
        let Some(bytes) = self.readable.total().checked_sub(HEADER as u64) else {
            return Err(QueueFault::Request(
                head,
                "a packet without the header of 12 bytes",
            ));
        };
        match self.send(bytes) {
            Ok(()) => {
                self.stats.packets.add(1);
                self.stats.bytes.add(bytes);
            }
            Err(Unsent::NoRoom) => return Ok(Step::NoRoom),
            Err(Unsent::TooShort) => self.stats.dropped_too_short.add(1),
            Err(Unsent::TooLong) => self.stats.dropped_too_long.add(1),
            Err(Unsent::LinkDown) => self.stats.dropped_link_down.add(1),
            Err(Unsent::UnusedPair) => self.stats.dropped_unused_pair.add(1),
            Err(Unsent::Refused) => self.stats.dropped_refused.add(1),
        }
        if pop {
            self.queue.accept(head);
        }
        self.queue.start();
        self.net.transmit_throttle().take(now, bytes);
        self.queue.complete(head, 0);
        Ok(Step::Done)
    }

    fn send(&self, bytes: u64) -> Result<(), Unsent> {
        let Some(port) = self.view.port.as_ref().filter(|_| self.view.link_up) else {
            return Err(Unsent::LinkDown);
        };
        if self.pair >= self.view.pairs {
            return Err(Unsent::UnusedPair);
        }
        if bytes < ETHERNET_HEADER as u64 {
            return Err(Unsent::TooShort);
        }
        let packet = self.readable.remaining();
        if bytes > (TRANSMIT_MAX - HEADER) as u64 || packet.len() > PARTS_MAX {
            return Err(Unsent::TooLong);
        }
        // SAFETY: the parts are guest memory that the list keeps mapped, at least as long as the header.
        let result = unsafe { port.send(self.pair, packet) };
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Unsent::NoRoom,
            _ => Unsent::Refused,
        })
    }

    /// Sends what an earlier daemon had popped. Returns how many packets, and why it ended.
    fn restart_packets(&mut self) -> (u16, Result<Step, QueueFault>) {
        let mut count = 0;
        while let Some(&head) = self.restart.front() {
            match self.packet(head, false) {
                Ok(Step::Done) => {
                    self.restart.pop_front();
                    self.stats.queue.restarted.add(1);
                    count += 1;
                }
                other => return (count, other),
            }
        }
        (count, Ok(Step::Done))
    }

    fn pop_round(&mut self) -> Result<Step, QueueFault> {
        self.queue.begin_round();
        while self.queue.has_next() {
            let head = self.queue.peek()?;
            match self.packet(head, true)? {
                Step::Done => {}
                other => return Ok(other),
            }
        }
        self.queue.end_round();
        Ok(Step::Done)
    }

    /// The port has no room: waits until it has.
    fn wait(&mut self, cx: &mut Context<'_>) {
        self.stats.no_room.add(1);
        let fd = self.view.port.as_ref().and_then(|port| port.fd(self.pair));
        let tag = self.poll.begin(self.queue.tag_base());
        if let Some(fd) = fd
            && let Some((backend, waiter)) = cx.backend::<NetBackend>()
            && backend.poll_out(waiter, fd, tag)
        {
            self.queue.set_stopped(true);
            return;
        }
        self.poll.take();
        self.queue.wait_until(self.queue.now().saturating_add(RETRY));
    }

    fn refresh(&mut self, cx: &mut Context<'_>) {
        let version = self.net.version();
        if version == self.version {
            return;
        }
        self.version = version;
        self.view = self.net.view();
        self.cancel(cx);
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        if let Some(tag) = self.poll.take()
            && let Some((backend, waiter)) = cx.backend::<NetBackend>()
        {
            backend.cancel(waiter, tag);
        }
    }
}

/// Why a packet is not sent.
enum Unsent {
    /// The port has no room now: it is sent later.
    NoRoom,
    TooShort,
    TooLong,
    LinkDown,
    UnusedPair,
    Refused,
}

impl QueueHandler for TransmitQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        cx.make_backend::<NetBackend>();
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        self.cancel(cx);
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        self.woken = false;
        self.queue.begin_service();
        if self.queue.is_paused() || self.queue.is_broken() {
            return;
        }
        self.refresh(cx);
        if self.poll.is_armed() {
            return;
        }
        self.queue.set_stopped(false);
        let (restarted, mut ended) = self.restart_packets();
        if matches!(ended, Ok(Step::Done)) {
            ended = self.pop_round();
        }
        match ended {
            Ok(Step::Done) => {}
            Ok(Step::Limit(at)) => self.queue.wait_until(at),
            Ok(Step::NoRoom) => self.wait(cx),
            Err(fault) => self.queue.fail(fault),
        }
        self.queue.end_service(restarted);
    }

    fn complete(&mut self, tag: u64, _result: i32, _cx: &mut Context<'_>) {
        self.woken |= self.poll.complete(tag);
    }

    fn wants_service(&self) -> bool {
        self.woken
    }
}
