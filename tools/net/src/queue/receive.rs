//! [`ReceiveQueue`]: packets to the driver.
//!
//! The port is polled; once it has a packet, packets are received into the driver's buffers until there are
//! no more. So buffers wait, not requests: nothing of the queue is in flight between calls, and a reset has
//! nothing to wait for. A packet is complete with one store of the used index, in however many buffers it is:
//! what a killed daemon had received and not published is lost as on a wire, and its buffers are used again.

use std::io;

use ringvirtio::buffers::Buffers;
use ringvirtio::queue::MAX_BATCH;
use ringvirtio::virtio::feature;
use ringvirtio::{Context, QueueFault, QueueSetup};

use super::net_queue::{Common, NetQueue, Role};
use super::window::Window;
use crate::config::ETHERNET_HEADER;
use crate::device::Net;
use crate::filter::PREFIX;
use crate::offloads;
use crate::port::{HEADER, Port};
use crate::virtio::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
};

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

/// Receives packets.
pub struct Receive {
    /// A packet may be in several buffers.
    mergeable: bool,
    /// The driver understands flags about checksums.
    checksums: bool,
    packet_max: usize,
    /// Most bytes of a packet that is not to be segmented: those of the MTU, if that was negotiated
    /// (5.1.4.1).
    whole_max: usize,
    window: Window,
    readable: Buffers,
    pending: Option<Pending>,
    /// The port has failed, in this version of the view.
    failed: bool,
}

/// The receive queue of a pair.
pub type ReceiveQueue = NetQueue<Receive>;

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

impl Receive {
    /// Adds buffers to the window until it has `room` bytes, or until there are no more.
    fn fill(&mut self, common: &mut Common, room: usize) -> Result<(), QueueFault> {
        while self.window.room() < room && !self.window.is_full() && self.has_place() {
            let (head, popped) = match common.next_restart() {
                Some(head) => (head, true),
                None if common.queue.has_next() => (common.queue.peek()?, false),
                None => break,
            };
            let mut buffers = self.window.list();
            self.readable.clear();
            common.queue.walk(head, &mut self.readable, &mut buffers)?;
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
                common.restarted();
            } else {
                common.queue.accept(head);
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
    fn receive(&mut self, common: &mut Common, port: &dyn Port) -> Result<Stop, QueueFault> {
        common.queue.begin_round();
        for _ in 0..MAX_BATCH {
            let now = common.queue.now();
            if let Some(at) = common.net.receive_throttle().wait(now) {
                return Ok(Stop::Limit(at));
            }
            let room = self.pending.map_or(self.packet_max, |pending| pending.len);
            self.fill(common, room)?;
            if let Some(Pending { len, in_window }) = self.pending {
                if len > self.window.room() {
                    if !self.is_exhausted(common) {
                        return Ok(Stop::Starved);
                    }
                    self.pending = None;
                    common.stats.dropped_too_long.add(1);
                    continue;
                }
                self.window.unspill(in_window, len - in_window);
                self.pending = None;
                self.deliver(common, len, port.has_header());
                continue;
            }
            if self.window.len() == 0 {
                return Ok(Stop::Starved);
            }
            let pair = common.pair;
            // SAFETY: the window's parts are guest memory that it keeps mapped, and its own buffer; each
            // chain has at least the header's bytes.
            let received = self
                .window
                .with_parts(|parts| unsafe { port.receive(pair, parts) });
            match received {
                Ok(len) if len < HEADER + ETHERNET_HEADER => common.stats.dropped_too_short.add(1),
                Ok(len) if len > self.packet_max => common.stats.dropped_too_long.add(1),
                Ok(len) if len <= self.window.room() => self.deliver(common, len, port.has_header()),
                Ok(_) if !self.mergeable => common.stats.dropped_too_long.add(1),
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
    fn is_exhausted(&self, common: &Common) -> bool {
        self.window.is_full() || self.window.len() >= usize::from(common.queue.size())
    }

    /// A packet is in the window: completes its buffers, unless the driver does not want it.
    fn deliver(&mut self, common: &mut Common, len: usize, has_header: bool) {
        let mut prefix = [0; HEADER + PREFIX];
        self.window.peek(&mut prefix);
        let [flags, gso_type, _, _, _, _, _, _, _, _, _, _, ethernet @ ..] = prefix;
        let most = self.whole_max;
        if len > most && (!has_header || gso_type & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_NONE) {
            return common.stats.dropped_too_long.add(1);
        }
        // A packet that came before the driver had set its offloads.
        if has_header && !offloads::covers(common.view.guest_offloads, flags, gso_type) {
            return common.stats.dropped_offload.add(1);
        }
        let filter = &common.view.filter;
        if !filter.passes_all() && !filter.passes(ethernet) {
            return common.stats.dropped_filtered.add(1);
        }
        let count = self.window.count(len);
        if !has_header {
            self.window.patch(0, &[0; NUM_BUFFERS]);
        } else if !self.checksums {
            // 5.1.6.4.1: no flag at all.
            self.window.patch(0, &[0]);
        }
        self.window.patch(NUM_BUFFERS, &count.to_le_bytes());
        let queue = &mut common.queue;
        self.window.consume(len, |head, used| queue.complete(head, used));
        let bytes = (len - HEADER) as u64;
        common.net.receive_throttle().take(common.queue.now(), bytes);
        common.stats.packets.add(1);
        common.stats.bytes.add(bytes);
        common.stats.merged.add(u64::from(count > 1));
    }

    fn fail_port(&mut self, common: &Common, error: &io::Error) {
        self.failed = true;
        let device = &common.net.config().name;
        tracing::warn!(device, pair = common.pair, %error, "a network port failed");
        common.net.fail_port();
    }
}

impl Role for Receive {
    const FOLLOWS_CHANGES: bool = true;
    /// The other parts of a packet may not have been complete.
    const RESTARTS_COMPLETED: bool = true;

    fn new(net: &Net, setup: &QueueSetup) -> Self {
        let has = |number| setup.features & feature(number) != 0;
        let large = offloads::are_large(setup.features & offloads::GUEST);
        let packet_max = net.config().packet_max(large);
        Self {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            checksums: has(VIRTIO_NET_F_GUEST_CSUM),
            packet_max,
            whole_max: if has(VIRTIO_NET_F_MTU) {
                net.config().packet_max(false)
            } else {
                packet_max
            },
            window: Window::new(&setup.ram, packet_max),
            readable: Buffers::new(setup.ram.clone()),
            pending: None,
            failed: false,
        }
    }

    fn changed(&mut self, common: &Common) {
        self.failed = false;
        if !common.view.link_up {
            self.pending = None;
        }
    }

    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<u16, QueueFault> {
        let usable = common.view.link_up && common.pair < common.view.pairs && !self.failed;
        // Buffers wait for packets: only without any does the driver have to notify.
        common.queue.stopped = true;
        let Some(port) = common.view.port.clone().filter(|_| usable) else {
            return Ok(0);
        };
        match self.receive(common, &*port)? {
            // An index that jumped, seen while looking for buffers.
            _ if common.queue.is_broken() => {}
            Stop::Empty | Stop::Round => {
                if let Err(error) = common.poll_in(cx) {
                    self.fail_port(common, &error);
                }
            }
            Stop::Limit(at) => common.queue.wait_until(at),
            Stop::Failed(error) => self.fail_port(common, &error),
            // The rest of the ring is popped in the next round.
            Stop::Starved if common.queue.has_more() => {}
            Stop::Starved => {
                common.queue.stopped = false;
                common.stats.no_buffers.add(1);
                // One that came meanwhile is for the next round, so that a driver cannot keep this one going.
                common.woken = common.queue.enable_notifications();
            }
        }
        Ok(0)
    }
}
