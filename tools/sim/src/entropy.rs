//! The guest of an entropy device: `virtio-drivers`' queue under a driver that keeps many requests in flight
//! and checks every answer: each comes once, with bytes of one request alone, as many as the used ring says.

use std::collections::BTreeMap;

use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{self, SimHal};
use crate::transport::SimTransport;
use crate::world::{QUEUE_SIZE, SharedWorld};

/// Turns within which all that is outstanding must complete once the guest only waits.
const TURNS: u32 = 50_000;

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    queue: Option<VirtQueue<SimHal, QUEUE_SIZE>>,
    /// By token, the buffers of a request.
    outstanding: BTreeMap<u16, Vec<Vec<u8>>>,
    /// Whether the driver takes used buffers without an interrupt.
    polls: bool,
    /// Whether answers are checked: nothing else writes to the guest's memory.
    strict: bool,
}

impl Guest {
    /// Returns a guest whose driver has not begun.
    #[must_use]
    pub fn new(world: SharedWorld) -> Self {
        let strict = world.borrow().profile.second_vcpu == 0;
        Self {
            transport: SimTransport { world: world.clone() },
            world,
            queue: None,
            outstanding: BTreeMap::new(),
            polls: false,
            strict,
        }
    }

    fn chance(&self, per_mille: u64) -> bool {
        self.world.borrow_mut().rng.chance(per_mille)
    }

    fn below(&self, bound: u64) -> u64 {
        self.world.borrow_mut().rng.below(bound)
    }

    fn failed(&self) -> bool {
        self.world.borrow().failure.is_some()
    }

    fn fail(&self, why: impl Into<String>) {
        self.world.borrow_mut().fail(why);
    }

    /// The whole run.
    pub fn run(&mut self) {
        self.set_up();
        let profile = self.world.borrow().profile.clone();
        for _ in 0..profile.actions {
            if self.failed() {
                return;
            }
            self.act();
            for _ in 0..self.below(profile.patience * 4) {
                self.world.borrow_mut().turn();
            }
        }
        if profile.second_vcpu > 0 || profile.scribble > 0 {
            self.world.borrow_mut().make_peace();
            self.reset();
            self.strict = true;
            self.submit();
        }
        self.drain();
    }

    /// One of the things that a driver does.
    fn act(&mut self) {
        let profile = self.world.borrow().profile.clone();
        if self.chance(profile.reset) {
            return self.reset();
        }
        if self.chance(profile.queue_reset) {
            return self.reset_queue();
        }
        if self.chance(profile.spurious) {
            self.transport.notify(0);
        }
        if self.chance(60) {
            self.polls = !self.polls;
            if let Some(queue) = &mut self.queue {
                queue.set_dev_notify(!self.polls);
            }
            // What came before the change was seen raises no interrupt.
            self.take_used();
        }
        if self.polls && self.chance(300) {
            self.take_used();
        }
        self.interrupt();
        for _ in 0..self.below(5) {
            self.submit();
        }
    }

    /// As a driver does when its line is asserted, and never else.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let _ = self.transport.ack_interrupt();
            self.take_used();
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("a well-behaved driver is told that the device needs a reset");
        }
    }

    /// From reset to DRIVER_OK.
    fn set_up(&mut self) {
        self.transport.set_status(DeviceStatus::empty());
        let profile = self.world.borrow().profile.clone();
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.transport.set_status(status);
        let offered = self.transport.read_device_features();
        let mut wanted = bit::VERSION_1 | bit::RING_RESET;
        for (want, feature) in [
            (profile.event_idx, bit::EVENT_IDX),
            (profile.indirect, bit::INDIRECT_DESC),
        ] {
            if want {
                wanted |= feature;
            }
        }
        if wanted & !offered != 0 && !self.failed() {
            return self.fail(format!("{wanted:#x} is not offered: {offered:#x}"));
        }
        self.transport.write_driver_features(wanted);
        status |= DeviceStatus::FEATURES_OK;
        self.transport.set_status(status);
        self.make_queue();
        self.transport.set_status(status | DeviceStatus::DRIVER_OK);
    }

    fn make_queue(&mut self) {
        let profile = self.world.borrow().profile.clone();
        self.polls = false;
        memory::set_owner(0);
        match VirtQueue::new(&mut self.transport, 0, profile.indirect, profile.event_idx) {
            Ok(queue) => self.queue = Some(queue),
            Err(error) => self.fail(format!("the queue cannot be set up: {error}")),
        }
    }

    /// What was outstanding will never complete; its memory is the driver's again.
    fn forget(&mut self) {
        self.outstanding.clear();
        self.queue = None;
        memory::release_queue(0);
    }

    fn reset(&mut self) {
        self.world.borrow_mut().counts.resets += 1;
        self.transport.set_status(DeviceStatus::empty());
        self.check_silence();
        self.forget();
        self.set_up();
    }

    fn reset_queue(&mut self) {
        self.world.borrow_mut().counts.queue_resets += 1;
        self.transport.store(reg::QUEUE_SEL, 0);
        self.transport.store(reg::QUEUE_RESET, 1);
        for left in (0..TURNS).rev() {
            if self.transport.load(reg::QUEUE_RESET) == 0 || self.failed() {
                break;
            }
            self.world.borrow_mut().wait(left + 1);
            if left == 0 {
                return self.fail("a queue reset hangs");
            }
        }
        self.check_silence();
        self.forget();
        let status = self.transport.get_status();
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) && !self.strict {
            return self.reset();
        }
        self.make_queue();
    }

    /// Not one byte of the guest's memory changes now, whatever the others do.
    fn check_silence(&mut self) {
        if !self.strict {
            return;
        }
        let before = memory::snapshot();
        for _ in 0..self.below(30) {
            self.world.borrow_mut().turn();
        }
        if memory::snapshot() != before {
            self.fail("the guest's memory changed after a reset had completed");
        }
    }

    /// Offers a request of one to three buffers, if the queue has room.
    fn submit(&mut self) {
        let count = 1 + self.below(3) as usize;
        let mut buffers: Vec<Vec<u8>> = (0..count)
            .map(|_| vec![0; 1 + self.below(200) as usize])
            .collect();
        let Some(queue) = self
            .queue
            .as_mut()
            .filter(|queue| queue.available_desc() >= count)
        else {
            return;
        };
        let mut outputs: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        // SAFETY: the HAL copies, so the device never touches these buffers themselves.
        match unsafe { queue.add(&[], &mut outputs) } {
            Ok(token) => {
                if queue.should_notify() {
                    self.transport.notify(0);
                }
                self.outstanding.insert(token, buffers);
            }
            Err(error) if self.strict => self.fail(format!("a request cannot be added: {error}")),
            Err(_) => {}
        }
    }

    /// Takes all that is used, and checks it.
    fn take_used(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(queue) = &mut self.queue else { return };
            let Some(token) = queue.peek_used() else { return };
            let Some(mut buffers) = self.outstanding.remove(&token) else {
                if self.strict {
                    self.fail(format!("head {token} was used, but is not outstanding"));
                }
                return;
            };
            let mut outputs: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            // SAFETY: the buffers that were added with this token.
            let len = unsafe { queue.pop_used(token, &[], &mut outputs) };
            self.world.borrow_mut().counts.answered += 1;
            match len {
                Ok(len) => self.check(&buffers.concat(), len as usize),
                Err(error) if self.strict => return self.fail(format!("a request cannot be taken: {error}")),
                Err(_) => return,
            }
        }
    }

    fn check(&self, bytes: &[u8], len: usize) {
        let expected = bytes.len().min(ringrng::MAX_BYTES);
        let (filled, rest) = bytes.split_at(expected);
        let is_random = |byte: &u8| (1..=100).contains(byte);
        let of_one = filled
            .iter()
            .all(|byte| is_random(byte) && Some(byte) == filled.first());
        if self.strict && (len != expected || !of_one || rest.iter().any(is_random)) {
            self.fail(format!(
                "{len} bytes, expected {expected} of one request: {bytes:?}"
            ));
        }
    }

    /// Waits until nothing is outstanding, as a guest that has nothing else to do.
    fn drain(&mut self) {
        for _ in 0..TURNS {
            self.interrupt();
            if self.polls {
                self.take_used();
            }
            if self.outstanding.is_empty() || self.failed() {
                return;
            }
            let mut world = self.world.borrow_mut();
            if world.is_idle() && !world.el2.line() && !world.make_up_for_lost_bell() {
                let heads: Vec<&u16> = self.outstanding.keys().collect();
                let why = format!("all sleep and requests {heads:?} wait: a wake-up is lost");
                return world.fail(why);
            }
            world.turn();
        }
        self.fail("requests do not complete");
    }
}
