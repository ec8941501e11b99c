//! The link: down and up, attached and detached, and a port that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::rig::{ALL, FEATURES, FakePort, MAC, RX, Rig, TX, frame};
use crate::port::HEADER;
use crate::{AttachError, Offloads};

const UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// While the link is down, packets from the driver are dropped and none reach it. When it comes up, the
/// driver is asked to announce itself, until it acknowledges (virtio 1.2, 5.1.6.5.4).
#[test]
fn down_and_up() {
    let mut rig = Rig::new();
    assert_eq!(rig.net.status(), UP);
    rig.supply(0, 2000);
    rig.run();
    rig.net.set_link(false);
    assert_eq!(rig.net.status(), 0);
    rig.port.arrive(0, &frame(MAC, 60, 1));
    rig.send(0, &frame(MAC, 60, 2));
    rig.run();
    assert_eq!(
        (
            rig.received().len(),
            rig.port.sent().len(),
            rig.take_used(TX).len()
        ),
        (0, 0, 1)
    );
    assert_eq!(rig.stats(TX).dropped_link_down.get(), 1);
    rig.net.set_link(true);
    assert_eq!(rig.net.status(), UP | ANNOUNCE);
    rig.run();
    assert_eq!(rig.received().len(), 1);
    rig.open();
    assert_eq!(
        rig.net.status(),
        UP | ANNOUNCE,
        "a new daemon asks for it as well"
    );
    let shown = Arc::new(AtomicUsize::new(0));
    let notified = shown.clone();
    rig.net.on_status_change(Box::new(move || {
        notified.fetch_add(1, Ordering::Relaxed);
    }));
    assert_eq!(rig.command(3, 0, &[]), 0);
    assert_eq!((rig.net.status(), shown.load(Ordering::Relaxed)), (UP, 1));
    rig.send(0, &frame(MAC, 60, 3));
    rig.run();
    assert_eq!(rig.port.sent().len(), 1);
}

/// Another port takes the place of the first: packets go there at once, also where the queue was waiting.
#[test]
fn another_port() {
    let mut rig = Rig::new();
    rig.supply(0, 2000);
    rig.supply(1, 2000);
    rig.run();
    let before = rig.net.detach().unwrap();
    assert_eq!(rig.net.status(), 0);
    rig.run();
    let other = FakePort::new(1, Offloads::default());
    rig.net.attach(other.clone()).unwrap();
    rig.run();
    assert_eq!(rig.net.status(), UP | ANNOUNCE);
    // Only the test has the first one any more.
    rig.port.arrive(0, &frame(MAC, 60, 1));
    other.arrive(0, &frame(MAC, 60, 2));
    rig.send(0, &frame(MAC, 60, 3));
    rig.run();
    assert_eq!(rig.received()[0][HEADER..], frame(MAC, 60, 2));
    assert_eq!((other.sent().len(), rig.port.sent().len()), (1, 0));
    drop(before);
}

#[test]
fn ports_with_less_than_the_device() {
    let rig = Rig::with(FakePort::new(2, ALL), FEATURES);
    let attach = |pairs, offloads| rig.net.attach(FakePort::new(pairs, offloads));
    assert_eq!(
        attach(
            2,
            Offloads {
                tcp: true,
                udp: false
            }
        ),
        Err(AttachError::Offloads)
    );
    assert_eq!(
        attach(1, ALL),
        Err(AttachError::Pairs {
            found: 1,
            expected: 2
        })
    );
    assert_eq!(attach(3, ALL), Ok(()));
}

/// A port that fails stops nothing else, and a new one takes over.
#[test]
fn a_port_that_fails() {
    let mut rig = Rig::new();
    rig.supply(0, 2000);
    rig.port.state().broken = true;
    rig.send(0, &frame(MAC, 60, 1));
    rig.run();
    assert_eq!(
        (rig.take_used(TX).len(), rig.stats(TX).dropped_refused.get()),
        (1, 1)
    );
    assert_eq!((rig.received().len(), rig.faults()), (0, vec![]));
    rig.port.state().broken = false;
    let port = rig.port.clone();
    rig.net.attach(port).unwrap();
    rig.port.arrive(0, &frame(MAC, 60, 2));
    rig.run();
    assert_eq!(rig.received().len(), 1);
    assert_eq!(rig.stats(RX).packets.get(), 1);
}
