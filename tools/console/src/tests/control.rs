//! Control messages (virtio 1.2, 5.3.6.2), as Linux's driver exchanges them.

use super::rig::{BUFFERS, FROM_DRIVER, Rig, TO_DRIVER, readable, writable};
use crate::Size;

/// Bytes of each buffer for messages.
const ROOM: u32 = 64;
/// Where messages from the driver are.
const OUT: u64 = BUFFERS + 0x1000;

/// Makes buffers for messages available, and sends DEVICE_READY.
pub fn as_a_driver(rig: &mut Rig) {
    for head in 0..12 {
        rig.offer(
            TO_DRIVER,
            head,
            &[writable(BUFFERS + u64::from(head) * u64::from(ROOM), ROOM)],
        );
    }
    send(rig, 0, 0, 1);
}

fn send(rig: &mut Rig, port: u32, event: u16, value: u16) {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    rig.fill(OUT, &bytes);
    rig.offer(FROM_DRIVER, 0, &[readable(OUT, 8)]);
}

/// Takes the messages that have come: port, event, and what follows the value.
pub fn take_messages(rig: &mut Rig) -> Vec<(u32, u16, Vec<u8>)> {
    let used = rig.take_used(TO_DRIVER);
    let read = |(head, len): &(u32, u32)| {
        let bytes = rig.bytes(BUFFERS + u64::from(*head) * u64::from(ROOM), *len as usize);
        let port = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let event = u16::from_le_bytes(bytes[4..6].try_into().unwrap());
        let rest = if event == 5 { 8 } else { 6 };
        (port, event, bytes[rest..].to_vec())
    };
    used.iter().map(read).collect()
}

#[test]
fn ports_are_announced_and_opened() {
    let mut rig = Rig::new(2);
    as_a_driver(&mut rig);
    rig.run();
    assert_eq!(take_messages(&mut rig), [(0, 1, vec![0, 0]), (1, 1, vec![0, 0])]);
    send(&mut rig, 1, 3, 1);
    rig.run();
    let opened = [(1, 4, vec![1, 0]), (1, 6, vec![1, 0]), (1, 5, vec![0; 4])];
    assert_eq!(take_messages(&mut rig), opened);
    // The guest opens it, and gives one up.
    for (port, event, value) in [(1, 6, 1), (0, 3, 0), (0, 0, 0)] {
        send(&mut rig, port, event, value);
        rig.run();
    }
    assert_eq!(take_messages(&mut rig), []);
    assert_eq!(rig.stats(FROM_DRIVER).snapshot().messages_ignored, 0);
}

#[test]
fn sizes_are_sent_once_they_change() {
    let mut rig = Rig::new(2);
    as_a_driver(&mut rig);
    rig.run();
    take_messages(&mut rig);
    let size = |columns, rows| Size { columns, rows };
    assert!(rig.console().set_size(1, size(80, 25)));
    assert!(!rig.console().set_size(1, size(80, 25)));
    assert!(rig.console().set_size(1, size(300, 50)));
    assert!(!rig.console().set_size(2, size(80, 25)));
    rig.run();
    // `cols` before `rows` (5.3.6.2).
    assert_eq!(take_messages(&mut rig), [(1, 5, vec![44, 1, 50, 0])]);
}

/// Without MULTIPORT a size is in the configuration space, and its change notified of.
#[test]
fn the_size_of_a_single_console() {
    let mut rig = Rig::new(1);
    let changes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = changes.clone();
    rig.console().on_resize(Box::new(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let (columns, rows) = (80, 25);
    rig.console().set_size(0, Size { columns, rows });
    rig.console().set_size(0, Size { columns, rows });
    assert_eq!(changes.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(rig.console().space()[..4], [80, 0, 25, 0]);
    // The next daemon knows it.
    rig.open();
    assert_eq!(rig.console().space()[..4], [80, 0, 25, 0]);
    rig.run();
}

#[test]
fn messages_that_mean_nothing_are_ignored() {
    let mut rig = Rig::new(2);
    let mut count = 0;
    for (port, event, value) in [
        (2, 3, 1),
        (u32::MAX, 6, 1),
        (0, 1, 1),
        (0, 5, 0),
        (0, u16::MAX, 1),
        (0, 0, 7),
        (1, 3, 2),
    ] {
        send(&mut rig, port, event, value);
        rig.run();
        count += 1;
        assert_eq!(
            rig.stats(FROM_DRIVER).snapshot().messages_ignored,
            count,
            "{port} {event} {value}"
        );
    }
    assert_eq!(rig.take_used(FROM_DRIVER).len(), count as usize);
    assert_eq!(rig.faults(), [] as [String; 0]);
}

/// A message waits for a buffer, of which the driver is to notify.
#[test]
fn a_message_waits_for_a_buffer() {
    let mut rig = Rig::new(2);
    send(&mut rig, 0, 0, 1);
    rig.run();
    assert!(rig.is_notification_wanted(TO_DRIVER));
    rig.offer(TO_DRIVER, 0, &[writable(BUFFERS, 8)]);
    rig.run();
    assert_eq!(take_messages(&mut rig), [(0, 1, vec![0, 0])]);
    rig.offer(TO_DRIVER, 1, &[writable(BUFFERS + u64::from(ROOM), 8)]);
    rig.run();
    assert_eq!(take_messages(&mut rig), [(1, 1, vec![0, 0])]);
    // After a reset there is nothing to say.
    send(&mut rig, 0, 3, 1);
    rig.run();
    rig.reset();
    rig.offer(TO_DRIVER, 0, &[writable(BUFFERS, ROOM)]);
    rig.run();
    assert_eq!(take_messages(&mut rig), []);
}
