//! Output and input of a well-behaved driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::rig::{BUFFERS, INPUT, OUTPUT, Rig, readable, writable};
use crate::memory;

// Virtio 1.2, 5.3.6: output is bytes, whatever its framing.
#[test]
fn output_is_a_stream() {
    let mut rig = Rig::new(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    rig.port(0).on_output(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    rig.print(OUTPUT, b"one ");
    rig.fill(BUFFERS, b"two three");
    rig.offer(
        OUTPUT,
        3,
        &[
            readable(BUFFERS, 3),
            readable(BUFFERS + 3, 0),
            readable(BUFFERS + 3, 1),
        ],
    );
    rig.offer(OUTPUT, 8, &[readable(BUFFERS + 4, 5)]);
    rig.offer(OUTPUT, 9, &[readable(BUFFERS, 0)]);
    rig.run();
    assert_eq!(rig.take_used(OUTPUT), [(3, 0), (8, 0), (9, 0)]);
    assert_eq!(rig.output(0, 0), b"one two three");
    assert_eq!(rig.output(0, 4), b"two three");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert!(rig.interrupts() >= 2);
    let stats = rig.stats(OUTPUT).snapshot();
    assert_eq!((stats.chains, stats.bytes), (4, 13));
}

/// A chain of more bytes than the ring has is appended in rounds, of which readers see each.
#[test]
fn output_larger_than_the_ring() {
    let mut rig = Rig::new(1);
    let bytes: Vec<u8> = (0..0x4_0000_u32).map(|index| (index / 7) as u8).collect();
    rig.fill(BUFFERS, &bytes);
    let seen = Arc::new(std::sync::Mutex::new((0_u64, Vec::new())));
    let (port, reader) = (Arc::downgrade(rig.port(0)), seen.clone());
    rig.port(0).on_output(Box::new(move || {
        let (position, all) = &mut *reader.lock().unwrap();
        let mut buffer = vec![0; memory::OUTPUT];
        let read = port.upgrade().unwrap().read_output(*position, &mut buffer);
        assert_eq!(read.dropped, 0);
        *position = read.next;
        all.extend_from_slice(&buffer[..read.len]);
    }));
    rig.offer(
        OUTPUT,
        2,
        &[
            readable(BUFFERS, 0x3_0000),
            readable(BUFFERS + 0x3_0000, 0x1_0000),
        ],
    );
    rig.run();
    assert_eq!(rig.take_used(OUTPUT), [(2, 0)]);
    assert!(seen.lock().unwrap().1 == bytes);
}

#[test]
fn input_waits_for_buffers_and_buffers_for_input() {
    let mut rig = Rig::new(1);
    rig.offer(INPUT, 0, &[writable(BUFFERS, 4)]);
    rig.run();
    // A buffer waits, of which the driver need not notify.
    assert!(!rig.is_notification_wanted(INPUT));
    assert_eq!(rig.take_used(INPUT), []);
    assert_eq!(rig.port(0).type_in(b"hello, world"), 12);
    rig.run();
    assert_eq!(rig.take_used(INPUT), [(0, 4)]);
    assert_eq!(rig.bytes(BUFFERS, 5), b"hell\0");
    // Input waits, and the driver is to notify.
    assert!(rig.is_notification_wanted(INPUT));
    rig.offer(INPUT, 1, &[writable(BUFFERS, 2), writable(BUFFERS + 16, 100)]);
    rig.run();
    assert_eq!(rig.take_used(INPUT), [(1, 8)]);
    assert_eq!(
        (rig.bytes(BUFFERS, 2), rig.bytes(BUFFERS + 16, 6)),
        (b"o,".to_vec(), b" world".to_vec())
    );
    assert_eq!(rig.faults(), [] as [String; 0]);
}

#[test]
fn a_full_input_has_room_once_the_driver_reads() {
    let mut rig = Rig::new(1);
    assert_eq!(rig.port(0).type_in(&[b'x'; 5000]), memory::INPUT);
    assert_eq!(rig.port(0).type_in(b"y"), 0);
    let port = rig.port(0).clone();
    let waiter = std::thread::spawn(move || {
        port.wait_for_room(Duration::from_secs(60));
        port.type_in(b"y")
    });
    rig.offer(INPUT, 0, &[writable(BUFFERS, 1)]);
    rig.run();
    assert_eq!(waiter.join().unwrap(), 1);
}

/// Input that was typed before the guest's reset is the next driver's.
#[test]
fn streams_go_on_after_a_reset() {
    let mut rig = Rig::new(1);
    rig.print(OUTPUT, b"before ");
    rig.port(0).type_in(b"typed");
    rig.reset();
    rig.print(OUTPUT, b"after");
    assert_eq!(rig.output(0, 0), b"before after");
    rig.offer(INPUT, 0, &[writable(BUFFERS, 16)]);
    rig.run();
    assert_eq!(rig.take_used(INPUT), [(0, 5)]);
}

#[test]
fn ports_are_apart() {
    let mut rig = Rig::new(3);
    for (port, queue) in [(0, 1), (1, 5), (2, 7)] {
        rig.print(queue, &[b'0' + port]);
    }
    for port in 0..3 {
        assert_eq!(rig.output(port, 0), [b'0' + port as u8]);
    }
    rig.port(2).type_in(b"two");
    for queue in [0, 4, 6] {
        rig.offer(queue, 0, &[writable(BUFFERS, 16)]);
    }
    rig.run();
    assert_eq!(
        (rig.take_used(0), rig.take_used(4), rig.take_used(6)),
        (vec![], vec![], vec![(0, 3)])
    );
}
