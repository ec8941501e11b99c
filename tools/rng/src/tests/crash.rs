//! The daemon is killed between any two steps, and again while it takes over: each request completes exactly
//! once. A kill is an unwinding from a named step ([`ringvirtio::steps`]); the next daemon starts from the
//! memory as it is then.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringvirtio::steps::{Killed, arm, disarm};

use super::rig::{BUFFERS, Rig, SIZE, counting, writable};

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

fn buffer(head: u16) -> u64 {
    BUFFERS + u64::from(head) * 64
}

#[test]
fn each_request_completes_once_whenever_the_daemon_is_killed() {
    let mut kills = 0;
    for first in 0.. {
        let mut rig = Rig::new(counting());
        for head in 0..SIZE {
            rig.offer(head, &[writable(buffer(head), 32)]);
        }
        let was_killed = killed(&mut rig, first, Rig::run);
        // Killed repeatedly, each time a step later, until a daemon completes the requests.
        let mut steps = 1;
        while killed(&mut rig, steps, |rig| {
            rig.open();
            rig.run();
        }) {
            steps += 1;
            kills += 1;
        }
        let mut used = rig.take_used();
        used.sort_unstable();
        let expected: Vec<(u32, u32)> = (0..SIZE.into()).map(|head| (head, 32)).collect();
        assert_eq!(used, expected, "killed after {first} steps");
        for head in 0..SIZE {
            let bytes = rig.bytes(buffer(head), 64);
            assert!(bytes[..32].iter().all(|byte| *byte != 0 && *byte == bytes[0]));
            assert_eq!(bytes[32..], [0; 32]);
        }
        assert_eq!(rig.faults(), [] as [String; 0]);
        assert!(rig.interrupts() > 0);
        if !was_killed {
            assert!(first > 50, "only {first} steps");
            break;
        }
    }
    assert!(kills > 500, "{kills} kills");
}

/// After a reset no request from before it completes.
#[test]
fn a_reset_forgets_what_was_in_flight() {
    let mut rig = Rig::new(counting());
    rig.offer(0, &[writable(buffer(0), 32)]);
    assert!(killed(&mut rig, 2, Rig::run));
    rig.reset();
    rig.run();
    assert_eq!(rig.take_used(), []);
    rig.offer(5, &[writable(buffer(5), 8)]);
    rig.run();
    assert_eq!(rig.take_used(), [(5, 8)]);
}
