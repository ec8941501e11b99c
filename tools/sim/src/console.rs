//! The guest of a console with one port: `virtio-drivers`' queues under a driver that keeps several chains of
//! output and buffers for input outstanding. It checks that the bytes that it prints are kept in order and
//! once, and that it reads what is typed in order and once, however often the daemon is killed. A reset may
//! leave out the end of what was outstanding.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringconsole::{Console, PortMemory, Word};
use ringvisor::virtio::registers as reg;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{self, SimHal};
use crate::transport::SimTransport;
use crate::world::{Party, QUEUE_SIZE, SharedWorld};

/// Turns within which everything must complete once the guest only waits.
const TURN_LIMIT: u32 = 50_000;
/// The queue of input.
const RX: usize = 0;
/// The queue of output.
const TX: usize = 1;

type Queue = VirtQueue<SimHal, QUEUE_SIZE>;

/// Returns the byte at a position of either stream.
const fn byte(position: u64) -> u8 {
    (position ^ position >> 8) as u8
}

/// See the module.
pub struct Guest {
    world: SharedWorld,
    transport: SimTransport,
    /// Reads and writes what outlives daemons, as terminals do.
    terminal: Arc<Console>,
    queues: [Option<Queue>; 2],
    /// By token, chains of output.
    printing: BTreeMap<u16, Vec<Vec<u8>>>,
    /// By token, buffers for input.
    reading: BTreeMap<u16, Vec<u8>>,
    /// Bytes given to the device, complete, and kept.
    printed: u64,
    completed: u64,
    kept: u64,
    /// Bytes typed and read.
    typed: u64,
    read: u64,
    /// Where the next input begins, if not at `read`: what a reset left is known but for a completion that a
    /// killed daemon may have logged.
    resumed: Vec<u64>,
    /// Whether streams are checked: no second vCPU writes to guest memory.
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
        let (strict, kept) = {
            let world = world.borrow();
            (world.profile.second_vcpu == 0, world.kept.clone())
        };
        let memory = PortMemory::in_mapping(&kept, 0).expect("memory for a port");
        Self {
            transport: SimTransport { world: world.clone() },
            world,
            terminal: Console::new("terminal".into(), vec![Arc::new(memory)]),
            queues: [None, None],
            printing: BTreeMap::new(),
            reading: BTreeMap::new(),
            printed: 0,
            completed: 0,
            kept: 0,
            typed: 0,
            read: 0,
            resumed: Vec::new(),
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
            self.check_kept();
        }
        if profile.second_vcpu > 0 || profile.corrupt_ring > 0 {
            self.world.borrow_mut().stop_attacks();
            self.reset();
            self.strict = true;
            // What an attacker had printed is anything.
            self.skip_kept();
            self.print();
        }
        self.drain();
    }

    /// Performs a random action of a driver, or of a terminal.
    fn act(&mut self) {
        let profile = self.profile();
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
        for _ in 0..self.below(3) {
            self.type_in();
        }
        for _ in 0..self.below(4) {
            self.supply();
        }
        for _ in 0..self.below(5) {
            self.print();
        }
    }

    /// A terminal sends input; the daemon schedules the queue then, which a notification stands for.
    fn type_in(&mut self) {
        let len = 1 + self.below(40);
        let bytes: Vec<u8> = (self.typed..self.typed + len).map(byte).collect();
        self.typed += self.terminal.ports()[0].type_in(&bytes) as u64;
        self.transport.notify(RX as u16);
    }

    /// Handles the interrupt if the line is asserted.
    fn interrupt(&mut self) {
        if self.world.borrow().el2.line() {
            let _ = self.transport.ack_interrupt();
            self.take_printed();
            self.take_input();
        }
        let status = self.transport.get_status();
        if self.strict && status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.fail("DEVICE_NEEDS_RESET is set for a well-behaved driver");
        }
    }

    /// Initializes the device, from reset to DRIVER_OK (virtio 1.2, 3.1.1).
    fn set_up(&mut self) {
        if self.transport.negotiate(&[]) {
            self.make_queue(RX);
            self.make_queue(TX);
            self.transport.set_driver_ok();
        }
    }

    fn make_queue(&mut self, number: usize) {
        let profile = self.profile();
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

    /// Drops what is outstanding at a queue, which will never complete, and frees its memory.
    fn forget(&mut self, number: usize) {
        if number == TX {
            self.check_kept();
            self.printing.clear();
            // Of what was outstanding the rest is never kept.
            (self.printed, self.completed) = (self.kept, self.kept);
        } else {
            self.reading.clear();
            let word = |word| self.terminal.ports()[0].memory().get(word);
            self.resumed = vec![word(Word::Read)];
            if word(Word::InputHead) != 0 {
                self.resumed.push(word(Word::InputEnd));
            }
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
        self.forget(number);
        let status = self.transport.get_status();
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) && !self.strict {
            return self.reset();
        }
        self.make_queue(number);
    }

    /// Prints one to three buffers, if the queue has room.
    fn print(&mut self) {
        let count = 1 + self.below(3) as usize;
        let mut end = self.printed;
        let mut buffers = Vec::new();
        for _ in 0..count {
            let start = end;
            end += 1 + self.below(100);
            buffers.push((start..end).map(byte).collect::<Vec<u8>>());
        }
        let Some(queue) = self.queues[TX]
            .as_mut()
            .filter(|queue| queue.available_desc() >= count)
        else {
            return;
        };
        let inputs: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
        // SAFETY: the HAL copies, so the device never touches these buffers themselves.
        match unsafe { queue.add(&inputs, &mut []) } {
            Ok(token) => {
                if queue.should_notify() {
                    self.transport.notify(TX as u16);
                }
                self.printing.insert(token, buffers);
                self.printed = end;
            }
            Err(error) if self.strict => self.fail(format!("output cannot be added: {error}")),
            Err(_) => {}
        }
    }

    /// Makes a buffer for input available, if the queue has room.
    fn supply(&mut self) {
        let mut buffer = vec![0; 1 + self.below(30) as usize];
        let Some(queue) = self.queues[RX]
            .as_mut()
            .filter(|queue| queue.available_desc() > 0)
        else {
            return;
        };
        // SAFETY: as above.
        match unsafe { queue.add(&[], &mut [buffer.as_mut_slice()]) } {
            Ok(token) => {
                if queue.should_notify() {
                    self.transport.notify(RX as u16);
                }
                self.reading.insert(token, buffer);
            }
            Err(error) if self.strict => self.fail(format!("a buffer cannot be added: {error}")),
            Err(_) => {}
        }
    }

    /// Takes output that is done.
    fn take_printed(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(queue) = &mut self.queues[TX] else { return };
            let Some(token) = queue.peek_used() else { return };
            let Some(buffers) = self.printing.remove(&token) else {
                if self.strict {
                    self.fail(format!("head {token} was used, but is not outstanding"));
                }
                return;
            };
            let inputs: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            // SAFETY: the buffers that were added with this token.
            let taken = unsafe { queue.pop_used(token, &inputs, &mut []) };
            self.world.borrow_mut().counts.answered += 1;
            self.completed += inputs.iter().map(|input| input.len() as u64).sum::<u64>();
            match taken {
                Ok(0) => {}
                other if self.strict => return self.fail(format!("used length {other:?}, expected 0")),
                _ => {}
            }
        }
    }

    /// Takes input, and checks it.
    fn take_input(&mut self) {
        for _ in 0..2 * QUEUE_SIZE {
            let Some(queue) = &mut self.queues[RX] else { return };
            let Some(token) = queue.peek_used() else { return };
            let Some(mut buffer) = self.reading.remove(&token) else {
                if self.strict {
                    self.fail(format!("head {token} was used, but is not outstanding"));
                }
                return;
            };
            // SAFETY: as above.
            let taken = unsafe { queue.pop_used(token, &[], &mut [buffer.as_mut_slice()]) };
            self.world.borrow_mut().counts.answered += 1;
            let len = taken.map_or(0, |len| len as usize).min(buffer.len());
            self.check_input(&buffer[..len]);
        }
    }

    fn check_input(&mut self, bytes: &[u8]) {
        if !self.strict {
            return;
        }
        if bytes.is_empty() {
            return self.fail("a buffer without input was used");
        }
        let fits = |start: &u64| {
            let found = (*start..)
                .zip(bytes)
                .all(|(position, found)| byte(position) == *found);
            found && start + bytes.len() as u64 <= self.typed
        };
        let mut starts = std::mem::take(&mut self.resumed);
        if starts.is_empty() {
            starts.push(self.read);
        }
        match starts.iter().find(|start| fits(start)) {
            Some(start) => self.read = start + bytes.len() as u64,
            None => self.fail(format!(
                "input {bytes:?} at one of {starts:?}, typed {}",
                self.typed
            )),
        }
    }

    /// Reads what is kept of the output, and checks it.
    fn check_kept(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let read = self.terminal.ports()[0].read_output(self.kept, &mut buffer);
            if read.len == 0 {
                break;
            }
            let bytes = &buffer[..read.len];
            let right = (self.kept..)
                .zip(bytes)
                .all(|(position, found)| byte(position) == *found);
            self.kept = read.next;
            if self.strict && (read.dropped > 0 || !right || self.kept > self.printed) {
                return self.fail(format!(
                    "output up to {} is kept, printed {}: {right}",
                    self.kept, self.printed
                ));
            }
        }
        if self.strict && self.kept < self.completed {
            self.fail(format!(
                "output up to {} is kept, {} is done",
                self.kept, self.completed
            ));
        }
    }

    /// Goes on behind everything that is kept.
    fn skip_kept(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let read = self.terminal.ports()[0].read_output(self.kept, &mut buffer);
            self.kept = read.next;
            if read.len == 0 {
                break;
            }
        }
        (self.printed, self.completed) = (self.kept, self.kept);
    }

    /// Waits until all output is done and all input is read.
    fn drain(&mut self) {
        for _ in 0..TURN_LIMIT {
            self.interrupt();
            self.supply();
            self.check_kept();
            let is_end = |end: &u64| *end == self.typed;
            let read_all = is_end(&self.read) || self.resumed.iter().any(is_end);
            if self.failed() || self.printing.is_empty() && read_all && self.kept == self.printed {
                return;
            }
            self.turn_until_used(|| -> Vec<u16> { self.printing.keys().copied().collect() });
        }
        self.fail("streams do not come to their end");
    }
}
