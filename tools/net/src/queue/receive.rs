//! [`ReceiveQueue`]: packets to the driver.
//!
//! The port is polled; once it has a packet, packets are received into the driver's buffers until there are
//! no more. So buffers wait, not requests: nothing of the queue is in flight between calls, and a reset has
//! nothing to wait for. A packet is complete with one store of the used index, in however many buffers it is:
//! what a killed daemon had received and not published is lost as on a wire, and its buffers are used again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::queue::MAX_BATCH;
use ringvirtio::virtio::feature;
use ringvirtio::{Context, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use super::window::Window;
use crate::backend::{NetBackend, PollState};
use crate::config::ETHERNET_HEADER;
use crate::device::{Net, View};
use crate::filter::PREFIX;
use crate::offloads;
use crate::port::{HEADER, Port};
use crate::stats::NetStats;
use crate::virtio::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

/// Offset of `num_buffers` in a packet's header (5.1.6).
const NUM_BUFFERS: usize = 10;

/// A packet that waits for more buffers.
#[derive(Clone, Copy)]
struct Pending {
    /// Its bytes.
    len: usize,
    /// Those of them that are in the window; the others are spilled.
    in_window: usize,
}

/// The receive queue of a pair.
pub struct ReceiveQueue {
    queue: VirtQueue,
    net: Arc<Net>,
    pair: u16,
    view: View,
    version: u64,
    stats: Arc<NetStats>,
    /// A packet may be in several buffers.
    mergeable: bool,
    /// The driver understands flags about checksums.
    checksums: bool,
    packet_max: usize,
    window: Window,
    readable: Buffers,
    pending: Option<Pending>,
    /// Heads that an earlier daemon had popped.
    restart: VecDeque<u16>,
    poll: PollState,
    /// A completion asks for service.
    woken: bool,
    /// The port has failed, in this version of the view.
    failed: bool,
}

/// Why receiving ends for now.
enum Stop {
    /// There is no packet.
    Empty,
    /// There is no buffer.
    Starved,
    /// A limit, until this time.
    Limit(u64),
    /// There may be more.
    Round,
    /// The port has failed.
    Failed(io::Error),
}

impl ReceiveQueue {
    /// Creates the queue. Buffers that the log has in flight are used first.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn new(net: Arc<Net>, pair: u16, setup: QueueSetup) -> Result<Self, SetupError> {
        let has = |number| setup.features & feature(number) != 0;
        let (mergeable, checksums) = (has(VIRTIO_NET_F_MRG_RXBUF), has(VIRTIO_NET_F_GUEST_CSUM));
        let large = offloads::are_large(setup.features & offloads::GUEST);
        let packet_max = net.config().packet_max(large);
        let mut queue = VirtQueue::new(setup)?;
        queue.set_name(net.config().name.clone());
        // What was complete and not published: the other parts of its packet may not have been.
        queue.restart_completed();
        let ram = queue.ram().clone();
        let (version, view) = (net.version(), net.view());
        Ok(Self {
            stats: Arc::new(NetStats {
                queue: queue.stats().clone(),
                ..NetStats::default()
            }),
            window: Window::new(&ram, packet_max),
            readable: Buffers::new(ram),
            restart: queue.take_restart().into(),
            queue,
            net,
            pair,
            view,
            version,
            mergeable,
            checksums,
            packet_max,
            pending: None,
            poll: PollState::default(),
            woken: false,
            failed: false,
        })
    }

    /// Returns the counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<NetStats> {
        &self.stats
    }

    /// Adds buffers to the window until it has `room` bytes, or until there are no more.
    fn fill(&mut self, room: usize) -> Result<(), QueueFault> {
        while self.window.room() < room && !self.window.is_full() && self.has_place() {
            let (head, popped) = match self.restart.pop_front() {
                Some(head) => (head, true),
                None if self.queue.has_next() => (self.queue.peek()?, false),
                None => break,
            };
            let mut buffers = self.window.list();
            self.readable.clear();
            self.queue.walk(head, &mut self.readable, &mut buffers)?;
            if self.readable.total() > 0 {
                return Err(QueueFault::Request(head, "bytes to read, in a receive buffer"));
            }
            if buffers.total() < HEADER as u64 {
                return Err(QueueFault::Request(
                    head,
                    "a receive buffer shorter than 12 bytes",
                ));
            }
            if popped {
                self.stats.queue.restarted.add(1);
            } else {
                self.queue.accept(head);
            }
            self.window.push(head, buffers);
        }
        Ok(())
    }

    /// Without MRG_RXBUF a packet is in one buffer.
    fn has_place(&self) -> bool {
        self.mergeable || self.window.len() == 0
    }

    /// Receives packets until something is missing.
    fn receive(&mut self, port: &dyn Port) -> Result<Stop, QueueFault> {
        self.queue.begin_round();
        for _ in 0..MAX_BATCH {
            let now = self.queue.now();
            if let Some(at) = self.net.receive_throttle().wait(now) {
                return Ok(Stop::Limit(at));
            }
            let room = self.pending.map_or(self.packet_max, |pending| pending.len);
            self.fill(room)?;
            if let Some(Pending { len, in_window }) = self.pending {
                if len > self.window.room() {
                    if !self.is_exhausted() {
                        return Ok(Stop::Starved);
                    }
                    self.pending = None;
                    self.stats.dropped_too_long.add(1);
                    continue;
                }
                self.window.unspill(in_window, len - in_window);
                self.pending = None;
                self.deliver(len, port.has_header());
                continue;
            }
            if self.window.len() == 0 {
                return Ok(Stop::Starved);
            }
            let pair = self.pair;
            // SAFETY: the window's parts are guest memory that it keeps mapped, and its own buffer; each
            // chain has at least the header's bytes.
            let received = self
                .window
                .with_parts(|parts| unsafe { port.receive(pair, parts) });
            match received {
                Ok(len) if len < HEADER + ETHERNET_HEADER => self.stats.dropped_too_short.add(1),
                Ok(len) if len > self.packet_max => self.stats.dropped_too_long.add(1),
                Ok(len) if len <= self.window.room() => self.deliver(len, port.has_header()),
                Ok(_) if !self.mergeable => self.stats.dropped_too_long.add(1),
                Ok(len) => {
                    let in_window = self.window.room();
                    self.pending = Some(Pending { len, in_window });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Stop::Empty),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Stop::Failed(error)),
            }
        }
        Ok(Stop::Round)
    }

    /// Returns whether the window cannot grow: it has all buffers that a queue can have.
    fn is_exhausted(&self) -> bool {
        self.window.is_full() || self.window.len() >= usize::from(self.queue.size())
    }

    /// A packet is in the window: completes its buffers, unless the driver does not want it.
    fn deliver(&mut self, len: usize, has_header: bool) {
        let mut prefix = [0; HEADER + PREFIX];
        self.window.peek(&mut prefix);
        let [flags, gso_type, _, _, _, _, _, _, _, _, _, _, ethernet @ ..] = prefix;
        // A packet that came before the driver had set its offloads.
        if has_header && !offloads::covers(self.view.guest_offloads, flags, gso_type) {
            return self.stats.dropped_offload.add(1);
        }
        let filter = &self.view.filter;
        if !filter.passes_all() && !filter.passes(ethernet) {
            return self.stats.dropped_filtered.add(1);
        }
        let count = self.window.count(len);
        if !has_header {
            self.window.patch(0, &[0; NUM_BUFFERS]);
        } else if !self.checksums {
            // 5.1.6.4.1: no flag at all.
            self.window.patch(0, &[0]);
        }
        self.window.patch(NUM_BUFFERS, &count.to_le_bytes());
        let queue = &mut self.queue;
        self.window.consume(len, |head, used| queue.complete(head, used));
        let bytes = (len - HEADER) as u64;
        self.net.receive_throttle().take(self.queue.now(), bytes);
        self.stats.packets.add(1);
        self.stats.bytes.add(bytes);
        self.stats.merged.add(u64::from(count > 1));
    }

    /// Goes by the device as it is now.
    fn refresh(&mut self, cx: &mut Context<'_>) {
        let version = self.net.version();
        if version == self.version {
            return;
        }
        self.version = version;
        self.view = self.net.view();
        self.failed = false;
        if !self.view.link_up {
            self.pending = None;
        }
        // It may be of another descriptor.
        self.cancel(cx);
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        if let Some(tag) = self.poll.take()
            && let Some((backend, waiter)) = cx.backend::<NetBackend>()
        {
            backend.cancel(waiter, tag);
        }
    }

    /// Waits for a packet.
    fn poll(&mut self, port: &dyn Port, cx: &mut Context<'_>) {
        let (Some(fd), Some((backend, waiter))) = (port.fd(self.pair), cx.backend::<NetBackend>()) else {
            return;
        };
        let tag = self.poll.begin(self.queue.tag_base());
        if let Err(error) = backend.poll_in(waiter, fd, tag) {
            self.poll.take();
            self.fail_port(&error);
        }
    }

    fn fail_port(&mut self, error: &io::Error) {
        self.failed = true;
        tracing::warn!(device = self.net.config().name, pair = self.pair, %error, "a network port failed");
        self.net.fail_port();
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        self.refresh(cx);
        let usable = self.view.link_up && self.pair < self.view.pairs && !self.failed;
        // Buffers wait for packets: only without any does the driver have to notify.
        self.queue.set_stopped(true);
        let Some(port) = self.view.port.clone().filter(|_| usable) else {
            return;
        };
        match self.receive(&*port) {
            Err(fault) => self.queue.fail(fault),
            // An index that jumped, seen while looking for buffers.
            Ok(_) if self.queue.is_broken() => {}
            Ok(Stop::Empty | Stop::Round) => self.poll(&*port, cx),
            Ok(Stop::Limit(at)) => self.queue.wait_until(at),
            Ok(Stop::Failed(error)) => self.fail_port(&error),
            // The rest of the ring is popped in the next round.
            Ok(Stop::Starved) if self.queue.has_more() => {}
            Ok(Stop::Starved) => {
                self.queue.set_stopped(false);
                self.stats.no_buffers.add(1);
                // One that came meanwhile is for the next round, so that a driver cannot keep this one going.
                self.woken = self.queue.enable_notifications();
            }
        }
    }
}

impl QueueHandler for ReceiveQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some((backend, _)) = cx.make_backend::<NetBackend>() {
            backend.attach(&self.net, self.queue.tag_base());
        }
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        self.cancel(cx);
        if let Some((backend, _)) = cx.backend::<NetBackend>() {
            backend.detach(self.queue.tag_base());
        }
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        self.woken = false;
        self.queue.begin_service();
        if self.queue.is_paused() || self.queue.is_broken() {
            return;
        }
        if self.poll.is_armed() && self.version == self.net.version() {
            // It waits for a packet, whatever the driver notifies of.
            return;
        }
        self.run(cx);
        self.queue.end_service(0);
    }

    fn complete(&mut self, tag: u64, _result: i32, _cx: &mut Context<'_>) {
        self.woken |= self.poll.complete(tag);
    }

    fn wants_service(&self) -> bool {
        self.woken
    }
}
