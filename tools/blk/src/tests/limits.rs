//! Limits of requests and bytes, with a manual clock, and on a reactor that sleeps in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringvirtio::clock::Clock;
use ringvirtio::throttle::{Rate, RateLimits};

use super::rig::{ALL_FEATURES, BUFFERS, Rig, TestEngine, WRITABLE_FEATURES, open_soon, readable, writable};
use super::service::{REACTOR_VARIANTS, Running, collect, queue};
use crate::disk::EngineKind;
use crate::queue::BlockQueue;
use crate::virtio::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const MS: u64 = 1_000_000;

fn limited(limits: RateLimits) -> (Rig, Arc<AtomicU64>) {
    let mut rig = Rig::with(EngineKind::Threads, 256, WRITABLE_FEATURES, false);
    let time = Arc::new(AtomicU64::new(5000 * MS));
    rig.vq().clock = Clock::Manual(time.clone());
    rig.queue().disk().control().throttle.set_limits(limits);
    (rig, time)
}

fn iops(rate: u64, burst: u64) -> RateLimits {
    RateLimits {
        iops: Rate { rate, burst },
        ..RateLimits::default()
    }
}

fn offer(rig: &mut Rig, heads: std::ops::Range<u16>, len: u32) {
    for head in heads {
        rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, len)));
    }
}

// The burst is admitted, then one request each 10 ms; the rest stays in the ring; none is lost.
#[test]
fn requests_wait_in_the_ring() {
    let (mut rig, time) = limited(iops(100, 5));
    offer(&mut rig, 0..20, 512);
    rig.run();
    // They complete in any order.
    let heads = |rig: &mut Rig| {
        let mut heads: Vec<u32> = rig.take_used().iter().map(|used| used.0 / 3).collect();
        heads.sort_unstable();
        heads
    };
    assert_eq!(heads(&mut rig), [0, 1, 2, 3, 4]);
    for next in 5..20 {
        let at = rig.vq().deadline().unwrap();
        assert_eq!(at, time.load(Ordering::Relaxed) + 10 * MS);
        rig.run();
        assert!(heads(&mut rig).is_empty(), "too early");
        time.store(at, Ordering::Relaxed);
        rig.run();
        assert_eq!(heads(&mut rig), [next]);
    }
    rig.run();
    assert_eq!(rig.vq().deadline(), None, "no request is held back");
    assert!(rig.queue().stats().queue.throttled.get() >= 30);
}

#[test]
fn bytes_are_limited_too() {
    let (mut rig, time) = limited(RateLimits {
        bytes: Rate {
            rate: 1 << 20,
            burst: 64 << 10,
        },
        ..RateLimits::default()
    });
    // 16 KiB each: four at once, then 64 a second.
    offer(&mut rig, 0..8, 16384);
    rig.run();
    assert_eq!(rig.take_used().len(), 4);
    time.fetch_add(1000 * MS / 64 + 1, Ordering::Relaxed);
    rig.run();
    assert_eq!(rig.take_used().len(), 1);
    // All keep their order.
    rig.offer_request(60, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
    rig.run();
    assert_eq!(rig.take_used(), []);
    rig.queue()
        .disk()
        .control()
        .throttle
        .set_limits(RateLimits::default());
    rig.run();
    assert_eq!(rig.take_used().len(), 4, "raised live");
}

// Whatever a request is, it counts: one without I/O, one that is refused, one that is not understood. Zeroes
// count as bytes, too.
#[test]
fn every_request_counts() {
    let counted = |kind: u32, sector: u64, data: Option<super::rig::Buf>| {
        let (mut rig, time) = limited(iops(100, 1));
        rig.offer_request(0, kind, sector, data);
        rig.offer_request(3, kind, sector, data);
        rig.run();
        let first = rig.take_used().len();
        time.fetch_add(10 * MS, Ordering::Relaxed);
        rig.run();
        assert_eq!((first, rig.take_used().len()), (1, 1), "type {kind} at {sector}");
    };
    counted(VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
    counted(VIRTIO_BLK_T_FLUSH, 0, None);
    counted(VIRTIO_BLK_T_IN, 1 << 40, Some(writable(DATA, 512)));
    counted(VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 511)));
    counted(99, 0, None);
    let (mut rig, time) = limited(RateLimits {
        bytes: Rate {
            rate: 1 << 20,
            burst: 512,
        },
        ..RateLimits::default()
    });
    let zeroes = rig.segments(DATA, &[(0, 8, 0), (16, 8, 1)]);
    for head in [0, 3] {
        rig.offer_request(head, VIRTIO_BLK_T_WRITE_ZEROES, 0, Some(zeroes));
    }
    rig.run();
    assert_eq!(rig.take_used().len(), 1);
    // 8192 bytes, of which 512 were allowed at once.
    time.fetch_add(7 * MS, Ordering::Relaxed);
    rig.run();
    assert!(rig.take_used().is_empty());
    time.fetch_add(MS, Ordering::Relaxed);
    rig.run();
    assert_eq!(rig.take_used().len(), 1);
}

// Requests that wait for a limit are not in flight: a reset need not wait for them.
#[test]
fn a_limit_does_not_hold_up_a_reset() {
    let (mut rig, _time) = limited(iops(1, 1));
    offer(&mut rig, 0..20, 512);
    rig.run();
    assert_eq!((rig.take_used().len(), rig.vq().in_flight()), (1, 0));
    // A new daemon resumes there.
    rig.reopen();
    rig.run();
    assert_eq!(rig.take_used().len(), 19);
}

// Two queues of a disk share its limit.
#[test]
fn queues_of_a_disk_share_the_limit() {
    let (mut rig, time) = limited(iops(100, 6));
    let mut other = Rig::closed(EngineKind::Threads, 256, ALL_FEATURES, false);
    let mut second = BlockQueue::new(rig.queue().disk().clone(), other.setup()).unwrap();
    second.queue.clock = Clock::Manual(time.clone());
    other.queue = Some(second);
    offer(&mut rig, 0..4, 512);
    offer(&mut other, 0..4, 512);
    rig.run();
    other.run();
    assert_eq!((rig.take_used().len(), other.take_used().len()), (4, 2));
    time.fetch_add(20 * MS, Ordering::Relaxed);
    other.run();
    assert_eq!(other.take_used().len(), 2);
}

// The reactor sleeps until the limit admits the next request and serves other queues meanwhile; a raised
// limit schedules the queue.
#[test]
fn a_reactor_waits_for_the_limit() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let mut rig = Rig::closed(engine, 256, ALL_FEATURES, false);
        let disk = open_soon(&rig.config);
        disk.control().throttle.set_limits(iops(200, 1));
        let (limited, interrupts) = queue(&rig, disk.clone());
        let stats = limited.stats().clone();
        let mut free = Rig::closed(engine, 256, ALL_FEATURES, false);
        let (unlimited, others) = queue(&free, open_soon(&free.config));
        let (id, free_id) = (reactor.handle.add(limited), reactor.handle.add(unlimited));
        let start = Instant::now();
        offer(&mut rig, 0..21, 512);
        reactor.handle.schedule(id);
        for _ in 0..10 {
            offer(&mut free, 0..20, 512);
            reactor.handle.schedule(free_id);
            collect(&mut free, &others, 20);
        }
        assert!(stats.reads.get() < 21, "the other queue did not wait");
        collect(&mut rig, &interrupts, 21);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(99),
            "21 at 200 a second in {took:?}"
        );
        assert!(
            stats.queue.throttled.get() < 100,
            "it slept: {}",
            stats.queue.throttled.get()
        );
        // An hour to go; then none.
        disk.control().throttle.set_limits(RateLimits {
            iops: Rate { rate: 1, burst: 1 },
            bytes: Rate { rate: 1, burst: 1 },
        });
        offer(&mut rig, 0..10, 4096);
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        disk.control().throttle.set_limits(RateLimits::default());
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 9);
        // Removing a queue that waits takes no time.
        disk.control().throttle.set_limits(iops(1, 1));
        offer(&mut rig, 0..10, 4096);
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        let start = Instant::now();
        reactor.remove(id);
        assert!(start.elapsed() < Duration::from_millis(500));
    }
}

// Latencies by the same clock: from the notification, or from the pop, to the status, and the file's alone.
#[test]
fn latencies_are_recorded() {
    use crate::engine::fake::FakeEngine;
    let (mut rig, time) = limited(RateLimits::default());
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    engine.hold(true);
    rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
    rig.offer_request(3, VIRTIO_BLK_T_OUT, 8, Some(readable(DATA, 512)));
    rig.offer_request(6, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.offer_request(9, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.queue().service(&mut engine.clone());
    // The flush, the read, the write, then the second flush, a millisecond after each other.
    for _ in 0..4 {
        time.fetch_add(MS, Ordering::Relaxed);
        engine.run_one(0);
        let mut done = Vec::new();
        rig.engine.get().reap(&mut done);
        for outcome in done {
            rig.queue()
                .complete(outcome.tag, outcome.result, &mut engine.clone());
        }
    }
    rig.vq().publish();
    assert_eq!(rig.take_used().len(), 4);
    let latency = rig.queue().stats().snapshot().latency;
    let shape =
        |part: &ringvirtio::histogram::HistogramSnapshot| (part.count(), part.sum() / MS, part.max() / MS);
    assert_eq!(shape(&latency.reads), (1, 2, 2));
    assert_eq!(shape(&latency.writes), (1, 3, 3));
    assert_eq!(shape(&latency.flushes), (2, 1 + 4, 4));
    // The second sync began after the first had completed.
    assert_eq!(shape(&latency.file), (4, 1 + 2 + 3 + 3, 3));
    let counters: Vec<(&str, u64)> = rig.queue().stats().snapshot().counters().collect();
    assert!(counters.contains(&("flushes", 2)) && counters.contains(&("operations", 4)));

    // Two notifications before the pop: only the first counts, and not for the file.
    time.fetch_add(20 * MS, Ordering::Relaxed);
    for (head, notified, reads) in [(0, true, 2 + 8), (3, false, 2 + 8 + 1)] {
        if notified {
            rig.vq().set_notified(7 * MS);
            rig.vq().set_notified(4 * MS);
        }
        rig.offer_request(head, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        rig.queue().service(&mut engine.clone());
        time.fetch_add(MS, Ordering::Relaxed);
        engine.run_one(0);
        let mut done = Vec::new();
        rig.engine.get().reap(&mut done);
        for outcome in done {
            rig.queue()
                .complete(outcome.tag, outcome.result, &mut engine.clone());
        }
        rig.vq().publish();
        let latency = rig.queue().stats().snapshot().latency;
        assert_eq!(latency.reads.sum() / MS, reads);
    }
    assert_eq!(rig.queue().stats().snapshot().latency.file.sum() / MS, 9 + 2);
}
