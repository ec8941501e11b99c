//! Interrupt coalescing: which used buffer notifications are deferred, for how long, and that none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use ringvirtio::clock::Clock;
use ringvirtio::throttle::{Rate, RateLimits};
use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, VIRTQ_AVAIL_F_NO_INTERRUPT, feature};

use super::rig::{ALL_FEATURES, BUFFERS, ENGINES, Rig, writable};
use super::service::{Resubmitter, Running, TEST_TIMEOUT, own_queue};
use crate::disk::EngineKind;
use crate::queue::BlockQueue;
use crate::stats::BlockStats;
use crate::virtio::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};

const DATA: u64 = BUFFERS + 0x1_0000;
const EVENT_IDX: u64 = ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);

/// Returns a queue driven by hand, whose available ring is polled, and its manual clock.
fn timed(features: u64) -> (Rig, Arc<AtomicU64>) {
    let mut rig = Rig::with(EngineKind::Threads, 128, features, false);
    let time = Arc::new(AtomicU64::new(0));
    rig.vq().clock = Clock::Manual(time.clone());
    rig.vq().set_polled(true);
    (rig, time)
}

fn polled(features: u64) -> Rig {
    timed(features).0
}

/// Offers requests that complete as soon as they are popped.
fn offer(rig: &mut Rig, count: u16) {
    for _ in 0..count {
        let head = rig.avail_idx % 42 * 3;
        rig.offer_request(head, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
    }
}

/// Runs one round: services the available requests, and offers `more` before it publishes.
fn round(rig: &mut Rig, more: u16) {
    let (queue, engine) = (rig.queue.as_mut().unwrap(), &mut rig.engine);
    queue.service(engine.get());
    offer(rig, more);
    rig.vq().publish();
}

/// Returns the interrupts so far, and whether one is pending.
fn interrupts(rig: &mut Rig) -> (usize, bool) {
    (rig.interrupt_count(), rig.vq().interrupt_due().is_some())
}

/// Raises the batch target to `depth`, a power of two, with that many outstanding requests. One is left in
/// the available ring.
fn raise_batch_target(rig: &mut Rig, depth: u16) {
    let mut target = 1;
    while target < depth {
        let left = rig.vq().outstanding();
        offer(rig, target - left);
        round(rig, 1);
        assert_eq!(rig.vq().interrupt_due(), None);
        rig.take_used();
        rig.request_interrupt();
        target *= 2;
    }
}

// virtio-checklist 45, 46: a driver with one request outstanding gets an interrupt for each immediately; one
// with several, one for all of them; with fewer than before, one for those that are outstanding.
#[test]
fn one_interrupt_for_all_that_the_driver_has_outstanding() {
    for features in [ALL_FEATURES, EVENT_IDX] {
        let mut rig = polled(features);
        let mut step = |offered: u16, more: u16| {
            rig.request_interrupt();
            offer(&mut rig, offered);
            round(&mut rig, more);
            rig.take_used();
            interrupts(&mut rig)
        };
        assert_eq!(step(1, 0), (1, false));
        assert_eq!(step(1, 0), (2, false));
        // The driver submits the next request before this one completes.
        assert_eq!(step(1, 1), (3, false));
        assert_eq!(step(0, 1), (3, true), "one of two");
        assert_eq!(step(0, 0), (4, false), "two of two");
        assert_eq!(step(1, 0), (4, true));
        rig.vq().signal_overdue();
        assert_eq!(interrupts(&mut rig), (5, false), "the second did not come");
        rig.vq().signal_overdue();
        rig.request_interrupt();
        offer(&mut rig, 1);
        round(&mut rig, 0);
        assert_eq!(interrupts(&mut rig), (6, false), "and is no longer waited for");
        let stats = rig.queue().stats().clone();
        assert_eq!(
            (
                stats.queue.publications.get(),
                stats.queue.interrupts_coalesced.get()
            ),
            (7, 2)
        );
    }
}

// An early used buffer notification leaves the batch target unchanged; completions of fewer requests without
// polling lower it.
#[test]
fn early_interrupts_keep_the_batch_target() {
    let mut rig = polled(ALL_FEATURES);
    raise_batch_target(&mut rig, 4);
    round(&mut rig, 0);
    rig.vq().signal();
    offer(&mut rig, 1);
    round(&mut rig, 0);
    assert!(interrupts(&mut rig).1, "the batch target is still four");
    rig.vq().signal();
    for waits in [true, false] {
        rig.vq().set_polled(false);
        offer(&mut rig, 1);
        round(&mut rig, 0);
        rig.vq().set_polled(true);
        offer(&mut rig, 1);
        round(&mut rig, 0);
        assert_eq!(interrupts(&mut rig).1, waits);
        rig.vq().signal();
    }
}

// Requests in flight say nothing about how many the driver submits while others complete.
#[test]
fn requests_in_flight_keep_the_batch_target() {
    for runs in [false, true] {
        let mut rig = polled(ALL_FEATURES);
        offer(&mut rig, 1);
        if runs {
            rig.offer_request(120, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        }
        round(&mut rig, u16::from(!runs));
        assert_eq!(interrupts(&mut rig), (1, false));
        finish(&mut rig);
        round(&mut rig, 0);
        assert_eq!(interrupts(&mut rig).1, !runs);
    }
}

// A driver that polls the used ring needs no interrupt, however fast it submits again.
#[test]
fn a_driver_that_polls_is_not_waited_for() {
    let mut rig = polled(ALL_FEATURES);
    rig.set_u16(rig.ring.avail.0, VIRTQ_AVAIL_F_NO_INTERRUPT);
    offer(&mut rig, 1);
    for _ in 0..200 {
        round(&mut rig, 1);
        assert_eq!(interrupts(&mut rig), (0, false));
    }
    assert_eq!(rig.vq().take_backlog(), Some(false));
    rig.set_u16(rig.ring.avail.0, 0);
    round(&mut rig, 0);
    assert_eq!(interrupts(&mut rig), (1, false));
}

// Interrupts that the driver suppresses are not deferred, since it will poll; a flush is urgent, requests
// after it are not.
#[test]
fn urgent_interrupts_are_not_deferred() {
    let mut rig = polled(ALL_FEATURES);
    raise_batch_target(&mut rig, 4);
    let raised = rig.interrupt_count();
    rig.set_u16(rig.ring.avail.0, VIRTQ_AVAIL_F_NO_INTERRUPT);
    round(&mut rig, 0);
    assert_eq!(interrupts(&mut rig), (raised, false));
    rig.set_u16(rig.ring.avail.0, 0);
    rig.offer_request(120, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.run();
    assert_eq!(interrupts(&mut rig), (raised + 1, false));
    offer(&mut rig, 1);
    round(&mut rig, 0);
    assert_eq!(interrupts(&mut rig), (raised + 1, true));
}

// The wait for the next publication is a multiple of the intervals between the last ones, and the wait of the
// first completion is bounded.
#[test]
fn how_long_an_interrupt_is_deferred() {
    const US: u64 = 1000;
    for (pace, wait, publications) in [(1, 4, 31), (10, 40, 31), (40, 50, 12), (90, 50, 0)] {
        let (mut rig, time) = timed(ALL_FEATURES);
        raise_batch_target(&mut rig, 32);
        for _ in 0..40 {
            round(&mut rig, 1);
            rig.vq().signal();
            time.fetch_add(pace * US, Ordering::Relaxed);
        }
        let start = time.load(Ordering::Relaxed);
        let mut waited = 0;
        for _ in 0..31 {
            round(&mut rig, 1);
            let now = time.load(Ordering::Relaxed);
            let due = rig.vq().interrupt_due().unwrap();
            assert_eq!(
                due.div_ceil(US),
                (now / US + wait).min(start / US + 500),
                "{pace}"
            );
            if due < now + pace * US {
                break;
            }
            waited += 1;
            time.fetch_add(pace * US, Ordering::Relaxed);
        }
        assert_eq!(waited, publications, "{pace}");
    }
}

// virtio-checklist 50: indices wrap while an interrupt is pending.
#[test]
fn indices_wrap() {
    let mut rig = polled(EVENT_IDX);
    raise_batch_target(&mut rig, 2);
    round(&mut rig, 0);
    let mut raised = rig.interrupt_count();
    for pair in 0..40_000 {
        assert_eq!(interrupts(&mut rig), (raised, true), "pair {pair}");
        if pair % 2 == 0 {
            // The driver has taken some of the pending completions.
            rig.take_used();
            rig.request_interrupt();
        }
        offer(&mut rig, 1);
        round(&mut rig, 0);
        raised += 1;
        assert_eq!(interrupts(&mut rig), (raised, false), "pair {pair}");
        rig.take_used();
        rig.request_interrupt();
        offer(&mut rig, 1);
        round(&mut rig, 0);
    }
}

// virtio-checklist 13: a quiesced queue has no interrupt pending.
#[test]
fn a_quiesced_queue_has_no_interrupt_pending() {
    let mut rig = polled(ALL_FEATURES);
    raise_batch_target(&mut rig, 2);
    round(&mut rig, 0);
    let (raised, pending) = interrupts(&mut rig);
    assert!(pending);
    rig.vq().paused = true;
    rig.vq().publish();
    assert_eq!(interrupts(&mut rig), (raised + 1, false));
}

#[test]
fn at_most_thirty_two_completions_per_interrupt() {
    let mut rig = polled(ALL_FEATURES);
    raise_batch_target(&mut rig, 64);
    let before = rig.interrupt_count();
    for count in 1..=64 {
        round(&mut rig, 0);
        assert_eq!(
            rig.interrupt_count() - before,
            count / 32,
            "after {count} requests"
        );
        offer(&mut rig, 1);
    }
}

// used_event is read when the interrupt is due: a driver that has polled the used ring meanwhile needs none.
#[test]
fn a_driver_that_has_polled_gets_none() {
    for polls in [false, true] {
        let mut rig = polled(EVENT_IDX);
        raise_batch_target(&mut rig, 2);
        let before = rig.interrupt_count();
        round(&mut rig, 0);
        assert_eq!(interrupts(&mut rig), (before, true));
        if polls {
            rig.take_used();
            rig.request_interrupt();
        }
        rig.vq().signal_overdue();
        assert_eq!(interrupts(&mut rig), (before + usize::from(!polls), false));
    }
}

/// Completes all requests in flight.
fn finish(rig: &mut Rig) {
    let (queue, engine) = (rig.queue.as_mut().unwrap(), &mut rig.engine);
    let mut done = Vec::new();
    while queue.queue.in_flight() > 0 {
        engine.wait(&mut done);
        for completion in done.drain(..) {
            queue.complete(completion.tag, completion.result, engine.get());
        }
    }
}

/// Returns whether the interrupt for a request is deferred with a batch target of four. `before` runs before
/// the request is popped, `between` before it is published.
fn waits(before: impl FnOnce(&mut Rig), between: impl FnOnce(&mut Rig)) -> bool {
    let mut rig = polled(ALL_FEATURES);
    raise_batch_target(&mut rig, 4);
    before(&mut rig);
    let (queue, engine) = (rig.queue.as_mut().unwrap(), &mut rig.engine);
    queue.service(engine.get());
    between(&mut rig);
    assert!((1..4).contains(&rig.vq().publish()));
    let waits = rig.vq().interrupt_due().is_some();
    finish(&mut rig);
    waits
}

#[test]
fn only_requests_that_can_complete_now_are_waited_for() {
    let reads = |rig: &mut Rig| {
        for head in [117, 120] {
            rig.offer_request(head, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        }
    };
    let limit = |rig: &mut Rig, burst: u64| {
        let iops = Rate { rate: 1, burst };
        let limits = RateLimits {
            iops,
            ..RateLimits::default()
        };
        rig.queue().disk().control().throttle.set_limits(limits);
        reads(rig);
    };
    assert!(waits(|_| {}, |_| {}));
    assert!(
        !waits(|rig| rig.vq().set_polled(false), |_| {}),
        "the driver notifies the next one"
    );
    assert!(!waits(reads, |_| {}), "they are in flight");
    let flush = |rig: &mut Rig| {
        rig.offer_request(120, VIRTIO_BLK_T_FLUSH, 0, None);
    };
    assert!(!waits(flush, finish), "there was a flush");
    assert!(waits(|rig| limit(rig, 3), finish), "the limit admits all three");
    assert!(!waits(|rig| limit(rig, 2), finish), "the limit holds one back");
    assert!(
        !waits(|_| {}, |rig| rig.vq().paused = true),
        "the queue is paused"
    );
}

/// Returns a queue with a batch target of two and one request in its available ring, its interrupts, and its
/// counters.
fn with_batch_target_two(rig: &mut Rig) -> (Box<BlockQueue>, Receiver<()>, Arc<BlockStats>) {
    let (queue, interrupts) = own_queue(rig);
    let stats = queue.stats().clone();
    rig.queue = Some(*queue);
    rig.vq().set_polled(true);
    raise_batch_target(rig, 2);
    while interrupts.try_recv().is_ok() {}
    (Box::new(rig.queue.take().unwrap()), interrupts, stats)
}

#[test]
fn a_deferred_interrupt_is_raised_when_no_request_follows() {
    for engine in ENGINES {
        let reactor = Running::busy_polling();
        let mut rig = Rig::closed(engine, 128, ALL_FEATURES, false);
        let (queue, interrupts, stats) = with_batch_target_two(&mut rig);
        assert_eq!(stats.queue.interrupts_coalesced.get(), 0);
        let id = reactor.handle.add(queue);
        interrupts.recv_timeout(TEST_TIMEOUT).expect("an interrupt");
        offer(&mut rig, 1);
        reactor.handle.schedule(id);
        interrupts.recv_timeout(TEST_TIMEOUT).expect("an interrupt");
        reactor.quiesce(id);
        assert_eq!(
            stats.queue.interrupts_coalesced.get(),
            1,
            "only the first was deferred"
        );
        assert!(interrupts.try_recv().is_err(), "one for each");
    }
}

// Work of other queues does not delay it further.
#[test]
fn a_deferred_interrupt_is_raised_beside_a_busy_queue() {
    let reactor = Running::busy_polling();
    Resubmitter::add(&reactor);
    let mut rig = Rig::closed(EngineKind::IoUring, 128, ALL_FEATURES, false);
    let (queue, interrupts, stats) = with_batch_target_two(&mut rig);
    let id = reactor.handle.add(queue);
    interrupts.recv_timeout(TEST_TIMEOUT).expect("an interrupt");
    reactor.quiesce(id);
    assert_eq!(stats.queue.interrupts_coalesced.get(), 1);
}
