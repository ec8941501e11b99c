//! A reactor that looks on before it sleeps: what comes meanwhile is served, drivers that are asked for no
//! notification are heard, and nobody looks in vain for long.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringvirtio::throttle::{Rate, RateLimits};
use ringvirtio::virtio::*;
use ringvirtio::waiter::eventfd;
use ringvirtio::{QueueId, ReactorOptions, ReadWidth};

use super::rig::*;
use super::service::{PATIENCE, Peer, PeerSource, Running, collect, own_queue, peer_of, queue};
use crate::disk::EngineKind;
use crate::virtio::*;

const DATA: u64 = BUFFERS + 0x1_0000;

/// A driver that notifies when it is asked to: whether it was.
fn notify_if_wanted(rig: &Rig, peer: &Peer, id: QueueId, event: &OwnedFd) -> bool {
    // The driver's half of 2.7.10: what was made available is visible before it reads whether to notify.
    std::sync::atomic::fence(Ordering::SeqCst);
    let wanted = rig.notification_wanted();
    if wanted {
        peer.notify(id, event);
    }
    wanted
}

// Short sleeps make the reactor busy-poll before the next; what comes meanwhile, from the peer, from a file
// or by message, is served without a wake-up.
#[test]
fn work_that_comes_during_a_busy_poll() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let reactor = Running::for_hours();
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
        // From here on there are no messages: it sleeps until it is woken, and once is enough.
        for count in 1..=3 {
            std::io::Write::write_all(&mut writer, &1_u64.to_ne_bytes()).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while peer.wakeups.load(Ordering::Relaxed) < count {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let arming = peer.arming.load(Ordering::Relaxed);
        for round in 0..100_u64 {
            // The longer is more than is copied in place.
            let length = if round % 2 == 0 { 512 } else { 128 << 10 };
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, length)));
            match round % 3 {
                0 => reactor.handle.schedule(id),
                1 => peer.notified.lock().unwrap().push(id),
                // By the available ring alone: notifications are disabled meanwhile.
                _ => assert!(!rig.notification_wanted()),
            }
            collect(&mut rig, &interrupts, 1);
        }
        reactor.quiesce(id);
        assert_eq!(peer.arming.load(Ordering::Relaxed), arming, "it never slept");
    }
}

// While a driver has a backlog there is no busy polling: after a sleep, the reactor finds more requests at
// once.
#[test]
fn no_busy_polling_with_a_backlog() {
    for features in [ALL_FEATURES, ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX)] {
        let reactor = Running::for_hours();
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
                reactor.handle.resume(id);
                collect(&mut rig, &interrupts, count.into());
                rig.await_interrupt();
            }
            // It goes to sleep with notifications enabled.
            let deadline = Instant::now() + PATIENCE;
            while !rig.next_notification_wanted() {
                assert!(Instant::now() < deadline, "it busy-polls");
                std::thread::yield_now();
            }
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
            peer.notify(id, &event);
            collect(&mut rig, &interrupts, 1);
            rig.await_interrupt();
        }
    }
}

// What counts as a backlog: requests published together, one in flight, completions that the driver has not
// handled yet.
#[test]
fn what_a_backlog_is() {
    let features = ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);
    let mut rig = Rig::with(EngineKind::Threads, 64, features, false);
    let mut served = |count: u16, awaits: bool| {
        if awaits {
            rig.take_used();
            rig.await_interrupt();
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
        assert!(served(1, false), "it still handles the completions before");
    }
    assert!(!served(1, false), "it has not wanted an interrupt for long");
    assert!(served(2, false));
    assert!(!served(1, true) && served(1, false));

    // Two, of which one is published while the other runs, as far as the queue knows.
    rig.take_used();
    rig.await_interrupt();
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
    assert_eq!(queue.virtqueue_mut().publish(), 1);
    assert_eq!(
        (
            queue.virtqueue_mut().take_backlog(),
            queue.virtqueue_mut().in_flight()
        ),
        (Some(true), 1)
    );
    if done.is_empty() {
        engine.wait(&mut done);
    }
    queue.complete(done[0].tag, done[0].result, engine.get());
    assert_eq!(
        (queue.virtqueue_mut().publish(), queue.virtqueue_mut().in_flight()),
        (1, 0)
    );
}

// A driver that notifies only when it is asked to, at all distances from the moment when the reactor stops
// looking and falls asleep: none of its requests is missed, and some notifications are saved.
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
        let mut saved = 0;
        for round in 0..300_u64 {
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
            saved += u32::from(!notify_if_wanted(&rig, &peer, id, &event));
            collect(&mut rig, &interrupts, 1);
            rig.await_interrupt();
            std::thread::sleep(Duration::from_micros(round * 370 % 6000));
        }
        assert!(saved > 0, "every request was notified");
    }
}

// The same with two queues that are stopped and let go on, limited and not, and that come and go, in a random
// order.
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
    let deadline = Instant::now() + PATIENCE;
    // A busy host may let the reactor sleep for so long each time that it does not look on: then with less
    // and less between.
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
            reactor.handle.resume(*id);
        }
        collect(rig, interrupts, count.into());
        std::thread::sleep(Duration::from_micros(random(3000) * 400 / round.max(400)));
    }
}

// What a limit keeps waiting comes at a known moment: it is slept for, however short the sleeps are.
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
    let (whole, looked) = (start.elapsed(), peer.busy_polled.load(Ordering::Relaxed));
    let looked = Duration::from_nanos(looked);
    assert!(looked < whole / 8, "looked on for {looked:?} of {whole:?}");
}

// Queues that have gone are not looked at: the reactor asserts that it has no more of them on its list than
// there are.
#[test]
fn queues_that_come_and_go() {
    let reactor = Running::for_hours();
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
