//! [`TransmitQueue`]: packets from the driver.
//!
//! A packet is sent while it is in the available ring, popped once the port has it, and completed at once: a
//! daemon that is killed has sent at most one packet that is not in the log as done, which the next one sends
//! again before all others. So a queue begins where it ended, in order.

use std::io;

use ringvirtio::buffers::Buffers;
use ringvirtio::{Context, QueueFault, QueueSetup};

use super::net_queue::{Common, NetQueue, Role};
use crate::config::{ETHERNET_HEADER, TRANSMIT_MAX};
use crate::device::Net;
use crate::port::{HEADER, PARTS_MAX};

/// How long to wait, in nanoseconds, for room in a port that cannot be polled for it.
const RETRY: u64 = 1_000_000;

/// Sends packets.
pub struct Transmit {
    readable: Buffers,
    writable: Buffers,
}

/// The transmit queue of a pair.
pub type TransmitQueue = NetQueue<Transmit>;

/// What became of a packet.
enum Step {
    /// It was completed.
    Done,
    /// A limit keeps it until then.
    Limit(u64),
    /// The port has no room.
    NoRoom,
}

impl Transmit {
    /// Sends the packet at a head, or drops it. `pop`: it is still in the available ring.
    fn packet(&mut self, common: &mut Common, head: u16, pop: bool) -> Result<Step, QueueFault> {
        let now = common.queue.now();
        if let Some(at) = common.net.transmit_throttle().wait(now) {
            return Ok(Step::Limit(at));
        }
        self.readable.clear();
        self.writable.clear();
        common.queue.walk(head, &mut self.readable, &mut self.writable)?;
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
        match self.send(common, bytes) {
            Ok(()) => {
                common.stats.packets.add(1);
                common.stats.bytes.add(bytes);
            }
            Err(Unsent::NoRoom) => return Ok(Step::NoRoom),
            Err(Unsent::TooShort) => common.stats.dropped_too_short.add(1),
            Err(Unsent::TooLong) => common.stats.dropped_too_long.add(1),
            Err(Unsent::LinkDown) => common.stats.dropped_link_down.add(1),
            Err(Unsent::UnusedPair) => common.stats.dropped_unused_pair.add(1),
            Err(Unsent::Refused) => common.stats.dropped_refused.add(1),
        }
        if pop {
            common.queue.accept(head);
        }
        common.queue.start();
        common.net.transmit_throttle().take(now, bytes);
        common.queue.complete(head, 0);
        Ok(Step::Done)
    }

    fn send(&self, common: &Common, bytes: u64) -> Result<(), Unsent> {
        let Some(port) = common.view.port.as_ref().filter(|_| common.view.link_up) else {
            return Err(Unsent::LinkDown);
        };
        if common.pair >= common.view.pairs {
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
        let result = unsafe { port.send(common.pair, packet) };
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Unsent::NoRoom,
            _ => Unsent::Refused,
        })
    }

    /// Sends what an earlier daemon had popped. Returns how many packets, and why it ended.
    fn restart_packets(&mut self, common: &mut Common) -> Result<(u16, Step), QueueFault> {
        let mut count = 0;
        while let Some(head) = common.next_restart() {
            match self.packet(common, head, false)? {
                Step::Done => {}
                other => return Ok((count, other)),
            }
            common.restarted();
            count += 1;
        }
        Ok((count, Step::Done))
    }

    fn pop_round(&mut self, common: &mut Common) -> Result<Step, QueueFault> {
        common.queue.begin_round();
        while common.queue.has_next() {
            let head = common.queue.peek()?;
            match self.packet(common, head, true)? {
                Step::Done => {}
                other => return Ok(other),
            }
        }
        common.queue.end_round();
        Ok(Step::Done)
    }
}

/// The port has no room: waits until it has.
fn wait(common: &mut Common, cx: &mut Context<'_>) {
    common.stats.no_room.add(1);
    if common.poll_out(cx) {
        common.queue.stopped = true;
    } else {
        let retry = common.queue.now().saturating_add(RETRY);
        common.queue.wait_until(retry);
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

impl Role for Transmit {
    fn new(_net: &Net, setup: &QueueSetup) -> Self {
        Self {
            readable: Buffers::new(setup.ram.clone()),
            writable: Buffers::new(setup.ram.clone()),
        }
    }

    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<u16, QueueFault> {
        common.queue.stopped = false;
        let (restarted, mut ended) = self.restart_packets(common)?;
        if matches!(ended, Step::Done) {
            ended = self.pop_round(common)?;
        }
        match ended {
            Step::Done => {}
            Step::Limit(at) => common.queue.wait_until(at),
            Step::NoRoom => wait(common, cx),
        }
        Ok(restarted)
    }
}
