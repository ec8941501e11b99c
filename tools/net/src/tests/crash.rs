//! The daemon is killed between any two steps, and again while it takes over. A kill is an unwinding from a
//! named step ([`ringvirtio::steps`]); the next daemon starts from the memory as it is then.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringvirtio::steps::{Killed, arm, disarm};

use super::rig::{FEATURES, FakePort, MAC, RX, Rig, SIZE, TX, frame};
use crate::Offloads;
use crate::port::HEADER;

/// Runs `work` and kills it after `steps` steps. Returns whether it ran that far.
fn killed(rig: &mut Rig, steps: u64, work: impl FnOnce(&mut Rig)) -> bool {
    arm(steps);
    let result = catch_unwind(AssertUnwindSafe(|| work(rig)));
    let alive = disarm();
    if let Err(panic) = result {
        assert!(panic.is::<Killed>(), "a panic other than a kill");
        return true;
    }
    assert!(alive);
    false
}

/// Kills the daemon after `first` steps, then its successors, each a step later, until one has done
/// everything. Returns how often, and whether the first one was killed.
fn kill_repeatedly(rig: &mut Rig, first: u64) -> (u64, bool) {
    let was_killed = killed(rig, first, Rig::run);
    let mut steps = 1;
    while killed(rig, steps, |rig| {
        rig.open();
        rig.run();
    }) {
        steps += 1;
    }
    (steps, was_killed)
}

/// Every packet is sent, in order; one that was sent and not logged is sent again, before all others. Each
/// descriptor is used once.
// torture k2
#[test]
fn packets_are_sent_in_order_whenever_the_daemon_is_killed() {
    let mut kills = 0;
    for first in 0.. {
        let mut rig = Rig::new();
        let frames: Vec<_> = (0..SIZE).map(|head| frame(MAC, 60, head as u8)).collect();
        for (head, frame) in frames.iter().enumerate() {
            rig.send(head as u16, frame);
        }
        let (count, was_killed) = kill_repeatedly(&mut rig, first);
        kills += count;
        let mut sent = rig.port.sent();
        sent.dedup();
        assert!(sent == frames, "killed after {first} steps");
        let used: Vec<_> = rig.take_used(TX);
        assert_eq!(used, (0..SIZE.into()).map(|head| (head, 0)).collect::<Vec<_>>());
        assert_eq!(rig.faults(), [] as [String; 0]);
        if !was_killed {
            assert!(first > 50, "only {first} steps");
            break;
        }
    }
    assert!(kills > 500, "{kills} kills");
}

fn numbered(number: u16) -> Vec<u8> {
    let mut frame = frame(MAC, 80, number as u8);
    frame[6..8].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Received packets are whole and in order, none twice; those that a killed daemon had and did not publish
/// are lost, and no buffer is.
// torture k2
#[test]
fn received_packets_are_whole_whenever_the_daemon_is_killed() {
    for first in 0.. {
        let mut rig = Rig::with(FakePort::new(1, Offloads::default()), FEATURES);
        // Two buffers for each packet.
        for head in 0..SIZE {
            rig.supply(head, 60);
        }
        let frames: Vec<_> = (0..400).map(numbered).collect();
        let (last, before) = frames.split_at(8);
        before.iter().for_each(|frame| rig.port.arrive(0, frame));
        let (_, was_killed) = kill_repeatedly(&mut rig, first);
        let used = rig.take_used(RX);
        let mut received = rig.packets(&used);
        // The last daemon, which was not killed, has all buffers.
        for (head, _) in used {
            rig.supply(head as u16, 60);
        }
        rig.port.state().arriving[0].clear();
        last.iter().for_each(|frame| rig.port.arrive(0, frame));
        rig.run();
        let rest = rig.received();
        assert_eq!(rest.len(), 8, "killed after {first} steps: buffers were lost");
        received.extend(rest);
        let mut all = before.iter().chain(last);
        for packet in &received {
            assert_eq!(packet[HEADER - 2..HEADER], [2, 0]);
            let found = all.any(|frame| *frame == packet[HEADER..]);
            assert!(
                found,
                "killed after {first} steps: a packet twice, torn or out of order"
            );
        }
        assert_eq!(rig.faults(), [] as [String; 0]);
        if !was_killed {
            assert!(first > 50, "only {first} steps");
            break;
        }
    }
}

/// After a reset the driver has its buffers back: nothing is received into them.
// torture k2
#[test]
fn a_reset_forgets_buffers() {
    for first in (0..).step_by(5) {
        let mut rig = Rig::new();
        for head in 0..SIZE {
            rig.supply(head, 60);
        }
        rig.port.arrive(0, &frame(MAC, 60, 1));
        let was_killed = killed(&mut rig, first, Rig::run);
        rig.reset();
        rig.port.state().arriving[0].clear();
        let before = rig.bytes(Rig::buffer(0), 0x10_0000);
        rig.port.arrive(0, &frame(MAC, 60, 2));
        rig.run();
        assert_eq!(rig.take_used(RX), []);
        assert!(rig.bytes(Rig::buffer(0), 0x10_0000) == before);
        rig.supply(5, 2000);
        rig.run();
        assert_eq!(rig.received()[0][HEADER..], frame(MAC, 60, 2));
        if !was_killed {
            assert!(first > 50, "only {first} steps");
            break;
        }
    }
}
