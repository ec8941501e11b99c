//! Requests of a well-behaved driver.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringvirtio::clock::Clock;
use ringvirtio::virtio::VIRTQ_DESC_F_INDIRECT;
use ringvirtio::{Rate, RateLimits};

use super::rig::{BUFFERS, Buf, Rig, counting, writable};
use crate::{MAX_BYTES, Rng};

/// Virtio 1.2, 5.4.6.1: one or more random bytes, and used.len is their number; no byte after them changes.
#[test]
fn a_buffer_is_filled_up_to_the_limit() {
    let mut rig = Rig::new(counting());
    for (head, len) in [(0, 1), (1, 64), (2, MAX_BYTES), (3, MAX_BYTES + 1), (4, 5000)] {
        rig.fill(BUFFERS, &[0; 8192]);
        rig.offer(head, &[writable(BUFFERS, len as u32)]);
        rig.run();
        let filled = len.min(MAX_BYTES);
        assert_eq!(rig.take_used(), [(head.into(), filled as u32)]);
        let bytes = rig.bytes(BUFFERS, 8192);
        assert!(bytes[..filled].iter().all(|byte| *byte != 0));
        assert!(bytes[filled..].iter().all(|byte| *byte == 0));
    }
    assert_eq!((rig.interrupts(), rig.faults()), (5, vec![]));
    let stats = rig.queue().stats().snapshot();
    assert_eq!(
        (stats.requests, stats.bytes),
        (5, (1 + 64 + 3 * MAX_BYTES) as u64)
    );
}

#[test]
fn a_chain_is_filled_in_its_order() {
    let mut rig = Rig::new(counting());
    let second = BUFFERS + 0x1000;
    rig.offer(
        0,
        &[writable(second, 3), writable(BUFFERS, 0), writable(BUFFERS, 5)],
    );
    // The same with an indirect table.
    let table = BUFFERS + 0x2000;
    rig.chain(table, 0, &[writable(second + 16, 2), writable(BUFFERS + 16, 4)]);
    let indirect = Buf {
        addr: table,
        len: 32,
        flags: VIRTQ_DESC_F_INDIRECT,
    };
    rig.offer(8, &[indirect]);
    rig.run();
    assert_eq!(rig.take_used(), [(0, 8), (8, 6)]);
    assert_eq!(rig.bytes(second, 4), [1, 1, 1, 0]);
    assert_eq!(rig.bytes(BUFFERS, 6), [1, 1, 1, 1, 1, 0]);
    assert_eq!(rig.bytes(second + 16, 3), [2, 2, 0]);
    assert_eq!(rig.bytes(BUFFERS + 16, 5), [2, 2, 2, 2, 0]);
}

#[test]
fn the_kernel_has_other_bytes_each_time() {
    let mut rig = Rig::new(Rng::new());
    rig.offer(0, &[writable(BUFFERS, 256)]);
    rig.offer(1, &[writable(BUFFERS + 256, 256)]);
    rig.run();
    let bytes = rig.bytes(BUFFERS, 512);
    assert_ne!(bytes[..256], bytes[256..]);
    assert!(bytes.iter().filter(|byte| **byte == 0).count() < 50);
}

#[test]
fn a_limit_keeps_requests_in_the_ring() {
    let rng = counting();
    rng.throttle.set_limits(RateLimits {
        bytes: Rate { rate: 1000, burst: 1 },
        ..RateLimits::default()
    });
    let mut rig = Rig::new(rng);
    let time = Arc::new(AtomicU64::new(1_000_000_000));
    rig.set_clock(Clock::Manual(time.clone()));
    for head in 0..3 {
        rig.offer(head, &[writable(BUFFERS + u64::from(head) * 256, 100)]);
    }
    for head in 0..3 {
        rig.run();
        assert_eq!(rig.take_used(), [(head, 100)]);
        if head < 2 {
            let deadline = rig.vq().deadline().unwrap();
            assert_eq!(deadline - time.load(Ordering::Relaxed), 100_000_000);
            // Not before the deadline.
            time.store(deadline - 1, Ordering::Relaxed);
            rig.run();
            assert_eq!(rig.take_used(), []);
            time.store(deadline, Ordering::Relaxed);
        }
    }
    assert_eq!(rig.vq().deadline(), None);
}

/// While the host's generator is not seeded, the request waits in the ring.
#[test]
fn a_request_waits_for_the_host() {
    let ready = Arc::new(AtomicBool::new(false));
    let source = ready.clone();
    let mut rig = Rig::new(Rng::with_source(Box::new(move |bytes| {
        bytes.fill(7);
        match source.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    })));
    rig.offer(0, &[writable(BUFFERS, 4)]);
    rig.run();
    assert_eq!((rig.take_used(), rig.bytes(BUFFERS, 4)), (vec![], vec![0; 4]));
    assert!(rig.vq().deadline().is_some());
    assert_eq!(rig.queue().stats().snapshot().starved, 1);
    ready.store(true, Ordering::Relaxed);
    rig.run();
    assert_eq!(
        (rig.take_used(), rig.bytes(BUFFERS, 4)),
        (vec![(0, 4)], vec![7; 4])
    );
}
