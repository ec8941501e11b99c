//! The rings: order, coalescing, wrap-around, restart of the consumer, hostile contents, threads. Clean under
//! Miri. All interleavings are explored by `loom_ring.rs`.
#![cfg(test)]
#![cfg(not(loom))]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use ringvisor::abi::shared::{CONSOLE_IN_SIZE, CONSOLE_OUT_SIZE, PENDING_WORDS, RING_SLOTS};
use ringvisor::abi::{MAX_QUEUES, MAX_SLOTS};
use ringvisor::ring::console::{Input, InputConsumer, InputProducer, Output, OutputConsumer, OutputProducer};
use ringvisor::ring::{BITS, Consumer, Entry, Producer, Ring, Wakeup, ZoneWindow};

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// The words of a ring of its real size.
struct Memory {
    slots: Vec<AtomicU64>,
    pending: Vec<AtomicU64>,
    armed: AtomicU32,
}

impl Memory {
    fn new() -> Self {
        Self {
            slots: words(RING_SLOTS),
            pending: words(PENDING_WORDS),
            armed: AtomicU32::new(0),
        }
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.slots, &self.pending, &self.armed).unwrap()
    }
}

fn every_entry() -> Vec<Entry> {
    let mut entries = vec![Entry::Console, Entry::Zone, Entry::Flash];
    for slot in 0..MAX_SLOTS as u8 {
        entries.push(Entry::Device { slot });
        entries.extend((0..MAX_QUEUES as u8).map(|queue| Entry::Notify { slot, queue }));
    }
    // Miri is a thousand times slower.
    if cfg!(miri) {
        entries.into_iter().step_by(31).collect()
    } else {
        entries
    }
}

#[test]
fn entries_come_in_order_and_once() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::new());
    let mut consumer = Consumer::attach(&ring, 0);
    let first = Entry::Notify { slot: 3, queue: 1 };
    assert_eq!(producer.push(&ring, first), Wakeup::NotRequired);
    assert_eq!(producer.push(&ring, Entry::Console), Wakeup::NotRequired);
    assert_eq!(producer.push(&ring, first), Wakeup::NotRequired, "coalesced");
    assert_eq!(producer.head(), 2);
    assert_eq!(consumer.pop(&ring), Some(first));
    assert_eq!(producer.push(&ring, first), Wakeup::NotRequired);
    assert_eq!(consumer.pop(&ring), Some(Entry::Console));
    assert_eq!(
        consumer.pop(&ring),
        Some(first),
        "it was pushed again after it was popped"
    );
    assert_eq!(consumer.pop(&ring), None);
}

#[test]
fn the_consumer_is_woken_once_per_sleep() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::new());
    let mut consumer = Consumer::attach(&ring, 0);
    assert!(consumer.prepare_to_sleep(&ring));
    assert_eq!(producer.push(&ring, Entry::Console), Wakeup::Required);
    assert_eq!(producer.push(&ring, Entry::Zone), Wakeup::NotRequired);
    assert!(!consumer.prepare_to_sleep(&ring), "there is something");
    assert_eq!(
        producer.push(&ring, Entry::Device { slot: 0 }),
        Wakeup::NotRequired,
        "it stays awake"
    );
    while consumer.pop(&ring).is_some() {}
    assert!(consumer.prepare_to_sleep(&ring));
}

// torture f3: a full set of entries, repeatedly, across 2^16 and 2^32.
#[test]
fn every_event_at_once_fits_wherever_the_indices_wrap() {
    let entries = every_entry();
    assert!(cfg!(miri) || entries.len() == BITS);
    let wrap = entries.len() as u64 + 2;
    for start in [0, (1 << 16) - wrap, (1 << 32) - wrap, u64::MAX - wrap] {
        let memory = Memory::new();
        let (ring, producer) = (memory.ring(), Producer::starting_at(start));
        let mut consumer = Consumer::attach(&ring, producer.head());
        for _ in 0..if cfg!(miri) { 2 } else { 5 } {
            for _ in 0..2 {
                entries
                    .iter()
                    .for_each(|&entry| assert_eq!(producer.push(&ring, entry), Wakeup::NotRequired));
            }
            let taken: Vec<_> = std::iter::from_fn(|| consumer.pop(&ring)).collect();
            assert_eq!(taken, entries);
            assert_eq!(consumer.tail(), producer.head());
        }
    }
}

// torture c5, f3: the consumer dies at any point and the next one continues.
#[test]
fn a_new_consumer_finds_an_empty_ring_and_loses_nothing_after_it() {
    let entries = every_entry();
    for taken in [0, 1, entries.len() - 1, entries.len()] {
        for start in [0, (1 << 32) - entries.len() as u64 / 2] {
            let memory = Memory::new();
            let (ring, producer) = (memory.ring(), Producer::starting_at(start));
            let mut dead = Consumer::attach(&ring, producer.head());
            assert!(dead.prepare_to_sleep(&ring));
            for &entry in &entries {
                let _ = producer.push(&ring, entry);
            }
            for _ in 0..taken {
                dead.pop(&ring).unwrap();
            }
            let mut consumer = Consumer::attach(&ring, producer.head());
            assert_eq!(consumer.pop(&ring), None);
            assert_eq!(
                producer.push(&ring, Entry::Console),
                Wakeup::NotRequired,
                "it is awake"
            );
            assert_eq!(consumer.pop(&ring), Some(Entry::Console));
            for &entry in &entries {
                let _ = producer.push(&ring, entry);
            }
            assert_eq!(std::iter::from_fn(|| consumer.pop(&ring)).count(), entries.len());
        }
    }
}

// torture c1: whatever the shared words hold, a push takes a bounded number of steps, and the ring works
// again after the corruption ends.
#[test]
fn corrupted_words_harm_only_the_daemon() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::new());
    for garbage in [u64::MAX, 0x5555_5555_5555_5555, 1] {
        for word in memory.slots.iter().chain(&memory.pending) {
            word.store(garbage, Ordering::Relaxed);
        }
        memory.armed.store(garbage as u32, Ordering::Relaxed);
        for &entry in &every_entry() {
            let _ = producer.push(&ring, entry);
        }
    }
    let mut consumer = Consumer::attach(&ring, producer.head());
    let mut seen = 0;
    while consumer.pop(&ring).is_some() {
        seen += 1;
        assert!(seen <= RING_SLOTS);
    }
    assert_eq!(producer.push(&ring, Entry::Zone), Wakeup::NotRequired);
    assert_eq!(
        std::iter::from_fn(|| consumer.pop(&ring)).last(),
        Some(Entry::Zone)
    );
}

// torture f3: the number before 2^32 is 0 in a slot, as is memory that was never written.
#[test]
fn fresh_memory_holds_no_entry_at_the_wrap() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::starting_at((1 << 32) - 1));
    let mut consumer = Consumer::attach(&ring, producer.head());
    assert_eq!(consumer.pop(&ring), None);
    assert_eq!(consumer.tail(), producer.head());
    let _ = producer.push(&ring, Entry::Zone);
    assert_eq!(consumer.pop(&ring), Some(Entry::Zone));
}

#[test]
fn a_slot_that_is_no_entry_is_skipped() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::new());
    let mut consumer = Consumer::attach(&ring, 0);
    let _ = producer.push(&ring, Entry::Console);
    let _ = producer.push(&ring, Entry::Zone);
    memory.slots[0].store(1 << 32 | 0xff, Ordering::Relaxed);
    assert_eq!(consumer.peek(&ring), Some(Err(0xff)));
    assert_eq!(consumer.pop(&ring), Some(Entry::Zone));
}

#[test]
fn events_that_do_not_exist_are_not_pushed() {
    let memory = Memory::new();
    let (ring, producer) = (memory.ring(), Producer::new());
    for entry in [
        Entry::Notify { slot: 32, queue: 0 },
        Entry::Notify { slot: 0, queue: 16 },
        Entry::Device { slot: 255 },
    ] {
        assert_eq!(producer.push(&ring, entry), Wakeup::NotRequired);
    }
    assert_eq!(producer.head(), 0);
}

#[test]
fn a_ring_is_made_of_words_that_fit() {
    let (slots, pending, armed) = (words(64), words(2), AtomicU32::new(0));
    assert!(Ring::new(&slots, &pending[..1], &armed).is_some());
    assert!(
        Ring::new(&slots, &pending, &armed).is_none(),
        "more bits than slots"
    );
    assert!(
        Ring::new(&slots[..63], &pending[..1], &armed).is_none(),
        "not a power of two"
    );
    assert!(Ring::new(&[], &[], &armed).is_none());
    // A bitmap that is shorter than the events: those without a bit are not pushed.
    let ring = Ring::new(&slots, &pending[..1], &armed).unwrap();
    let producer = Producer::new();
    assert_eq!(producer.push(&ring, Entry::Zone), Wakeup::NotRequired);
    assert_eq!(producer.head(), 0);
}

// Entries of an earlier zone in the slots are not taken for entries of the next one.
#[test]
fn a_cleared_window_holds_nothing() {
    let memory = Memory::new();
    let ring = memory.ring();
    let producer = Producer::new();
    let mut consumer = Consumer::attach(&ring, 0);
    let _ = producer.push(&ring, Entry::Console);
    assert!(!consumer.prepare_to_sleep(&ring));
    let stale = Consumer::attach(&ring, 0);
    assert_eq!(
        stale.peek(&ring),
        Some(Ok(Entry::Console)),
        "this is what clear is for"
    );
    ring.clear();
    let next = Consumer::attach(&ring, 0);
    assert_eq!(next.peek(&ring), None);
    assert_eq!(Producer::new().push(&ring, Entry::Console), Wakeup::NotRequired);
}

// torture f1, on real threads (and on Miri's): every event that was announced is observed after it was
// announced.
#[test]
fn two_producers_and_a_sleeping_consumer() {
    const ROUNDS: u64 = if cfg!(miri) { 30 } else { 20_000 };
    for start in [0, (1 << 32) - ROUNDS / 2] {
        let memory = Memory::new();
        let producer = Producer::starting_at(start);
        let interrupts = AtomicU32::new(0);
        let work = [const { AtomicU64::new(0) }; 2];
        let ring = memory.ring();
        let mut consumer = Consumer::attach(&ring, producer.head());
        std::thread::scope(|scope| {
            for (queue, counter) in work.iter().enumerate() {
                let (producer, interrupts) = (&producer, &interrupts);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        counter.store(round, Ordering::Relaxed);
                        if producer.push(
                            &ring,
                            Entry::Notify {
                                slot: 0,
                                queue: queue as u8,
                            },
                        ) == Wakeup::Required
                        {
                            interrupts.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            let mut seen = [0; 2];
            while seen != [ROUNDS; 2] {
                while let Some(entry) = consumer.pop(&ring) {
                    let Entry::Notify { slot: 0, queue } = entry else {
                        panic!("{entry:?}")
                    };
                    let now = work[usize::from(queue)].load(Ordering::Relaxed);
                    assert!(now >= seen[usize::from(queue)]);
                    seen[usize::from(queue)] = now;
                }
                let before = interrupts.load(Ordering::SeqCst);
                if seen != [ROUNDS; 2] && consumer.prepare_to_sleep(&ring) {
                    while interrupts.load(Ordering::SeqCst) == before {
                        std::thread::yield_now();
                    }
                }
            }
        });
    }
}

struct OutputMemory {
    claimed: AtomicU64,
    written: AtomicU64,
    bytes: Vec<AtomicU8>,
}

impl OutputMemory {
    fn new(size: usize) -> Self {
        Self {
            claimed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            bytes: (0..size).map(|_| AtomicU8::new(0)).collect(),
        }
    }
    fn ring(&self) -> Output<'_> {
        Output {
            claimed: &self.claimed,
            written: &self.written,
            bytes: &self.bytes,
        }
    }
}

#[test]
fn console_output_arrives() {
    let memory = OutputMemory::new(16);
    let ring = memory.ring();
    for start in [0, (1 << 16) - 5, (1 << 32) - 5, u64::MAX - 40] {
        let mut producer = OutputProducer::starting_at(start);
        let mut consumer = OutputConsumer::starting_at(start);
        producer.write(&ring, b"");
        for text in [&b"hello"[..], b", ", b"world!", b"0123456789abcdef"] {
            producer.write(&ring, text);
            let mut buffer = [0; 16];
            let got = consumer.read(&ring, &mut buffer);
            assert_eq!((got.dropped, &buffer[..got.len]), (0, text));
        }
        assert_eq!(consumer.position(), producer.written());
    }
}

#[test]
fn a_slow_reader_gets_the_number_of_lost_bytes() {
    let memory = OutputMemory::new(16);
    let ring = memory.ring();
    let mut producer = OutputProducer::new();
    let mut consumer = OutputConsumer::default();
    producer.write(&ring, b"0123456789");
    producer.write(&ring, b"abcdefghij");
    let mut buffer = [0; 8];
    let got = consumer.read(&ring, &mut buffer);
    assert_eq!((got.dropped, &buffer[..got.len]), (4, &b"456789ab"[..]));
    let got = consumer.read(&ring, &mut buffer);
    assert_eq!((got.dropped, &buffer[..got.len]), (0, &b"cdefghij"[..]));
    assert_eq!(consumer.read(&ring, &mut buffer).len, 0);
    // One write longer than the ring.
    producer.write(&ring, &[b'x'; 100]);
    let mut buffer = [0; 64];
    let got = consumer.read(&ring, &mut buffer);
    assert_eq!((got.dropped, got.len), (84, 16));
}

#[test]
fn a_reader_ahead_of_the_writer_is_reset() {
    let memory = OutputMemory::new(16);
    let ring = memory.ring();
    let mut consumer = OutputConsumer::starting_at(1000);
    OutputProducer::new().write(&ring, b"new zone");
    let mut buffer = [0; 16];
    assert_eq!(consumer.read(&ring, &mut buffer).len, 0);
    assert_eq!(consumer.position(), 8);
}

// Bytes that are being overwritten while they are read are dropped, not mixed.
#[test]
fn output_is_never_torn() {
    let memory = OutputMemory::new(64);
    let ring = memory.ring();
    let done = AtomicBool::new(false);
    let total = if cfg!(miri) { 400u64 } else { 200_000 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut producer = OutputProducer::new();
            while producer.written() < total {
                let start = producer.written();
                let chunk: Vec<u8> = (start..start + 7)
                    .map(|position| (position % 251) as u8)
                    .collect();
                producer.write(&ring, &chunk);
            }
            done.store(true, Ordering::Release);
        });
        let mut consumer = OutputConsumer::default();
        let mut position = 0;
        loop {
            let last = done.load(Ordering::Acquire);
            let mut buffer = [0; 48];
            let got = consumer.read(&ring, &mut buffer);
            position += got.dropped;
            for &byte in &buffer[..got.len] {
                assert_eq!(u64::from(byte), position % 251);
                position += 1;
            }
            assert_eq!(position, consumer.position());
            if last && got.len == 0 {
                break;
            }
        }
        assert!(position >= total);
    });
}

struct InputMemory {
    written: AtomicU64,
    read: AtomicU64,
    bytes: Vec<AtomicU8>,
}

impl InputMemory {
    fn new(size: usize) -> Self {
        Self {
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            bytes: (0..size).map(|_| AtomicU8::new(0)).collect(),
        }
    }
    fn ring(&self) -> Input<'_> {
        Input {
            written: &self.written,
            read: &self.read,
            bytes: &self.bytes,
        }
    }
}

#[test]
fn console_input_waits_for_room() {
    let memory = InputMemory::new(8);
    let ring = memory.ring();
    let (mut producer, mut consumer) = (InputProducer::attach(&ring), InputConsumer::new());
    assert_eq!(producer.write(&ring, b"0123456789"), 8);
    assert_eq!(producer.write(&ring, b"89"), 0);
    assert_eq!(consumer.len(&ring), 8);
    assert_eq!(consumer.pop(&ring), Some(b'0'));
    assert_eq!(producer.write(&ring, b"89"), 1);
    let rest: Vec<u8> = std::iter::from_fn(|| consumer.pop(&ring)).collect();
    assert_eq!(rest, b"12345678");
    assert!(consumer.is_empty(&ring));
    let mut next = InputProducer::attach(&ring);
    assert_eq!(next.write(&ring, b"x"), 1, "the next daemon continues");
    assert_eq!(consumer.pop(&ring), Some(b'x'));
}

// torture c1
#[test]
fn invalid_input_positions_are_an_empty_ring() {
    let memory = InputMemory::new(8);
    let ring = memory.ring();
    let mut consumer = InputConsumer::new();
    for position in [9, 1 << 32, u64::MAX, 1 << 63] {
        memory.written.store(position, Ordering::Relaxed);
        assert_eq!(consumer.len(&ring), 0);
        assert_eq!(consumer.pop(&ring), None);
    }
    memory.read.store(12345, Ordering::Relaxed);
    memory.written.store(3, Ordering::Relaxed);
    assert_eq!(consumer.len(&ring), 3, "what EL2 published is never read back");
    assert!(consumer.pop(&ring).is_some());
    assert_eq!(memory.read.load(Ordering::Relaxed), 1);
    memory.written.store(u64::MAX, Ordering::Relaxed);
    let mut producer = InputProducer::attach(&ring);
    assert_eq!(
        producer.write(&ring, b"ok"),
        2,
        "a new daemon starts where EL2 is"
    );
    assert_eq!(consumer.pop(&ring), Some(b'o'));
}

// The real window, made of zeroed memory as the daemon finds it.
#[test]
fn the_window_has_everything() {
    let seen: HashSet<usize> = every_entry().iter().filter_map(|entry| entry.bit()).collect();
    assert_eq!(seen.len(), every_entry().len());
    assert!(size_of::<ZoneWindow>() > CONSOLE_IN_SIZE + CONSOLE_OUT_SIZE);
}
