//! Notifications both ways: flags, EVENT_IDX, batches, wrap-around.

use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, VIRTQ_AVAIL_F_NO_INTERRUPT, feature};

use super::rig::{ALL_FEATURES, BUFFERS, Rig, writable};
use crate::disk::EngineKind;
use crate::virtio::VIRTIO_BLK_T_GET_ID;

const DATA: u64 = BUFFERS + 0x1_0000;

fn rig(event_idx: bool) -> Rig {
    let features = ALL_FEATURES
        | if event_idx {
            feature(VIRTIO_RING_F_EVENT_IDX)
        } else {
            0
        };
    Rig::with(EngineKind::Threads, 16, features, false)
}

fn offer(rig: &mut Rig, count: u16) {
    for head in 0..count {
        rig.offer_request(head * 3, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
    }
}

fn set_used_event(rig: &Rig, value: u16) {
    rig.set_u16(rig.ring.avail.0 + 4 + 32, value);
}

fn avail_event(rig: &Rig) -> u16 {
    rig.u16_at(rig.ring.used.0 + 4 + 128)
}

// virtio-checklist 42, 43
#[test]
fn flags_decide_without_event_idx() {
    let mut rig = rig(false);
    for (round, (flags, interrupts)) in [(0, 1), (1, 1), (0, 2), (1, 2)].into_iter().enumerate() {
        rig.set_u16(rig.ring.avail.0, flags);
        // used_event, which would suppress or request each interrupt, is not negotiated.
        set_used_event(&rig, round as u16);
        offer(&mut rig, 2);
        rig.run();
        assert_eq!((rig.take_used().len(), rig.interrupt_count()), (2, interrupts));
    }
}

// virtio-checklist 44, 45
#[test]
fn used_event_decides_with_event_idx() {
    let mut rig = rig(true);
    // The driver's flag suppresses all interrupts, but is ignored.
    rig.set_u16(rig.ring.avail.0, VIRTQ_AVAIL_F_NO_INTERRUPT);
    // (used_event, requests, interrupts so far); used.idx is 0 at first.
    let rounds = [
        (0, 1, 1),
        (0, 1, 1),
        (2, 1, 2),
        (10, 4, 2),
        (10, 3, 2),
        (10, 1, 3),
        (9, 1, 3),
        (12, 4, 4),
    ];
    for (event, count, interrupts) in rounds {
        set_used_event(&rig, event);
        offer(&mut rig, count);
        rig.run();
        assert_eq!(rig.take_used().len(), usize::from(count));
        assert_eq!(
            rig.interrupt_count(),
            interrupts,
            "used_event {event}, used.idx {}",
            rig.used_idx()
        );
    }
    assert_eq!(rig.queue().stats().queue.interrupts_suppressed.get(), 4);
}

// virtio-checklist 45, 46: a batch is one publication and at most one interrupt
#[test]
fn one_interrupt_for_a_batch() {
    for event_idx in [false, true] {
        let mut rig = rig(event_idx);
        offer(&mut rig, 5);
        rig.run();
        assert_eq!((rig.take_used().len(), rig.interrupt_count()), (5, 1));
        let stats = rig.queue().stats().clone();
        assert_eq!(
            (
                stats.queue.publications.get(),
                stats.queue.batches.get(),
                stats.queue.batched.get()
            ),
            (1, 1, 5)
        );
    }
}

// virtio-checklist 48
#[test]
fn used_flags_and_avail_event() {
    let mut plain = rig(false);
    let mut event = rig(true);
    for round in 1..40_u16 {
        for rig in [&mut plain, &mut event] {
            offer(rig, 1);
            rig.run();
            rig.take_used();
            assert_eq!(rig.u16_at(rig.ring.used.0), 0, "notifications are enabled");
        }
        assert_eq!(avail_event(&event), round);
        assert_eq!(avail_event(&plain), 0);
    }
}

// virtio-checklist 49
#[test]
fn spurious_notifications() {
    let mut rig = rig(true);
    for _ in 0..10 {
        rig.run();
    }
    assert_eq!((rig.used_idx(), rig.interrupt_count()), (0, 0));
    assert_eq!(rig.queue().stats().queue.spurious_notifications.get(), 10);
    offer(&mut rig, 1);
    rig.run();
    assert_eq!(rig.take_used().len(), 1);
}

// virtio-checklist 50; torture f3: indices wrap, and a daemon is restarted on the way
#[test]
fn indices_wrap() {
    let mut rig = rig(true);
    for round in 0..70_000_u32 {
        set_used_event(&rig, rig.used_seen);
        let head = (round % 5) as u16;
        rig.offer_request(head, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
        rig.run();
        assert_eq!(rig.take_used(), [(head.into(), 21)], "round {round}");
        if round % 9973 == 0 || (65_530..65_540).contains(&round) {
            rig.reopen();
        }
    }
    assert_eq!(rig.avail_idx, (70_000_u32 % 65_536) as u16);
}

// virtio-checklist 13, 24: nothing is popped from a paused queue
#[test]
fn a_paused_queue_pops_nothing() {
    let mut rig = rig(true);
    rig.vq().paused = true;
    offer(&mut rig, 3);
    rig.run();
    assert_eq!((rig.used_idx(), rig.interrupt_count()), (0, 0));
    rig.vq().paused = false;
    rig.run();
    assert_eq!(rig.take_used().len(), 3);
}
