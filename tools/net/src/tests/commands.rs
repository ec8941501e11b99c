//! The control queue: receive filters, VLANs, offloads, pairs, announcements; and what of it a new daemon
//! still knows.

use std::sync::{Arc, Mutex};

use ringvirtio::virtio::{VIRTIO_F_VERSION_1, feature};

use super::rig::{ALL, BUFFERS, FEATURES, FakePort, MAC, RX, Rig, SIZE, TX, frame, readable, writable};
use crate::port::HEADER;
use crate::virtio::{VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use crate::{MacAddress, Offloads};

const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);
const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 9]);

/// Returns which of four packets pass: to the device, to another, to a group, to all. Leaves no buffer
/// behind.
fn passing(rig: &mut Rig) -> [bool; 4] {
    for head in 0..4 {
        rig.supply(head, 2000);
    }
    let to = [MAC, OTHER, GROUP, MacAddress::BROADCAST];
    to.iter().for_each(|to| rig.port.arrive(0, &frame(*to, 60, 0)));
    rig.run();
    let received = rig.received();
    let passing = to.map(|to| received.iter().any(|packet| packet[HEADER..][..6] == to.0));
    for _ in received.len()..4 {
        rig.port.arrive(0, &frame(MacAddress::BROADCAST, 60, 0));
    }
    rig.run();
    rig.received();
    passing
}

/// Virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2.
#[test]
fn receive_filters() {
    let mut rig = Rig::new();
    assert_eq!(passing(&mut rig), [true; 4], "before the driver has set a mode");
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(passing(&mut rig), [true, false, false, true]);
    assert_eq!(rig.command(0, 1, &[1]), 0);
    assert_eq!(passing(&mut rig), [true, false, true, true]);
    assert_eq!(rig.command(0, 1, &[0]), 0);
    let tables = [&[1, 0, 0, 0][..], &OTHER.0, &[1, 0, 0, 0], &GROUP.0].concat();
    assert_eq!(rig.command(1, 0, &tables), 0);
    assert_eq!(passing(&mut rig), [true; 4]);
    assert_eq!(rig.command(0, 3, &[1]), 0, "no multicast");
    assert_eq!(passing(&mut rig), [true, true, false, true]);
    assert_eq!(rig.command(1, 0, &[0; 8]), 0);
    assert_eq!(passing(&mut rig), [true, false, false, true]);
    // The device's own address changes.
    assert_eq!(rig.command(1, 1, &OTHER.0), 0);
    assert_eq!(passing(&mut rig), [false, true, false, true]);
    assert!(rig.stats(RX).dropped_filtered.get() > 0);
    // A reset forgets it all.
    rig.reset();
    assert_eq!(passing(&mut rig), [true; 4]);
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(passing(&mut rig), [true, false, false, true]);
}

/// Virtio 1.2, 5.1.6.5.3.
#[test]
fn vlans() {
    let mut rig = Rig::new();
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(rig.command(2, 0, &5_u16.to_le_bytes()), 0);
    for head in 0..3 {
        rig.supply(head, 2000);
    }
    let mut tagged = frame(MAC, 60, 0);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    rig.port.arrive(0, &tagged);
    tagged[15] = 6;
    rig.port.arrive(0, &tagged);
    rig.run();
    assert_eq!(rig.received().len(), 1);
    assert_eq!(rig.command(2, 1, &5_u16.to_le_bytes()), 0);
    tagged[15] = 5;
    rig.port.arrive(0, &tagged);
    rig.run();
    assert_eq!(
        (rig.received().len(), rig.stats(RX).dropped_filtered.get()),
        (0, 2)
    );
}

/// Each is refused with ERR, and changes nothing.
#[test]
fn commands_that_are_refused() {
    let mut rig = Rig::with(FakePort::new(2, ALL), FEATURES | feature(VIRTIO_NET_F_MQ));
    let long = vec![0; 9000];
    let wrong: [(u8, u8, &[u8]); 20] = [
        (0, 0, &[]),
        (0, 0, &[1, 1]),
        (0, 6, &[1]),
        (1, 0, &[]),
        (1, 0, &[1, 0, 0, 0, 2, 0, 0, 0, 0]),
        (1, 0, &[0xff; 8]),
        (1, 0, &[0; 9]),
        (1, 1, &[2, 0, 0, 0, 0]),
        (1, 1, &GROUP.0),
        (1, 1, &[0; 6]),
        (1, 2, &[0; 8]),
        (2, 0, &[0]),
        (2, 0, &[0, 0x10]),
        (2, 2, &[1, 0]),
        (3, 1, &[]),
        (4, 0, &[0, 0]),
        (4, 0, &[3, 0]),
        (4, 1, &[1, 0]),
        (5, 0, &[0; 8]),
        (1, 0, &long),
    ];
    for (class, command, data) in wrong {
        assert_eq!(
            rig.command(class, command, data),
            1,
            "{class} {command} {}",
            data.len()
        );
    }
    assert_eq!(rig.stats(4).commands_refused.get(), wrong.len() as u64);
    assert_eq!((rig.port.state().active_pairs, rig.faults()), (1, vec![]));
}

/// Commands whose features were not negotiated are refused.
#[test]
fn commands_without_their_features() {
    let features = feature(VIRTIO_F_VERSION_1) | feature(VIRTIO_NET_F_CTRL_VQ);
    let mut rig = Rig::with(FakePort::new(1, ALL), features);
    for (class, command, data) in [
        (0, 0, &[1][..]),
        (0, 2, &[1]),
        (1, 0, &[0; 8]),
        (1, 1, &OTHER.0),
        (2, 0, &[1, 0]),
        (3, 0, &[]),
        (4, 0, &[1, 0]),
        (5, 0, &[0; 8]),
    ] {
        assert_eq!(rig.command(class, command, data), 1, "{class} {command}");
    }
}

/// Virtio 1.2, 5.1.6.5.6: offloads of received packets, only what was negotiated and hangs together.
#[test]
fn guest_offloads() {
    let features = FEATURES | feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | 1 << 1 | 1 << 7;
    let mut rig = Rig::with(FakePort::new(1, ALL), features);
    let mut set = |bits: u64| {
        let ack = rig.command(5, 0, &bits.to_le_bytes());
        (ack, rig.port.state().guest_offloads)
    };
    let both = 1 << 1 | 1 << 7;
    assert_eq!(set(0), (0, 0));
    assert_eq!(set(1 << 1), (0, 1 << 1));
    assert_eq!(set(1 << 7), (1, 1 << 1), "TSO needs checksums");
    assert_eq!(set(both | 1 << 8), (1, 1 << 1), "TSO of IPv6 was not negotiated");
    assert_eq!(set(both), (0, both));
}

/// Virtio 1.2, 5.1.6.5.5: one pair until the driver asks for more; then packets of all that are in use.
#[test]
fn pairs_of_queues() {
    let mut rig = Rig::with(
        FakePort::new(3, Offloads::default()),
        FEATURES | feature(VIRTIO_NET_F_MQ),
    );
    assert_eq!(rig.port.state().active_pairs, 1);
    let second = 2;
    rig.offer(second, 0, &[writable(BUFFERS + 0x1000, 2000)]);
    rig.port.arrive(1, &frame(MAC, 60, 1));
    rig.run();
    assert_eq!(rig.take_used(second), [], "the second pair is not in use");
    assert_eq!(rig.command(4, 0, &[2, 0]), 0);
    assert_eq!(rig.port.state().active_pairs, 2);
    // The command alone wakes the queue.
    assert_eq!(rig.take_used(second), [(0, 72)]);
    rig.fill(BUFFERS, &[&[0; HEADER][..], &frame(MAC, 60, 2)].concat());
    rig.offer(3, 0, &[readable(BUFFERS, 72)]);
    rig.offer(5, 0, &[readable(BUFFERS, 72)]);
    rig.run();
    let sent: Vec<_> = rig.port.state().sent.iter().map(|(pair, _)| *pair).collect();
    assert_eq!(sent, [1], "the third pair is not in use");
    assert_eq!(
        (rig.take_used(5), rig.stats(5).dropped_unused_pair.get()),
        (vec![(0, 0)], 1)
    );
    // A new daemon knows how many there are; a reset forgets it.
    rig.open();
    assert_eq!(rig.port.state().active_pairs, 2);
    rig.reset();
    assert_eq!(rig.port.state().active_pairs, 1);
}

/// What the driver has set is still set after a kill: it does not say it again. Only the tables are lost, and
/// without them more passes, not less.
#[test]
fn a_new_daemon_goes_by_what_was_set() {
    let features = FEATURES | feature(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | 1 << 1 | 1 << 7;
    let mut rig = Rig::with(FakePort::new(1, ALL), features);
    assert_eq!(rig.command(5, 0, &2_u64.to_le_bytes()), 0);
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(rig.command(2, 0, &[5, 0]), 0);
    assert_eq!(rig.command(1, 1, &OTHER.0), 0);
    assert_eq!(passing(&mut rig), [false, true, false, true]);
    rig.open();
    assert_eq!(rig.port.state().guest_offloads, 2);
    assert_eq!(passing(&mut rig), [true; 4]);
    assert_eq!(rig.net.view().filter.mac, OTHER);
    // The driver sets its mode again: its own address is still the one it has set, and all VLANs pass.
    assert_eq!(rig.command(0, 0, &[0]), 0);
    assert_eq!(passing(&mut rig), [false, true, false, true]);
    assert_eq!(rig.command(2, 1, &[6, 0]), 0);
    // Offloads of another driver are its own.
    rig.reset();
    assert_eq!(rig.port.state().guest_offloads, 1 << 1 | 1 << 7);
}

/// A command that a killed daemon had begun is carried out by the next.
#[test]
fn all_descriptors_of_the_control_queue() {
    let mut rig = Rig::new();
    let control = rig.control();
    rig.fill(BUFFERS, &[0, 0, 0]);
    for head in (0..SIZE).step_by(2) {
        let ack = BUFFERS + 16 + u64::from(head);
        rig.offer(control, head, &[readable(BUFFERS, 3), writable(ack, 1)]);
    }
    rig.run();
    assert_eq!(rig.take_used(control).len(), 8);
    assert_eq!(rig.take_used(TX), []);
}

// Virtio 1.2, 5.1.6.5.2: the configuration space has the address before the command completes, and the
// device's own after a reset.
#[test]
fn the_address_in_the_configuration_space() {
    let mut rig = Rig::new();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let (seen, net) = (shown.clone(), Arc::downgrade(&rig.net));
    rig.net.on_status_change(Box::new(move || {
        let space = net.upgrade().unwrap().space();
        seen.lock().unwrap().push(space[..6].to_vec());
    }));
    assert_eq!(rig.command(1, 1, &OTHER.0), 0);
    assert_eq!(*shown.lock().unwrap(), [OTHER.0]);
    assert_eq!(rig.command(1, 1, &GROUP.0), 1);
    assert_eq!(rig.net.space()[..6], OTHER.0);
    // A new daemon shows it as soon as it serves the queues.
    rig.open();
    assert_eq!(rig.net.space()[..6], OTHER.0);
    rig.net.release(None, Box::new(|| {}));
    assert_eq!(rig.net.space()[..6], MAC.0);
    rig.reset();
    assert_eq!(rig.net.space()[..6], MAC.0);
}
