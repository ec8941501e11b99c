//! Busy polling before the reactor sleeps: events and requests that arrive meanwhile are served, also without
//! a notification, and polling in vain is bounded.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringvirtio::throttle::{Rate, RateLimits};
use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::waiter::eventfd;
use ringvirtio::{QueueId, ReactorOptions, ReadWidth};

use super::rig::{ALL_FEATURES, BUFFERS, Rig, open_soon, writable};
use super::service::{Peer, PeerSource, Running, TEST_TIMEOUT, collect, own_queue, peer_of, queue};
use crate::disk::EngineKind;
use crate::virtio::VIRTIO_BLK_T_IN;

const DATA: u64 = BUFFERS + 0x1_0000;

/// Notifies if notifications are enabled, as a driver does, and returns whether it did.
fn notify_if_wanted(rig: &Rig, peer: &Peer, id: QueueId, event: &OwnedFd) -> bool {
    // The driver's side of virtio 1.2, 2.7.10: the store of avail.idx is visible before the load of the flag.
    std::sync::atomic::fence(Ordering::SeqCst);
    let wanted = rig.notification_wanted();
    if wanted {
        peer.notify(id, event);
    }
    wanted
}

// Short sleeps make the reactor busy-poll before the next one. Work that arrives meanwhile, from the peer,
// from a file or by message, is served without a wake-up.
#[test]
fn work_that_comes_during_a_busy_poll() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let reactor = Running::never_sleeping();
        let peer = Arc::new(Peer::default());
        let event = eventfd().unwrap();
        let mut writer = std::fs::File::from(event.try_clone().unwrap());
        reactor
            .handle
            .add_event_source(event, ReadWidth::Eight, Box::new(PeerSource(peer.clone())));
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        // Without messages the reactor sleeps until it is woken; a single short sleep enables busy polling.
        for count in 1..=3 {
            std::io::Write::write_all(&mut writer, &1_u64.to_ne_bytes()).unwrap();
            let deadline = Instant::now() + TEST_TIMEOUT;
            while peer.wakeups.load(Ordering::Relaxed) < count {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let arming = peer.arming.load(Ordering::Relaxed);
        for round in 0..100_u64 {
            // The longer one exceeds what is copied inline.
            let length = if round % 2 == 0 { 512 } else { 128 << 10 };
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, length)));
            match round % 3 {
                0 => reactor.handle.schedule(id),
                1 => peer.notified.lock().unwrap().push(id),
                // Found in the available ring alone: notifications are disabled.
                _ => assert!(!rig.notification_wanted()),
            }
            collect(&mut rig, &interrupts, 1);
        }
        reactor.quiesce(id);
        assert_eq!(
            peer.arming.load(Ordering::Relaxed),
            arming,
            "the reactor has slept"
        );
    }
}

// No busy polling while a driver has a backlog: after each sleep several requests are available.
#[test]
fn no_busy_polling_with_a_backlog() {
    for features in [ALL_FEATURES, ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX)] {
        let reactor = Running::never_sleeping();
        let (peer, event) = peer_of(&reactor);
        let mut rig = Rig::closed(EngineKind::IoUring, 64, features, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        for _ in 0..10 {
            for count in [1, 2, 3] {
                reactor.quiesce(id);
                for head in 0..count {
                    rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
                }
                reactor.resume(id);
                collect(&mut rig, &interrupts, count.into());
                rig.request_interrupt();
            }
            // The reactor goes to sleep with notifications enabled.
            let deadline = Instant::now() + TEST_TIMEOUT;
            while !rig.next_notification_wanted() {
                assert!(Instant::now() < deadline, "the reactor busy-polls");
                std::thread::yield_now();
            }
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
            peer.notify(id, &event);
            collect(&mut rig, &interrupts, 1);
            rig.request_interrupt();
        }
    }
}

// What counts as a backlog: completions published together, a request in flight, completions that the driver
// has not handled.
#[test]
fn what_a_backlog_is() {
    let features = ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);
    let mut rig = Rig::with(EngineKind::Threads, 64, features, false);
    let mut served = |count: u16, awaits: bool| {
        if awaits {
            rig.take_used();
            rig.request_interrupt();
        }
        for head in 0..count {
            rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        }
        rig.run();
        rig.vq().take_backlog().unwrap()
    };
    assert!(!served(1, true));
    assert!(served(2, true));
    assert!(!served(1, true));
    for _ in 1..64 {
        assert!(served(1, false), "the driver still handles earlier completions");
    }
    assert!(
        !served(1, false),
        "the driver has not requested an interrupt for long"
    );
    assert!(served(2, false));
    assert!(!served(1, true) && served(1, false));

    // Two requests: one is published while the other is in flight, as far as the queue knows.
    rig.take_used();
    rig.request_interrupt();
    for head in 0..2 {
        rig.offer_request(
            head * 3,
            VIRTIO_BLK_T_IN,
            u64::from(head) * 16,
            Some(writable(DATA, 512)),
        );
    }
    let (queue, engine) = (rig.queue.as_mut().unwrap(), &mut rig.engine);
    queue.service(engine.get());
    let mut done = Vec::new();
    engine.wait(&mut done);
    let first = done.remove(0);
    queue.complete(first.tag, first.result, engine.get());
    assert_eq!(queue.queue.publish(), 1);
    assert_eq!(
        (queue.queue.take_backlog(), queue.queue.in_flight()),
        (Some(true), 1)
    );
    if done.is_empty() {
        engine.wait(&mut done);
    }
    queue.complete(done[0].tag, done[0].result, engine.get());
    assert_eq!((queue.queue.publish(), queue.queue.in_flight()), (1, 0));
}

// A driver that notifies only while notifications are enabled, at varying times around the moment when the
// reactor stops polling and sleeps: no request is missed, and some notifications are saved.
#[test]
fn notifications_are_saved_and_none_is_missed() {
    for features in [ALL_FEATURES, ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX)] {
        let reactor = Running::with(ReactorOptions {
            poll: Duration::from_millis(4),
            ..ReactorOptions::default()
        });
        let (peer, event) = peer_of(&reactor);
        let mut rig = Rig::closed(EngineKind::IoUring, 64, features, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        let (mut saved, mut round) = (0, 0_u64);
        let deadline = Instant::now() + TEST_TIMEOUT;
        // On a busy host each sleep may be too long to enable busy polling, so the pauses get shorter and
        // shorter.
        while round < 300 || saved == 0 {
            assert!(
                round < 300 || Instant::now() < deadline,
                "every request was notified"
            );
            round += 1;
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
            saved += u32::from(!notify_if_wanted(&rig, &peer, id, &event));
            collect(&mut rig, &interrupts, 1);
            rig.request_interrupt();
            std::thread::sleep(Duration::from_micros(round * 370 % 6000 * 300 / round.max(300)));
        }
    }
}

// The same with two queues that are quiesced and resumed, with and without limits, in random order.
#[test]
fn notifications_with_queues_that_change() {
    let reactor = Running::with(ReactorOptions {
        poll: Duration::from_millis(2),
        ..ReactorOptions::default()
    });
    let (peer, event) = peer_of(&reactor);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut queues: Vec<_> = (0..2)
        .map(|_| {
            let rig = Rig::closed(EngineKind::IoUring, 64, ALL_FEATURES, false);
            let disk = open_soon(&rig.config);
            let (queue, interrupts) = queue(&rig, disk.clone());
            (rig, disk, reactor.handle.add(queue), interrupts)
        })
        .collect();
    let (mut saved, mut round) = (0, 0);
    let deadline = Instant::now() + TEST_TIMEOUT;
    while round < 400 || saved == 0 {
        assert!(
            round < 400 || Instant::now() < deadline,
            "every request was notified"
        );
        round += 1;
        let (rig, disk, id, interrupts) = &mut queues[random(2) as usize];
        let stopped = match random(8) {
            0 => {
                reactor.quiesce(*id);
                true
            }
            1 => {
                let rate = [0, 500, 2000][random(3) as usize];
                disk.control().throttle.set_limits(RateLimits {
                    iops: Rate {
                        rate,
                        burst: rate.min(1),
                    },
                    ..RateLimits::default()
                });
                false
            }
            _ => false,
        };
        let count = 1 + random(3) as u16;
        for head in 0..count {
            rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        }
        saved += u32::from(!notify_if_wanted(rig, &peer, *id, &event));
        if stopped {
            std::thread::sleep(Duration::from_micros(random(4000)));
            assert!(
                rig.take_used().is_empty(),
                "served in round {round} though stopped"
            );
            reactor.resume(*id);
        }
        collect(rig, interrupts, count.into());
        std::thread::sleep(Duration::from_micros(random(3000) * 400 / round.max(400)));
    }
}

// A request held back by a limit is due at a known time: the reactor sleeps until then, however short that
// is.
#[test]
fn a_limit_is_slept_for() {
    let reactor = Running::with(ReactorOptions::default());
    let peer = Arc::new(Peer::default());
    reactor.handle.add_event_source(
        eventfd().unwrap(),
        ReadWidth::Eight,
        Box::new(PeerSource(peer.clone())),
    );
    let mut rig = Rig::closed(EngineKind::IoUring, 256, ALL_FEATURES, false);
    let disk = open_soon(&rig.config);
    disk.control().throttle.set_limits(RateLimits {
        iops: Rate { rate: 3000, burst: 1 },
        ..RateLimits::default()
    });
    let (queue, interrupts) = queue(&rig, disk);
    let id = reactor.handle.add(queue);
    let start = Instant::now();
    for _ in 0..10 {
        for head in 0..60 {
            rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        }
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 60);
    }
    let (whole, polled) = (start.elapsed(), peer.busy_polled.load(Ordering::Relaxed));
    let polled = Duration::from_nanos(polled);
    assert!(polled < whole / 8, "busy-polled for {polled:?} of {whole:?}");
}

// Removed queues are not polled: the reactor asserts that its list has no more queues than exist.
#[test]
fn queues_that_come_and_go() {
    let reactor = Running::never_sleeping();
    for _ in 0..50 {
        let mut rig = Rig::closed(EngineKind::IoUring, 64, ALL_FEATURES, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        reactor.remove(id);
    }
}
