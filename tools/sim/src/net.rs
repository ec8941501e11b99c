//! The guest of a network device: `virtio-drivers`' queues under a driver that keeps many packets and buffers
//! outstanding. It checks that packets leave and come in order, whole, and each of them once: a kill may have
//! one packet sent twice, and those lost that were received and not published; a tap may refuse some.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringnet::port::HEADER;
use ringnet::virtio::VIRTIO_NET_F_MRG_RXBUF;
use ringvirtio::virtio::feature;
use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{self, SimHal};
use crate::tap::SimTap;
use crate::transport::SimTransport;
use crate::world::{Party, QUEUE_SIZE, SharedWorld};

/// Turns within which everything must complete once the guest only waits.
const TURN_LIMIT: u32 = 50_000;
/// The receive queue.
const RX: usize = 0;
/// The transmit queue.
const TX: usize = 1;
/// Bytes of the headers of a frame with its number behind them.
const FRAME_MIN: usize = 14 + 4;
/// Room for the largest packet of a device with the least MTU.
const BUFFER: usize = HEADER + 14 + 4 + ringnet::config::MTU_MIN as usize;

type Queue = VirtQueue<SimHal, QUEUE_SIZE>;

/// Returns frame `number`: its length and bytes follow from that.
fn frame(number: u32) -> Vec<u8> {
    let len = FRAME_MIN + (number.wrapping_mul(2_654_435_761) >> 16) as usize % 700;
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u32 ^ number) as u8).collect();
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    bytes[14..FRAME_MIN].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Packets of one direction, by number.
#[derive(Default)]
struct Flow {
    /// Number of the next one that begins its way.
    next: u32,
    /// Of the next one that may end it.
    expected: u32,
    /// What kills have done so far: repeated a packet that leaves, lost some that come.
    by_kills: u64,
    /// Packets of those that the tap has refused.
    refused: u64,
    /// Packets may be missing since the last one: a reset.
    may_miss: bool,
}

impl Flow {
    /// A packet has ended its way. `leaves`: it was sent. `refused`: how many packets the tap has refused.
    /// Returns why it should not have.
    fn ended(&mut self, bytes: &[u8], kills: u64, refused: u64, leaves: bool) -> Option<String> {
        let Some(number) = bytes.get(14..FRAME_MIN) else {
            return Some(format!("a frame of {} bytes", bytes.len()));
        };
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        if number >= self.next || bytes != frame(number) {
            return Some(format!("frame {number} is damaged: {bytes:?}"));
        }
        let killed = self.by_kills < kills;
        let because_of_a_kill = killed
            && if leaves {
                number + 1 == self.expected
            } else {
                number > self.expected
            };
        let missing = u64::from(number.saturating_sub(self.expected));
        let in_order = number == self.expected || number > self.expected && self.may_miss;
        if missing > 0 && !self.may_miss && self.refused + missing <= refused {
            self.refused += missing;
        } else if !in_order {
            if !because_of_a_kill {
                return Some(format!("frame {number}, expected {}", self.expected));
            }
            self.by_kills += 1;
        }
        (self.expected, self.may_miss) = (number + 1, false);
        None
    }

    /// Returns whether all that have begun their way have ended it, or may never.
    fn is_complete(&self, kills: u64) -> bool {
        self.expected == self.next || self.may_miss || self.by_kills < kills
    }
}

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    tap: Arc<SimTap>,
    queues: [Option<Queue>; 2],
    /// By token, packets that are being sent.
    sending: BTreeMap<u16, Vec<u8>>,
    /// By token, buffers that wait for packets.
    waiting: BTreeMap<u16, Vec<u8>>,
    sent: Flow,
    received: Flow,
    mergeable: bool,
    /// Whether packets are checked: no second vCPU writes to guest memory.
    strict: bool,
}

impl Party for Guest {
    fn world(&self) -> &SharedWorld {
        &self.world
    }
}

impl Guest {
    /// Returns a guest whose driver has not been set up.
    #[must_use]
    pub fn new(world: SharedWorld) -> Self {
        let (strict, tap) = {
            let world = world.borrow();
            (world.profile.second_vcpu == 0, world.tap.clone())
        };
        Self {
            transport: SimTransport { world: world.clone() },
            world,
            tap,
            queues: [None, None],
            sending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            sent: Flow::default(),
            received: Flow::default(),
            mergeable: false,
            strict,
        }
    }

    /// Runs the guest to its end.
    pub fn run(&mut self) {
        self.set_up();
        let profile = self.world.borrow().profile;
        for _ in 0..profile.actions {
            if self.failed() {
                return;
            }
            self.act();
            for _ in 0..self.below(profile.device_turns * 4) {
                self.turn();
            }
            self.check_sent();
        }
        if profile.second_vcpu > 0 || profile.corrupt_ring > 0 {
            self.world.borrow_mut().stop_attacks();
            self.reset();
            self.strict = true;
            let _ = self.tap.take_sent();
            self.sent.expected = self.sent.next;
            self.received.may_miss = true;
            self.send();
        }
        self.tap.mend();
        self.drain();
    }

    /// Performs a random action of a driver, or of the network.
    fn act(&mut self) {
        let profile = self.world.borrow().profile;
        if self.chance(profile.reset) {
            return self.reset();
        }
        if self.chance(profile.queue_reset) {
            let queue = self.below(2) as usize;
            return self.reset_queue(queue);
        }
        if self.chance(profile.spurious) {
            let queue = self.below(2) as u16;
            self.transport.notify(queue);
        }
        self.interrupt();
        for _ in 0..self.below(4) {
            self.arrive();
        }
        for _ in 0..self.below(6) {
            self.supply();
        }
        for _ in 0..self.below(5) {
            self.send();
        }
    }

    fn arrive(&mut self) {
        if self.tap.arriving() < 20 {
            self.tap.arrive(&frame(self.received.next));
            self.received.next += 1;
        }
    }

    /// Handles the interrupt if the line is asserted.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let _ = self.transport.ack_interrupt();
            self.take_sending();
            self.take_received();
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("DEVICE_NEEDS_RESET is set for a well-behaved driver");
        }
    }

    /// Initializes the device, from reset to DRIVER_OK (virtio 1.2, 3.1.1).
    fn set_up(&mut self) {
        self.mergeable = self.chance(600);
        let merge = (self.mergeable, feature(VIRTIO_NET_F_MRG_RXBUF));
        if self.transport.negotiate(&[merge]) {
            self.make_queue(RX);
            self.make_queue(TX);
            self.transport.set_driver_ok();
        }
    }

    fn make_queue(&mut self, number: usize) {
        let profile = self.world.borrow().profile;
        memory::set_owner(number);
        let made = VirtQueue::new(
            &mut self.transport,
            number as u16,
            profile.indirect,
            profile.event_idx,
        );
        match made {
            Ok(queue) => self.queues[number] = Some(queue),
            Err(error) => self.fail(format!("queue {number} cannot be set up: {error}")),
        }
    }

    /// Drops what is outstanding at a queue, which will never complete, and frees its memory. Packets may be
    /// lost with it.
    fn forget(&mut self, number: usize) {
        self.check_sent();
        if number == TX {
            self.sending.clear();
            // Those that were on their way have left, or never will.
            (self.sent.expected, self.sent.may_miss) = (self.sent.next, false);
        } else {
            self.waiting.clear();
            self.received.may_miss = true;
        }
        self.queues[number] = None;
        memory::release_queue(number);
    }

    fn reset(&mut self) {
        self.world.borrow_mut().counts.resets += 1;
        self.transport.set_status(DeviceStatus::empty());
        if self.strict {
            self.check_memory_unchanged(memory::snapshot);
        }
        self.forget(RX);
        self.forget(TX);
        self.set_up();
    }

    fn reset_queue(&mut self, number: usize) {
        self.world.borrow_mut().counts.queue_resets += 1;
        self.transport.store(reg::QUEUE_SEL, number as u32);
        self.transport.store(reg::QUEUE_RESET, 1);
        if !self.transport.await_queue_reset() {
            return;
        }
        if self.strict {
            self.check_memory_unchanged(|| memory::snapshot_of_queue(number));
        }
        self.forget(number);
        let status = self.transport.get_status();
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) && !self.strict {
            return self.reset();
        }
        self.make_queue(number);
    }

    /// Sends a packet of one or two buffers, if the queue has room.
    fn send(&mut self) {
        let split = HEADER + self.below(10) as usize;
        let packet = [&[0; HEADER][..], &frame(self.sent.next)].concat();
        memory::set_owner(TX);
        let Some(queue) = self.queues[TX]
            .as_mut()
            .filter(|queue| queue.available_desc() >= 2)
        else {
            return;
        };
        let (front, back) = packet.split_at(split);
        // SAFETY: the HAL copies, so the device never touches these buffers themselves.
        match unsafe { queue.add(&[front, back], &mut []) } {
            Ok(token) => {
                if queue.should_notify() {
                    self.transport.notify(TX as u16);
                }
                self.sent.next += 1;
                let mut kept = (split as u16).to_le_bytes().to_vec();
                kept.extend(packet);
                self.sending.insert(token, kept);
            }
            Err(error) if self.strict => self.fail(format!("a packet cannot be added: {error}")),
            Err(_) => {}
        }
    }

    /// Makes a receive buffer available, if the queue has room.
    fn supply(&mut self) {
        let len = if self.mergeable {
            HEADER + self.below(300) as usize
        } else {
            BUFFER
        };
        let mut buffer = vec![0; len];
        memory::set_owner(RX);
        let Some(queue) = self.queues[RX]
            .as_mut()
            .filter(|queue| queue.available_desc() >= 1)
        else {
            return;
        };
        // SAFETY: as above.
        match unsafe { queue.add(&[], &mut [&mut buffer]) } {
            Ok(token) => {
                if queue.should_notify() {
                    self.transport.notify(RX as u16);
                }
                self.waiting.insert(token, buffer);
            }
            Err(error) if self.strict => self.fail(format!("a buffer cannot be added: {error}")),
            Err(_) => {}
        }
    }

    fn take_sending(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(queue) = &mut self.queues[TX] else { return };
            let Some(token) = queue.peek_used() else { return };
            let Some(kept) = self.sending.remove(&token) else {
                if self.strict {
                    self.fail(format!("head {token} was used, but is no packet on its way"));
                }
                return;
            };
            let split = usize::from(u16::from_le_bytes([kept[0], kept[1]]));
            let (front, back) = kept[2..].split_at(split);
            // SAFETY: the buffers that were added with this token.
            let len = unsafe { queue.pop_used(token, &[front, back], &mut []) };
            self.world.borrow_mut().counts.answered += 1;
            if self.strict && len != Ok(0) {
                return self.fail(format!("a packet was sent with result {len:?}"));
            }
        }
    }

    /// Takes one used receive buffer: what it has of a packet.
    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let queue = self.queues[RX].as_mut()?;
        let token = queue.peek_used()?;
        let Some(mut buffer) = self.waiting.remove(&token) else {
            if self.strict {
                self.fail(format!("head {token} was used, but is no buffer that waits"));
            }
            return None;
        };
        // SAFETY: the buffer that was added with this token.
        let len = unsafe { queue.pop_used(token, &[], &mut [&mut buffer]) };
        match len {
            Ok(len) if len as usize <= buffer.len() => buffer.truncate(len as usize),
            other if self.strict => self.fail(format!("a buffer was used with length {other:?}")),
            _ => return None,
        }
        Some(buffer)
    }

    fn take_received(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(mut packet) = self.take_buffer() else {
                return;
            };
            let count = packet
                .get(10..HEADER)
                .map_or(0, |count| u16::from_le_bytes([count[0], count[1]]));
            if self.strict && (count == 0 || packet[..10] != [0; 10]) {
                return self.fail(format!(
                    "a packet with header {:?}",
                    &packet[..packet.len().min(HEADER)]
                ));
            }
            for part in 1..count.min(2 * QUEUE_SIZE as u16) {
                match self.take_buffer() {
                    Some(buffer) => packet.extend(buffer),
                    None if self.strict => {
                        return self.fail(format!("{part} of {count} buffers of a packet are used"));
                    }
                    None => return,
                }
            }
            self.world.borrow_mut().counts.answered += 1;
            let kills = self.world.borrow().counts.kills;
            if self.strict
                && let Some(why) = self.received.ended(&packet[HEADER..], kills, 0, false)
            {
                return self.fail(format!("received: {why}"));
            }
        }
    }

    /// Checks what has left through the tap.
    fn check_sent(&mut self) {
        let kills = self.world.borrow().counts.kills;
        let refused = self.tap.refused();
        for packet in self.tap.take_sent() {
            if self.strict
                && let Some(why) = self.sent.ended(&packet, kills, refused, true)
            {
                return self.fail(format!("sent: {why}"));
            }
        }
    }

    /// Waits until all packets are sent, and all that have arrived are received.
    fn drain(&mut self) {
        for _ in 0..TURN_LIMIT {
            self.interrupt();
            self.check_sent();
            self.supply();
            if self.failed() {
                return;
            }
            let kills = self.world.borrow().counts.kills;
            let received = self.tap.arriving() == 0 && self.received.is_complete(kills);
            if self.sending.is_empty() && received {
                return;
            }
            let mut world = self.world.borrow_mut();
            if world.is_idle() && !world.el2.line() && !world.make_up_for_lost_event_interrupt() {
                let (heads, arriving) = (self.sending.keys(), self.tap.arriving());
                let why = format!(
                    "all sleep with packets {heads:?} to be sent and {arriving} to be received: a wake-up is lost"
                );
                return world.fail(why);
            }
            world.turn();
        }
        self.fail("packets are not transferred");
    }
}
