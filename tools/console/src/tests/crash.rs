//! The daemon is killed between any two steps, and again while it takes over: every byte arrives once. A kill
//! is an unwinding from a named step ([`ringvirtio::steps`]); the next daemon starts from the memory as it is
//! then.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ringvirtio::steps::{Killed, arm, disarm};

use super::control::{as_a_driver, take_messages};
use super::rig::{BUFFERS, FROM_DRIVER, INPUT, OUTPUT, Rig, SIZE, TO_DRIVER, readable, writable};
use crate::Size;

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

/// Kills a daemon at each of its steps, and the next ones each a step later, until one gets through;
/// `prepare` makes the situation, `check` looks at the result.
fn at_every_step(prepare: impl Fn() -> Rig, check: impl Fn(&mut Rig, u64)) {
    let mut kills = 0;
    for first in 0.. {
        let mut rig = prepare();
        let was_killed = killed(&mut rig, first, Rig::run);
        let mut steps = 1;
        while killed(&mut rig, steps, |rig| {
            rig.open();
            rig.run();
        }) {
            steps += 1;
            kills += 1;
        }
        check(&mut rig, first);
        assert_eq!(rig.faults(), [] as [String; 0]);
        if !was_killed {
            assert!(first > 20, "only {first} steps");
            break;
        }
    }
    assert!(kills > 200, "{kills} kills");
}

#[test]
fn output_is_kept_once_whenever_the_daemon_is_killed() {
    let text: Vec<u8> = (0..64).map(|index| b'!' + index).collect();
    at_every_step(
        || {
            let mut rig = Rig::new(1);
            rig.fill(BUFFERS, &text);
            // Heads that are used again and again, as by Linux.
            for head in 0..SIZE / 2 {
                let at = BUFFERS + u64::from(head) * 8;
                rig.offer(OUTPUT, head, &[readable(at, 8)]);
            }
            rig
        },
        |rig, first| {
            assert_eq!(rig.take_used(OUTPUT).len(), 8);
            assert_eq!(rig.output(0, 0), text, "killed after {first} steps");
            rig.print(OUTPUT, b"again");
            assert_eq!(rig.output(0, 64), b"again");
        },
    );
}

/// The first bytes of a chain are appended in one round, the rest in another.
#[test]
fn a_long_chain_is_continued() {
    let bytes: Vec<u8> = (0..0x1_2000_u32).map(|index| (index / 5) as u8).collect();
    at_every_step(
        || {
            let mut rig = Rig::new(1);
            rig.fill(BUFFERS, &bytes);
            rig.offer(OUTPUT, 0, &[readable(BUFFERS, bytes.len() as u32)]);
            rig
        },
        |rig, first| {
            assert_eq!(rig.take_used(OUTPUT), [(0, 0)]);
            let kept = rig.output(0, 0);
            // A daemon that was killed while it wrote has overwritten some of the oldest.
            assert!(
                bytes.ends_with(&kept) && kept.len() > 0xd000,
                "killed after {first} steps"
            );
        },
    );
}

#[test]
fn input_is_read_once_whenever_the_daemon_is_killed() {
    at_every_step(
        || {
            let mut rig = Rig::new(1);
            rig.port(0).type_in(b"abcdefghijklmnopqrstuvwxyz");
            for head in 0..SIZE {
                rig.offer(INPUT, head, &[writable(BUFFERS + u64::from(head) * 64, 3)]);
            }
            rig
        },
        |rig, first| {
            let mut text = Vec::new();
            for (head, len) in rig.take_used(INPUT) {
                text.extend(rig.bytes(BUFFERS + u64::from(head) * 64, len as usize));
            }
            assert_eq!(text, b"abcdefghijklmnopqrstuvwxyz", "killed after {first} steps");
            rig.port(0).type_in(b"!");
            rig.run();
            assert_eq!(rig.take_used(INPUT).len(), 1);
        },
    );
}

#[test]
fn each_message_is_sent_whenever_the_daemon_is_killed() {
    at_every_step(
        || {
            let mut rig = Rig::new(2);
            as_a_driver(&mut rig);
            rig
        },
        |rig, first| {
            // Some of them twice, which changes nothing.
            let messages = take_messages(rig);
            let ports: BTreeSet<_> = messages.iter().map(|(port, event, _)| (*port, *event)).collect();
            let expected = BTreeSet::from([(0, 1), (1, 1)]);
            assert_eq!(ports, expected, "killed after {first} steps: {messages:?}");
            assert_eq!(rig.take_used(FROM_DRIVER).len(), 1);
        },
    );
    // A size that has changed is sent by the next daemon, if this one had not.
    let mut rig = Rig::new(2);
    let (columns, rows) = (132, 50);
    rig.console().set_size(1, Size { columns, rows });
    rig.open();
    rig.offer(TO_DRIVER, 0, &[writable(BUFFERS, 64)]);
    rig.run();
    assert_eq!(take_messages(&mut rig), [(1, 5, vec![132, 0, 50, 0])]);
    assert_eq!(rig.port(1).size(), Size { columns, rows });
}

/// After a reset no request from before it completes, and what was half appended is not continued.
#[test]
fn a_reset_forgets_what_was_in_flight() {
    for steps in 1..10 {
        let mut rig = Rig::new(1);
        rig.fill(BUFFERS, b"before");
        rig.offer(OUTPUT, 0, &[readable(BUFFERS, 6)]);
        assert!(killed(&mut rig, steps, Rig::run));
        rig.reset();
        rig.run();
        assert_eq!(rig.take_used(OUTPUT), []);
        rig.print(OUTPUT, b"after");
        let output = rig.output(0, 0);
        assert!(output == b"after" || output == b"beforeafter", "{output:?}");
    }
}
