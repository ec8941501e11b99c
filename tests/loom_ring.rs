//! All interleavings, and all values that the memory model lets a load see: two producers and a consumer that
//! sleeps (torture f1), a consumer that attaches, the console rings; and a device's interrupt line on its way to the GIC.
//!
//! Run by `tests/ring_mutations.sh`, which also weakens each ordering in turn and expects a failure (torture f2).
#![cfg(test)]
#![cfg(loom)]

use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ringvisor::ring::console::{Input, InputConsumer, InputProducer, Output, OutputConsumer, OutputProducer};
use ringvisor::ring::{Bell, Consumer, Entry, Producer, Ring};
use ringvisor::vgic::Line;

/// A ring with one word of pending bits, and what a guest and an interrupt controller are to it.
struct World {
    slots: Vec<AtomicU64>,
    pending: Vec<AtomicU64>,
    armed: AtomicU32,
    producer: Producer,
    /// The guest's available index of each queue.
    avail: [AtomicU32; 2],
    /// The interrupt: set until taken.
    bell: (Mutex<bool>, Condvar),
}

impl World {
    fn new(head: u64) -> Arc<Self> {
        // Loom follows every slot of its own, so there are as few as indices are used.
        Arc::new(Self {
            slots: (0..4).map(|_| AtomicU64::new(0)).collect(),
            pending: vec![AtomicU64::new(0)],
            armed: AtomicU32::new(0),
            producer: Producer::starting_at(head),
            avail: [AtomicU32::new(0), AtomicU32::new(0)],
            bell: (Mutex::new(false), Condvar::new()),
        })
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.slots, &self.pending, &self.armed).unwrap()
    }

    /// What a vCPU does: makes a buffer available, then notifies.
    fn kick(&self, queue: u8) {
        self.avail[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        if self.producer.push(&self.ring(), Entry::Notify { slot: 0, queue }) == Bell::Ring {
            *self.bell.0.lock().unwrap() = true;
            self.bell.1.notify_one();
        }
    }

    fn sleep(&self) {
        let mut rung = self.bell.0.lock().unwrap();
        while !*rung {
            rung = self.bell.1.wait(rung).unwrap();
        }
        *rung = false;
    }

    /// Takes and sleeps until `goal` buffers of each queue were seen. A lost entry or wake-up is a deadlock, which
    /// loom reports.
    fn serve(&self, consumer: &mut Consumer, mut seen: [u32; 2], goal: [u32; 2]) -> usize {
        let mut taken = 0;
        loop {
            while let Some(entry) = consumer.take(&self.ring()) {
                let Entry::Notify { slot: 0, queue } = entry else {
                    panic!("{entry:?}")
                };
                taken += 1;
                let avail = self.avail[usize::from(queue)].load(Ordering::Relaxed);
                assert!(avail >= seen[usize::from(queue)]);
                seen[usize::from(queue)] = avail;
            }
            if seen == goal {
                return taken;
            }
            if consumer.prepare_to_sleep(&self.ring()) {
                self.sleep();
            }
        }
    }
}

/// All interleavings with at most so many preemptions, 0: without a bound; `RING_PREEMPTIONS` in the environment
/// overrides it. With a bound of 5, all tests pass too (three minutes).
fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    let bound = std::env::var("RING_PREEMPTIONS").map_or(preemptions, |bound| bound.parse().unwrap());
    builder.preemption_bound = (bound != 0).then_some(bound);
    builder.check(body);
}

#[test]
fn two_producers_one_consumer() {
    model(3, || {
        let world = World::new(0);
        let mut consumer = Consumer::attach(&world.ring(), 0);
        let producers: Vec<_> = [0, 1]
            .map(|queue| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.kick(queue))
            })
            .into();
        let taken = world.serve(&mut consumer, [0; 2], [1; 2]);
        assert_eq!(taken, 2, "no entry twice");
        producers
            .into_iter()
            .for_each(|producer| producer.join().unwrap());
    });
}

#[test]
fn two_vcpus_kick_the_same_queue() {
    model(3, || {
        let world = World::new(0);
        let mut consumer = Consumer::attach(&world.ring(), 0);
        let producers: Vec<_> = [0, 0]
            .map(|queue| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.kick(queue))
            })
            .into();
        let taken = world.serve(&mut consumer, [0; 2], [2, 0]);
        assert!(taken == 1 || taken == 2);
        producers
            .into_iter()
            .for_each(|producer| producer.join().unwrap());
    });
}

/// One producer, three kicks of one queue: coalescing against taking, across 2^32.
#[test]
fn one_queue_again_and_again() {
    model(4, || {
        let world = World::new((1 << 32) - 2);
        let mut consumer = Consumer::attach(&world.ring(), world.producer.head());
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || (0..3).for_each(|_| world.kick(0)))
        };
        world.serve(&mut consumer, [0; 2], [3, 0]);
        producer.join().unwrap();
    });
}

/// Who has read an entry sees all that was done before it was pushed, even before its bit is cleared.
#[test]
fn an_entry_carries_what_came_before() {
    model(0, || {
        let world = World::new(0);
        let consumer = Consumer::attach(&world.ring(), 0);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.kick(1))
        };
        if consumer.peek(&world.ring()).is_some() {
            assert_eq!(world.avail[1].load(Ordering::Relaxed), 1);
        }
        producer.join().unwrap();
    });
}

/// The old consumer is gone, a vCPU notifies while a new one attaches: what is lost from the ring is found by
/// looking at every queue after attaching, and what comes later comes through the ring.
#[test]
fn attaching_while_a_vcpu_notifies() {
    model(3, || {
        let world = World::new(0);
        world.kick(0); // never taken by the one that died
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.kick(0);
                world.kick(1);
            })
        };
        let mut consumer = Consumer::attach(&world.ring(), world.producer.head());
        let seen = [0, 1].map(|queue| world.avail[queue].load(Ordering::Relaxed));
        world.serve(&mut consumer, seen, [2, 1]);
        producer.join().unwrap();
    });
}

/// Whoever reads the head sees the bits of all entries before it.
#[test]
fn the_head_carries_the_bits() {
    model(0, || {
        let world = World::new(0);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.kick(0))
        };
        if world.producer.head() == 1 {
            assert_ne!(world.pending[0].load(Ordering::Relaxed), 0);
        }
        producer.join().unwrap();
    });
}

struct Console {
    claimed: AtomicU64,
    written: AtomicU64,
    read: AtomicU64,
    bytes: Vec<AtomicU8>,
}

impl Console {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            claimed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            bytes: (0..2).map(|_| AtomicU8::new(0)).collect(),
        })
    }
    fn output(&self) -> Output<'_> {
        Output {
            claimed: &self.claimed,
            written: &self.written,
            bytes: &self.bytes,
        }
    }
    fn input(&self) -> Input<'_> {
        Input {
            written: &self.written,
            read: &self.read,
            bytes: &self.bytes,
        }
    }
}

/// Byte number n is n + 1: what is read is right, in order, and whole.
#[test]
fn output_is_whole_or_dropped() {
    model(0, || {
        let console = Console::new();
        let producer = {
            let console = Arc::clone(&console);
            thread::spawn(move || {
                let mut producer = OutputProducer::new();
                producer.write(&console.output(), &[1]);
                producer.write(&console.output(), &[2, 3]);
                producer.write(&console.output(), &[4]);
            })
        };
        let mut consumer = OutputConsumer::default();
        let mut position = 0;
        for round in 0..3 {
            if round == 2 {
                break;
            }
            let mut buffer = [0; 2];
            let got = consumer.read(&console.output(), &mut buffer);
            position += got.dropped;
            for &byte in &buffer[..got.len] {
                position += 1;
                assert_eq!(u64::from(byte), position);
            }
        }
        producer.join().unwrap();
        let mut buffer = [0; 4];
        let got = consumer.read(&console.output(), &mut buffer);
        assert_eq!(position + got.dropped + got.len as u64, 4);
    });
}

/// Input through a ring of two bytes: nothing lost, nothing before its time.
#[test]
fn input_arrives_in_order() {
    model(3, || {
        let console = Console::new();
        let consumer = {
            let console = Arc::clone(&console);
            thread::spawn(move || {
                let mut consumer = InputConsumer::new();
                let mut next = 1;
                while next <= 3 {
                    match consumer.pop(&console.input()) {
                        Some(byte) => {
                            assert_eq!(byte, next);
                            next += 1;
                        }
                        None => thread::yield_now(),
                    }
                }
            })
        };
        let mut producer = InputProducer::attach(&console.input());
        let mut data = &[1, 2, 3][..];
        while !data.is_empty() {
            match producer.write(&console.input(), data) {
                0 => thread::yield_now(),
                len => data = &data[len..],
            }
        }
        consumer.join().unwrap();
    });
}

/// A device with one interrupt line, and the GIC's input that follows it.
struct Device {
    /// InterruptStatus, and how often the line has risen.
    status: Mutex<(u32, u32)>,
    line: Line,
    input: Mutex<GicInput>,
}

#[derive(Default)]
struct GicInput {
    high: bool,
    /// Rising edges so far.
    edges: u32,
}

impl Device {
    /// As `Zone::used_buffer`, and a store to InterruptACK: the lock of the device, then that of the GIC.
    fn set(&self, status: u32) {
        let changed = {
            let mut now = self.status.lock().unwrap();
            now.0 = status;
            let changed = self.line.set(status != 0);
            now.1 += u32::from(changed && status != 0);
            changed
        };
        if changed {
            let mut input = self.input.lock().unwrap();
            for &level in self.line.take() {
                input.edges += u32::from(level && !input.high);
                input.high = level;
            }
        }
    }
}

/// The daemon completes while the guest acknowledges the interrupt before, and neither keeps the device's lock while it
/// tells the GIC.
#[test]
fn a_line_ends_as_noted_last_and_loses_no_edge() {
    model(0, || {
        let device = Arc::new(Device {
            status: Mutex::new((0, 0)),
            line: Line::new(),
            input: Mutex::new(GicInput::default()),
        });
        device.set(1);
        assert_eq!(device.input.lock().unwrap().edges, 1);
        let daemon = {
            let device = Arc::clone(&device);
            thread::spawn(move || device.set(1))
        };
        device.set(0);
        device.set(0);
        daemon.join().unwrap();
        let (status, rises) = *device.status.lock().unwrap();
        let input = device.input.lock().unwrap();
        assert_eq!(input.high, status != 0);
        // The guest has to hear of each, however its GIC is configured.
        assert_eq!(input.edges, rises);
    });
}
