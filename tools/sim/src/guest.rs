//! The guest: `virtio-drivers`' queues under a driver that keeps many requests outstanding and checks every
//! completion. This file has the driver's actions; [`requests`] makes the requests and checks their
//! completions.

mod requests;

use std::collections::BTreeMap;

use ringblk::virtio::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_WRITE_ZEROES};
use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{self, SimHal};
use crate::model::Model;
use crate::transport::SimTransport;
use crate::world::{Party, QUEUE_SIZE, SECTORS, SharedWorld};
use requests::Request;

/// Turns within which every outstanding request must complete once the guest only waits.
const TURN_LIMIT: u32 = 50_000;
/// Offset of `writeback` in the configuration space (virtio 1.2, 5.2.4).
const WRITEBACK: usize = 32;

type Queue = VirtQueue<SimHal, QUEUE_SIZE>;

/// A queue and the driver's outstanding requests.
#[derive(Default)]
struct DriverQueue {
    queue: Option<Queue>,
    outstanding: BTreeMap<u16, Request>,
    /// The driver polls the used ring, without interrupts.
    polls: bool,
}

/// The write cache as the driver has set it.
struct Cache {
    /// The cache is in writeback mode.
    back: bool,
    /// How often the mode was set.
    set: u64,
}

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    queues: Vec<DriverQueue>,
    cache: Cache,
    model: Model,
    /// Completions are checked: no second vCPU writes to guest memory.
    strict: bool,
    /// A flush has failed: none by the same daemon may succeed after it.
    flush_failed: bool,
}

impl Party for Guest {
    fn world(&self) -> &SharedWorld {
        &self.world
    }
}

impl Guest {
    /// Returns a guest whose driver has not been set up.
    pub fn new(world: SharedWorld, model: Model) -> Self {
        let profile = world.borrow().profile;
        Self {
            transport: SimTransport { world: world.clone() },
            world,
            queues: (0..profile.queues).map(|_| DriverQueue::default()).collect(),
            cache: Cache { back: true, set: 0 },
            model,
            strict: profile.second_vcpu == 0,
            flush_failed: false,
        }
    }

    fn event(&self, what: std::fmt::Arguments<'_>) {
        self.world.borrow_mut().trace.event(what);
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
        if self.failed() {
            return;
        }
        if profile.second_vcpu > 0 || profile.corrupt_ring > 0 {
            self.stop_attacks();
        } else if profile.power_cut {
            let mut world = self.world.borrow_mut();
            let world = &mut *world;
            world.trace.event(format_args!("the power is cut"));
            let left = world.disk.cut(&mut world.rng);
            if let Err(why) = self.model.check_durable(&left) {
                world.fail(why);
            }
            return;
        }
        self.finish();
    }

    /// Waits for all requests, then checks the whole image, and the durable content after a last flush.
    fn finish(&mut self) {
        self.drain();
        if self.failed() {
            return;
        }
        self.submit_flush(0);
        self.drain();
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let checked = self.model.check_image(&world.disk.image()).and_then(|()| {
            let left = world.disk.cut(&mut world.rng);
            self.model.check_durable(&left)
        });
        if let Err(why) = checked {
            world.fail(why);
        }
    }

    /// Stops all attacks: after a new daemon and a reset, the device works again.
    fn stop_attacks(&mut self) {
        self.event(format_args!("attacks stop"));
        self.world.borrow_mut().stop_attacks();
        self.reset();
        if !self.strict {
            // The second vCPU may have changed any request.
            self.model.adopt();
            self.strict = true;
        }
        for _ in 0..6 {
            if self.failed() {
                return;
            }
            self.submit_somewhere();
            self.turn();
        }
    }

    /// Performs a random action of a driver.
    fn act(&mut self) {
        let profile = self.profile();
        let number = self.some_queue();
        if self.chance(profile.reset) {
            return self.reset();
        }
        if self.chance(profile.queue_reset) {
            return self.reset_queue(number);
        }
        if self.chance(profile.switch_cache) {
            self.switch_cache();
        }
        if self.chance(profile.spurious) {
            self.event(format_args!("notifies spuriously"));
            let queue = self.below(4) as u16;
            self.transport.notify(queue);
        }
        if self.chance(60) {
            let queue = &mut self.queues[number];
            queue.polls = !queue.polls;
            let enable = !queue.polls;
            if let Some(queue) = &mut queue.queue {
                queue.set_dev_notify(enable);
            }
            // A request that completed before the device saw the change raises no interrupt.
            self.take_used(number);
        }
        if self.queues[number].polls && self.chance(300) || self.chance(profile.spurious) {
            self.take_used(number);
        }
        self.interrupt();
        for _ in 0..self.below(5) {
            self.submit_somewhere();
        }
    }

    fn some_queue(&self) -> usize {
        match self.queues.len() {
            1 => 0,
            queues => self.below(queues as u64) as usize,
        }
    }

    /// Submits a request to a random queue, if it has room.
    fn submit_somewhere(&mut self) {
        let number = self.some_queue();
        self.submit(number);
    }

    /// Handles the interrupt if the line is asserted.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let status = self.transport.ack_interrupt();
            self.event(format_args!("interrupt {:#x}", status.bits()));
            (0..self.queues.len()).for_each(|number| self.take_used(number));
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("DEVICE_NEEDS_RESET is set for a well-behaved driver");
        }
    }

    /// Initializes the device, from reset to DRIVER_OK (virtio 1.2, 3.1.1).
    fn set_up(&mut self) {
        let profile = self.profile();
        let wanted = [
            (profile.flush, bit::BLK_FLUSH),
            (profile.config_wce, bit::BLK_CONFIG_WCE),
            (profile.ranges, 1 << VIRTIO_BLK_F_DISCARD),
            (profile.ranges, 1 << VIRTIO_BLK_F_WRITE_ZEROES),
            (profile.queues > 1, 1 << VIRTIO_BLK_F_MQ),
        ];
        if !self.transport.negotiate(&wanted) {
            return;
        }
        (0..self.queues.len()).for_each(|number| self.make_queue(number));
        self.cache = Cache {
            back: profile.flush,
            set: self.cache.set + 1,
        };
        self.transport.set_driver_ok();
        self.event(format_args!("DRIVER_OK"));
        let capacity = self.transport.read_config_space::<u64>(0);
        if capacity != Ok(SECTORS as u64) {
            self.fail(format!("capacity {capacity:?}"));
        }
        self.check_cache();
    }

    /// Checks that the device shows the write cache as it was set (virtio-checklist 53).
    fn check_cache(&self) {
        let shown = self.transport.read_config_space::<u8>(WRITEBACK);
        let config_wce = self.profile().config_wce;
        if self.strict && config_wce && shown != Ok(u8::from(self.cache.back)) && !self.failed() {
            self.fail(format!("writeback is {shown:?}, expected {}", self.cache.back));
        }
    }

    /// Turns the write cache on or off, if the driver has negotiated that.
    fn switch_cache(&mut self) {
        let profile = self.profile();
        if !profile.config_wce || !profile.flush {
            return;
        }
        self.cache = Cache {
            back: !self.cache.back,
            set: self.cache.set + 1,
        };
        self.event(format_args!("write cache on: {}", self.cache.back));
        let stored = self
            .transport
            .write_config_space(WRITEBACK, u8::from(self.cache.back));
        if let Err(error) = stored {
            self.fail(format!("writeback cannot be stored: {error}"));
        }
        self.check_cache();
    }

    fn make_queue(&mut self, number: usize) {
        let profile = self.profile();
        self.queues[number].polls = false;
        memory::set_owner(number);
        match VirtQueue::new(
            &mut self.transport,
            number as u16,
            profile.indirect,
            profile.event_idx,
        ) {
            Ok(queue) => self.queues[number].queue = Some(queue),
            Err(error) => self.fail(format!("queue {number} cannot be set up: {error}")),
        }
    }

    /// Drops a queue's outstanding requests, which will never complete, and frees their memory.
    fn forget(&mut self, number: usize) {
        let queue = std::mem::take(&mut self.queues[number]);
        for request in queue.outstanding.into_values() {
            request.forget(&mut self.model);
        }
        drop(queue.queue);
        memory::release_queue(number);
    }

    fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.outstanding.len()).sum()
    }

    fn reset(&mut self) {
        self.world.borrow_mut().counts.resets += 1;
        self.event(format_args!("resets with {} outstanding", self.in_flight()));
        self.transport.set_status(DeviceStatus::empty());
        if self.transport.load(reg::STATUS) != 0 && !self.failed() {
            self.fail("Status is not 0 after a reset");
        }
        if self.strict {
            self.check_memory_unchanged(memory::snapshot);
        }
        (0..self.queues.len()).for_each(|number| self.forget(number));
        self.set_up();
    }

    fn reset_queue(&mut self, number: usize) {
        self.world.borrow_mut().counts.queue_resets += 1;
        let by_register = self.chance(500);
        let count = self.queues[number].outstanding.len();
        self.event(format_args!(
            "stops queue {number} with {count} outstanding, by QueueReset: {by_register}"
        ));
        if by_register {
            self.transport.store(reg::QUEUE_SEL, number as u32);
            self.transport.store(reg::QUEUE_RESET, 1);
            if self.chance(200) {
                // An impatient driver resets the device before the queue reset has completed.
                for _ in 0..self.below(12) {
                    self.turn();
                }
                return self.reset();
            }
            if !self.transport.await_queue_reset() {
                return;
            }
        } else {
            self.transport.queue_unset(number as u16);
        }
        if self.transport.load(reg::QUEUE_READY) != 0 && !self.failed() {
            self.fail("a queue is ready after it was stopped");
        }
        if self.strict {
            self.check_memory_unchanged(|| memory::snapshot_of_queue(number));
        }
        self.forget(number);
        // A device that needs a reset accepts no queue before it.
        if self
            .transport
            .get_status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
            && !self.strict
        {
            return self.reset();
        }
        self.make_queue(number);
    }

    /// Takes all used entries of a queue.
    fn take_used(&mut self, number: usize) {
        for _ in 0..2 * QUEUE_SIZE {
            let DriverQueue {
                queue: Some(queue),
                outstanding,
                ..
            } = &mut self.queues[number]
            else {
                return;
            };
            let Some(token) = queue.peek_used() else { return };
            let Some(mut request) = outstanding.remove(&token) else {
                if self.strict {
                    self.fail(format!(
                        "head {token} of queue {number} was used, but is not outstanding"
                    ));
                }
                return;
            };
            match request.pop(queue, token) {
                Ok(len) => self.answered(number, token, request, len),
                Err(error) if self.strict => self.fail(format!("head {token} cannot be taken: {error}")),
                Err(_) => return request.forget(&mut self.model),
            }
        }
    }

    /// Waits until no request is outstanding.
    fn drain(&mut self) {
        let mut left = TURN_LIMIT;
        while self.in_flight() > 0 && !self.failed() {
            self.interrupt();
            for number in 0..self.queues.len() {
                if self.queues[number].polls {
                    self.take_used(number);
                }
            }
            if self.in_flight() == 0 {
                return;
            }
            let heads = |queue: &DriverQueue| -> Vec<u16> { queue.outstanding.keys().copied().collect() };
            self.turn_until_used(|| -> Vec<_> { self.queues.iter().map(heads).collect() });
            left -= 1;
            if left == 0 {
                return self.fail("requests do not complete");
            }
        }
    }
}
