//! Statements of the virtio specification on queues at the transport, each under its number in
//! virtio-checklist.

use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event, Rejected};

use crate::bench::{Bench, LIVE};

// virtio-checklist 6; torture a8
#[test]
fn an_absent_queue_reads_zero_and_ignores_stores() {
    let mut bench = Bench::new();
    for (queue, max) in [(0, 256), (1, 8)] {
        bench.store_inert(reg::QUEUE_SEL, queue);
        assert_eq!(bench.read(reg::QUEUE_NUM_MAX), max);
    }
    for queue in [2, 15, 16, 0x1_0000, u32::MAX] {
        bench.store_inert(reg::QUEUE_SEL, queue);
        let before = bench.dump();
        assert_eq!(bench.read(reg::QUEUE_NUM_MAX), 0);
        for offset in (reg::QUEUE_NUM_MAX..=reg::QUEUE_READY).chain(reg::QUEUE_DESC_LOW..=reg::QUEUE_RESET) {
            for value in [0, 1, 8, 0x4000_0000] {
                bench.store_inert(offset, value);
            }
        }
        assert_eq!(bench.dump(), before);
    }
}

// virtio-checklist 7
#[test]
fn queue_ready_reads_the_last_value_written() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    assert_eq!(bench.make_ready(1, 8), Effect::default());
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    bench.store_inert(reg::QUEUE_SEL, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "each queue has its own");
    bench.store_inert(reg::QUEUE_SEL, 1);
    bench.store_inert(reg::QUEUE_READY, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    for value in [2, 3, u32::MAX] {
        bench.store_inert(reg::QUEUE_READY, value);
        assert_eq!(bench.read(reg::QUEUE_READY), 0, "{value:#x} means nothing");
    }
}

// virtio-checklist 7, 13: an active queue is stopped only when the daemon no longer uses it.
#[test]
fn queue_ready_0_waits_for_the_daemon() {
    let mut bench = Bench::active(bit::VERSION_1);
    bench.store_inert(reg::QUEUE_SEL, 1);
    let first = bench.store(reg::QUEUE_READY, 0);
    assert!(first.retry);
    assert_eq!(first.event, Some(Event::QueueStop { queue: 1 }));
    assert_eq!(
        bench.store(reg::QUEUE_READY, 0),
        Effect {
            retry: true,
            ..Effect::default()
        },
        "one event"
    );
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    assert_eq!(bench.state().queue[1].ready, 2);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    let generation = bench.state().reset_generation;
    assert_eq!(
        bench.transport.queue_quiesced(0, generation, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(
        bench.transport.queue_quiesced(1, generation + 1, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(
        bench.transport.queue_quiesced(99, generation, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(bench.transport.queue_quiesced(1, generation, &bench.page), Ok(()));
    assert_eq!(
        bench.state().queue[1].ready,
        0,
        "a new daemon does not use it either"
    );
    assert_eq!(
        bench.transport.queue_quiesced(1, generation, &bench.page),
        Err(Rejected::Stale)
    );
    bench.store_inert(reg::QUEUE_READY, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert_eq!(
        bench.store(reg::QUEUE_NOTIFY, 0).event,
        Some(Event::Notify { queue: 0 }),
        "the other one lives"
    );
    let again = bench.store(reg::QUEUE_READY, 1);
    assert_eq!(again.event, Some(Event::QueueReady { queue: 1 }));
    assert_eq!(bench.state().queue[1].desc, Bench::areas(1)[0]);
}

// virtio-checklist 13
#[test]
fn a_queue_that_is_not_ready_is_not_notified() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(0, 8);
    let _ = bench.store(reg::STATUS, LIVE);
    assert_eq!(
        bench.store(reg::QUEUE_NOTIFY, 0).event,
        Some(Event::Notify { queue: 0 })
    );
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert_eq!(bench.state().queue[1].ready, 0);
}

// virtio-checklist 19, 36
#[test]
fn queue_reset() {
    let mut bench = Bench::active(bit::VERSION_1 | bit::RING_RESET);
    bench.store_inert(reg::QUEUE_SEL, 1);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0);
    bench.store_inert(reg::QUEUE_RESET, 0);
    bench.store_inert(reg::QUEUE_RESET, 2);
    assert_eq!(
        bench.store(reg::QUEUE_RESET, 1),
        Effect {
            event: Some(Event::QueueStop { queue: 1 }),
            ..Effect::default()
        },
        "the store itself does not wait"
    );
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (1, 1),
        "as long as it lasts"
    );
    bench.store_inert(reg::QUEUE_RESET, 1);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert!(bench.store(reg::QUEUE_READY, 0).retry);
    bench.store_inert(reg::QUEUE_SEL, 0);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0, "the other queue is not");
    bench.store_inert(reg::QUEUE_SEL, 1);
    let generation = bench.state().reset_generation;
    bench
        .transport
        .queue_quiesced(1, generation, &bench.page)
        .unwrap();
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (0, 0)
    );
    bench.store_inert(reg::QUEUE_READY, 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    // Its setup is cleared: making it ready without a new one is an error, a new one works.
    let mut forgotten = Bench {
        transport: bench.transport.clone(),
        page: bench.page.clone(),
    };
    assert_eq!(
        forgotten.store(reg::QUEUE_READY, 1).event,
        Some(Event::NeedsReset)
    );
    assert_eq!(bench.make_ready(1, 4).event, Some(Event::QueueReady { queue: 1 }));
    assert_eq!(bench.state().queue[1].size, 4);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0);
}

// virtio-checklist 19
#[test]
fn queue_reset_of_a_queue_that_was_being_stopped() {
    let mut bench = Bench::active(bit::VERSION_1 | bit::RING_RESET);
    let generation = bench.state().reset_generation;
    bench.store_inert(reg::QUEUE_SEL, 0);
    let _ = bench.store(reg::QUEUE_READY, 0);
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.read(reg::QUEUE_RESET), 1);
    bench
        .transport
        .queue_quiesced(0, generation, &bench.page)
        .unwrap();
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    // After the stop and before the store is retried: at once.
    bench.store_inert(reg::QUEUE_SEL, 1);
    let _ = bench.store(reg::QUEUE_READY, 0);
    bench
        .transport
        .queue_quiesced(1, generation, &bench.page)
        .unwrap();
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (0, 0)
    );
}

// virtio-checklist 19: only if negotiated, and only for existing queues.
#[test]
fn queue_reset_not_negotiated_is_inert() {
    let mut bench = Bench::active(bit::VERSION_1);
    let before = bench.dump();
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.dump(), before);
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1 | bit::RING_RESET);
    let _ = bench.make_ready(0, 8);
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "not live: at once");
}

// virtio-checklist 22; torture a7
#[test]
fn a_ready_queue_keeps_its_size_and_addresses() {
    for active in [false, true] {
        let mut bench = Bench::new();
        bench.negotiate(bit::VERSION_1);
        let _ = bench.make_ready(0, 8);
        if active {
            let _ = bench.store(reg::STATUS, LIVE);
        }
        bench.set_up(0, 16, [0x4010_0000, 0, u64::MAX]);
        bench.store_inert(reg::QUEUE_READY, 1);
        if !active {
            let _ = bench.store(reg::STATUS, LIVE);
        }
        let queue = bench.state().queue[0];
        assert_eq!((queue.size, queue.ready), (8, 1));
        assert_eq!([queue.desc, queue.driver, queue.device], Bench::areas(0));
    }
}
