//! All interleavings, and all values that the memory model lets a load return: two producers and a consumer
//! that sleeps (torture f1), a consumer that attaches, the console rings; and a device's interrupt line on
//! its way to the GIC.
//!
//! Run by `tests/ring_mutations.sh`, which also weakens each ordering in turn and expects a failure (torture
//! f2).
#![cfg(loom)]

use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ringvisor::ring::console::{Input, InputConsumer, InputProducer, Output, OutputConsumer, OutputProducer};
use ringvisor::ring::{Consumer, Entry, Producer, Ring, Wakeup};
use ringvisor::vgic::Line;

/// A ring with one word of pending bits, the guest's queues and the event interrupt.
struct World {
    slots: Vec<AtomicU64>,
    pending: Vec<AtomicU64>,
    armed: AtomicU32,
    producer: Producer,
    /// The guest's available index of each queue.
    avail: [AtomicU32; 2],
    /// The event interrupt: set until it is handled.
    interrupt: (Mutex<bool>, Condvar),
}

impl World {
    fn new(head: u64) -> Arc<Self> {
        // Loom tracks every slot separately, so there are no more than indices in use.
        Arc::new(Self {
            slots: (0..4).map(|_| AtomicU64::new(0)).collect(),
            pending: vec![AtomicU64::new(0)],
            armed: AtomicU32::new(0),
            producer: Producer::starting_at(head),
            avail: [AtomicU32::new(0), AtomicU32::new(0)],
            interrupt: (Mutex::new(false), Condvar::new()),
        })
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.slots, &self.pending, &self.armed).unwrap()
    }

    /// Acts as a vCPU: makes a buffer available, then notifies.
    fn notify(&self, queue: u8) {
        self.avail[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        if self.producer.push(&self.ring(), Entry::Notify { slot: 0, queue }) == Wakeup::Required {
            *self.interrupt.0.lock().unwrap() = true;
            self.interrupt.1.notify_one();
        }
    }

    fn sleep(&self) {
        let mut raised = self.interrupt.0.lock().unwrap();
        while !*raised {
            raised = self.interrupt.1.wait(raised).unwrap();
        }
        *raised = false;
    }

    /// Pops and sleeps until `goal` buffers of each queue were seen. A lost entry or wake-up is a deadlock,
    /// which loom reports.
    fn serve(&self, consumer: &mut Consumer, mut seen: [u32; 2], goal: [u32; 2]) -> usize {
        let mut taken = 0;
        loop {
            while let Some(entry) = consumer.pop(&self.ring()) {
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

/// Explores all interleavings with at most so many preemptions, 0: no bound; `RING_PREEMPTIONS` in the
/// environment overrides it. With a bound of 5, all tests pass too (three minutes).
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
                thread::spawn(move || world.notify(queue))
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
fn two_vcpus_notify_the_same_queue() {
    model(3, || {
        let world = World::new(0);
        let mut consumer = Consumer::attach(&world.ring(), 0);
        let producers: Vec<_> = [0, 0]
            .map(|queue| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.notify(queue))
            })
            .into();
        let taken = world.serve(&mut consumer, [0; 2], [2, 0]);
        assert!(taken == 1 || taken == 2);
        producers
            .into_iter()
            .for_each(|producer| producer.join().unwrap());
    });
}

/// One producer, three notifications of one queue: coalescing against popping, across 2^32.
#[test]
fn one_queue_again_and_again() {
    model(4, || {
        let world = World::new((1 << 32) - 2);
        let mut consumer = Consumer::attach(&world.ring(), world.producer.head());
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || (0..3).for_each(|_| world.notify(0)))
        };
        world.serve(&mut consumer, [0; 2], [3, 0]);
        producer.join().unwrap();
    });
}

/// A consumer that has read an entry sees all that was done before it was pushed, even before its bit is
/// cleared.
#[test]
fn an_entry_carries_what_came_before() {
    model(0, || {
        let world = World::new(0);
        let consumer = Consumer::attach(&world.ring(), 0);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.notify(1))
        };
        if consumer.peek(&world.ring()).is_some() {
            assert_eq!(world.avail[1].load(Ordering::Relaxed), 1);
        }
        producer.join().unwrap();
    });
}

/// The old consumer has ended, a vCPU notifies while a new one attaches: events lost from the ring are found
/// by checking every queue after attaching, later ones come through the ring.
#[test]
fn attaching_while_a_vcpu_notifies() {
    model(3, || {
        let world = World::new(0);
        world.notify(0); // never popped by the consumer that ended
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.notify(0);
                world.notify(1);
            })
        };
        let mut consumer = Consumer::attach(&world.ring(), world.producer.head());
        let seen = [0, 1].map(|queue| world.avail[queue].load(Ordering::Relaxed));
        world.serve(&mut consumer, seen, [2, 1]);
        producer.join().unwrap();
    });
}

/// A consumer that reads the head sees the bits of all entries before it.
#[test]
fn the_head_carries_the_bits() {
    model(0, || {
        let world = World::new(0);
        let producer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.notify(0))
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

/// Byte number n is n + 1: what is read is correct, in order, and complete.
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

/// Input through a ring of two bytes: nothing is lost or read before it is written.
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

/// A device with one interrupt line, and the GIC's input to which its level propagates.
struct Device {
    /// InterruptStatus, and the number of rising edges of the line.
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
            let changed = self.line.latch(status != 0);
            now.1 += u32::from(changed && status != 0);
            changed
        };
        if changed {
            let mut input = self.input.lock().unwrap();
            for &level in self.line.transitions() {
                input.edges += u32::from(level && !input.high);
                input.high = level;
            }
        }
    }
}

/// The daemon completes a request while the guest acknowledges the interrupt of the previous one, and neither
/// holds the device's lock while the level propagates to the GIC.
#[test]
fn a_line_ends_at_the_last_latched_level_and_loses_no_edge() {
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
        // The guest must get an interrupt for each, whether its GIC is configured for edges or levels.
        assert_eq!(input.edges, rises);
    });
}
