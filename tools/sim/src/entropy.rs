//! The guest of an entropy device: `virtio-drivers`' queue under a driver that keeps many requests
//! outstanding and checks every completion: each request completes once, with the bytes of that request
//! alone, and the used length is their number.

use std::collections::BTreeMap;

use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{self, SimHal};
use crate::transport::SimTransport;
use crate::world::{Party, QUEUE_SIZE, SharedWorld};

/// Turns within which every outstanding request must complete once the guest only waits.
const TURN_LIMIT: u32 = 50_000;

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    queue: Option<VirtQueue<SimHal, QUEUE_SIZE>>,
    /// By token, the buffers of a request.
    outstanding: BTreeMap<u16, Vec<Vec<u8>>>,
    /// Whether the driver polls the used ring, without interrupts.
    polls: bool,
    /// Whether completions are checked: no second vCPU writes to guest memory.
    strict: bool,
}

impl Party for Guest {
    fn world(&self) -> &SharedWorld {
        &self.world
    }
}

impl Guest {
    /// Returns a guest whose driver has not been set up.
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

    /// Runs the guest to its end.
    pub fn run(&mut self) {
        self.set_up();
        let profile = self.profile();
        for _ in 0..profile.actions {
            if self.failed() {
                return;
            }
            self.act();
            for _ in 0..self.below(profile.device_turns * 4) {
                self.turn();
            }
        }
        if profile.second_vcpu > 0 || profile.corrupt_ring > 0 {
            self.world.borrow_mut().stop_attacks();
            self.reset();
            self.strict = true;
            self.submit();
        }
        self.drain();
    }

    /// Performs a random action of a driver.
    fn act(&mut self) {
        let profile = self.profile();
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
            // A request that completed before the device saw the change raises no interrupt.
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

    /// Handles the interrupt if the line is asserted.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let _ = self.transport.ack_interrupt();
            self.take_used();
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("DEVICE_NEEDS_RESET is set for a well-behaved driver");
        }
    }

    /// Initializes the device, from reset to DRIVER_OK (virtio 1.2, 3.1.1).
    fn set_up(&mut self) {
        if self.transport.negotiate(&[]) {
            self.make_queue();
            self.transport.set_driver_ok();
        }
    }

    fn make_queue(&mut self) {
        let profile = self.profile();
        self.polls = false;
        memory::set_owner(0);
        match VirtQueue::new(&mut self.transport, 0, profile.indirect, profile.event_idx) {
            Ok(queue) => self.queue = Some(queue),
            Err(error) => self.fail(format!("the queue cannot be set up: {error}")),
        }
    }

    /// Drops the outstanding requests, which will never complete, and frees their memory.
    fn forget(&mut self) {
        self.outstanding.clear();
        self.queue = None;
        memory::release_queue(0);
    }

    fn reset(&mut self) {
        self.world.borrow_mut().counts.resets += 1;
        self.transport.set_status(DeviceStatus::empty());
        if self.strict {
            self.check_memory_unchanged(memory::snapshot);
        }
        self.forget();
        self.set_up();
    }

    fn reset_queue(&mut self) {
        self.world.borrow_mut().counts.queue_resets += 1;
        self.transport.store(reg::QUEUE_SEL, 0);
        self.transport.store(reg::QUEUE_RESET, 1);
        if !self.transport.await_queue_reset() {
            return;
        }
        if self.strict {
            self.check_memory_unchanged(memory::snapshot);
        }
        self.forget();
        let status = self.transport.get_status();
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) && !self.strict {
            return self.reset();
        }
        self.make_queue();
    }

    /// Submits a request of one to three buffers, if the queue has room.
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

    /// Takes all used entries and checks them.
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

    /// Waits until no request is outstanding.
    fn drain(&mut self) {
        for _ in 0..TURN_LIMIT {
            self.interrupt();
            if self.polls {
                self.take_used();
            }
            if self.outstanding.is_empty() || self.failed() {
                return;
            }
            self.turn_until_used(|| -> Vec<u16> { self.outstanding.keys().copied().collect() });
        }
        self.fail("requests do not complete");
    }
}
