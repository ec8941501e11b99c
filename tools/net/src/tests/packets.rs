//! Packets of a well-behaved driver, both ways.

use std::sync::atomic::Ordering;

use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTQ_DESC_F_INDIRECT, feature};
use ringvirtio::{Rate, RateLimits};

use super::rig::{ALL, BUFFERS, Buf, FEATURES, FakePort, MAC, RX, Rig, SIZE, TX, frame, readable, writable};
use crate::offloads;
use crate::port::HEADER;
use crate::virtio::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU};
use crate::{MacAddress, Offloads};

/// Virtio 1.2, 5.1.6.2: header and frame go to the port as they are, in order; used.len is 0.
#[test]
fn sent_packets_are_whole_and_in_order() {
    let mut rig = Rig::new();
    let frames: Vec<_> = (0..SIZE)
        .map(|head| frame(MacAddress::BROADCAST, 14 + usize::from(head) * 100, head as u8))
        .collect();
    for (head, frame) in frames.iter().enumerate() {
        rig.send(head as u16, frame);
    }
    rig.run();
    assert_eq!(rig.port.sent(), frames);
    let used = rig.take_used(TX);
    assert_eq!(used, (0..SIZE.into()).map(|head| (head, 0)).collect::<Vec<_>>());
    let bytes: usize = frames.iter().map(Vec::len).sum();
    let stats = rig.stats(TX).snapshot();
    assert_eq!(
        (stats.packets, stats.bytes, stats.dropped()),
        (16, bytes as u64, 0)
    );
    assert!(rig.interrupts() > 0);
}

/// Virtio 1.2, 2.7.4.1: whatever the framing into descriptors.
#[test]
fn a_sent_packet_in_many_buffers() {
    let mut rig = Rig::new();
    let packet = [&[7; HEADER][..], &frame(MAC, 60, 1)].concat();
    rig.fill(BUFFERS, &packet);
    // The header in single bytes, the frame in an indirect table.
    let mut bufs: Vec<_> = (0..HEADER as u64)
        .map(|byte| readable(BUFFERS + byte, 1))
        .collect();
    let table = BUFFERS + 0x8000;
    rig.chain(
        table,
        0,
        &[
            readable(BUFFERS + 12, 5),
            readable(BUFFERS, 0),
            readable(BUFFERS + 17, 55),
        ],
    );
    bufs.push(Buf {
        flags: VIRTQ_DESC_F_INDIRECT,
        ..readable(table, 48)
    });
    rig.offer(TX, 0, &bufs);
    rig.run();
    assert_eq!(rig.port.state().sent, [(0, packet)]);
    assert_eq!((rig.take_used(TX), rig.faults()), (vec![(0, 0)], vec![]));
}

/// Virtio 1.2, 5.1.6.4: each packet is in one buffer if it fits, and the rest of the buffer is as it was.
#[test]
fn received_packets_are_whole_and_in_order() {
    let mut rig = Rig::new();
    for head in 0..SIZE {
        rig.supply(head, 2000);
    }
    rig.run();
    assert_eq!(rig.take_used(RX), [], "nothing is used before there is a packet");
    let frames: Vec<_> = (0..10)
        .map(|seed| frame(MAC, 14 + 100 * usize::from(seed), seed))
        .collect();
    for frame in &frames {
        rig.port.arrive(0, frame);
    }
    rig.turn();
    let received = rig.received();
    assert_eq!(received.len(), 10);
    for (packet, frame) in received.iter().zip(&frames) {
        assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(packet[HEADER..], frame[..]);
    }
    assert_eq!(rig.bytes(Rig::buffer(0) + 26, 1974), [0xa5; 1974]);
    let stats = rig.stats(RX).snapshot();
    assert_eq!((stats.packets, stats.merged, stats.dropped()), (10, 0, 0));
    assert_eq!(rig.faults(), [] as [String; 0]);
}

/// Virtio 1.2, 5.1.6.4: with MRG_RXBUF a packet is in as many buffers as it needs, and `num_buffers` is their
/// number.
#[test]
fn merged_buffers() {
    let mut rig = Rig::new();
    for head in 0..SIZE {
        rig.supply(head, 100);
    }
    let frames = [14, 88, 89, 400, 20].map(|len| frame(MAC, len, len as u8));
    frames.iter().for_each(|frame| rig.port.arrive(0, frame));
    rig.run();
    let received = rig.received();
    for (packet, (frame, count)) in received.iter().zip(frames.iter().zip([1, 1, 2, 5, 1])) {
        assert_eq!(packet[10], count);
        assert_eq!(packet[HEADER..], frame[..]);
    }
    assert_eq!(received.len(), frames.len());
    assert_eq!(rig.stats(RX).merged.get(), 2);
}

/// A packet for which there are not enough buffers waits, and is not lost.
#[test]
fn a_packet_waits_for_buffers() {
    let mut rig = Rig::new();
    let frames = [frame(MAC, 300, 1), frame(MAC, 60, 2)];
    frames.iter().for_each(|frame| rig.port.arrive(0, frame));
    rig.run();
    assert_eq!(rig.stats(RX).no_buffers.get(), 1);
    for head in 0..4 {
        assert_eq!(rig.received().len(), 0);
        rig.supply(head, 80);
        rig.run();
    }
    rig.supply(4, 80);
    rig.run();
    let received = rig.received();
    assert_eq!(
        received
            .iter()
            .map(|packet| packet[HEADER..].to_vec())
            .collect::<Vec<_>>(),
        frames
    );
    assert_eq!(received[0][10], 4);
}

/// Without MRG_RXBUF a packet that is larger than its buffer is dropped, and the buffer is used for the next.
#[test]
fn without_merged_buffers() {
    let mut rig = Rig::with(FakePort::new(1, Offloads::default()), feature(VIRTIO_F_VERSION_1));
    for (head, len) in [(0, 100), (1, 1530), (2, 1530)] {
        rig.supply(head, len);
    }
    let frames = [
        frame(MAC, 89, 1),
        frame(MAC, 88, 2),
        frame(MAC, 1518, 3),
        frame(MAC, 1519, 4),
    ];
    frames.iter().for_each(|frame| rig.port.arrive(0, frame));
    rig.run();
    let received = rig.received();
    assert_eq!(received.len(), 2);
    for (packet, frame) in received.iter().zip(&frames[1..3]) {
        assert_eq!((&packet[HEADER..], packet[10]), (&frame[..], 1));
    }
    assert_eq!(rig.stats(RX).dropped_too_long.get(), 2);
}

/// A ring full of buffers that are too small for a packet does not stop the queue.
#[test]
fn a_packet_larger_than_all_buffers_is_dropped() {
    let mut rig = Rig::new();
    for head in 0..SIZE {
        rig.supply(head, 20);
    }
    rig.port.arrive(0, &frame(MAC, 400, 1));
    rig.port.arrive(0, &frame(MAC, 14, 2));
    rig.run();
    assert_eq!(rig.received()[0][HEADER..], frame(MAC, 14, 2));
    assert_eq!(rig.stats(RX).dropped_too_long.get(), 1);
}

/// A chain of several buffers counts as one.
#[test]
fn a_received_packet_in_a_chain() {
    let mut rig = Rig::new();
    let bufs: Vec<_> = (0..12)
        .map(|byte| writable(BUFFERS + byte * 16, 1))
        .chain([writable(BUFFERS + 0x1000, 100)])
        .collect();
    rig.offer(RX, 0, &bufs);
    rig.port.arrive(0, &frame(MAC, 60, 9));
    rig.run();
    assert_eq!(rig.take_used(RX), [(0, 72)]);
    assert_eq!(rig.bytes(BUFFERS + 10 * 16, 1), [1]);
    assert_eq!(rig.bytes(BUFFERS + 0x1000, 60), frame(MAC, 60, 9));
}

#[test]
fn short_frames_are_dropped() {
    let mut rig = Rig::new();
    rig.supply(0, 2000);
    rig.port.arrive(0, &[0; 13]);
    rig.send(0, &[0; 13]);
    rig.run();
    assert_eq!(
        (
            rig.received().len(),
            rig.port.sent().len(),
            rig.take_used(TX).len()
        ),
        (0, 0, 1)
    );
    assert_eq!(rig.stats(RX).dropped_too_short.get(), 1);
    assert_eq!(rig.stats(TX).dropped_too_short.get(), 1);
}

/// Virtio 1.2, 5.1.6.4.1: packets need no offload that was not negotiated, and without GUEST_CSUM no flag is
/// set.
#[test]
fn offloads_that_were_not_negotiated() {
    let header = |flags, gso| [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let guest = ALL.features() & offloads::GUEST;
    for (features, passes) in [
        (0, [true, true, false, false, false]),
        (1 << 1, [true, true, true, false, false]),
        (1 << 1 | 1 << 7, [true, true, true, true, false]),
        (guest, [true; 5]),
    ] {
        let mut rig = Rig::with(FakePort::new(1, ALL), FEATURES | features);
        assert_eq!(rig.port.state().guest_offloads, features);
        for head in 0..SIZE {
            rig.supply(head, 2000);
        }
        let headers = [
            header(0, 0),
            header(2, 0),
            header(1, 0),
            header(1, 1),
            header(1, 5),
        ];
        for (seed, header) in headers.iter().enumerate() {
            rig.port.arrive_with(0, *header, &frame(MAC, 60, seed as u8));
        }
        rig.run();
        let expected: Vec<_> = (0..5_usize).filter(|index| passes[*index]).collect();
        let received = rig.received();
        assert_eq!(received.len(), expected.len());
        for (packet, index) in received.iter().zip(expected) {
            assert_eq!(packet[HEADER..], frame(MAC, 60, index as u8));
            let flags = if features == 0 { 0 } else { headers[index][0] };
            assert_eq!(packet[..2], [flags, headers[index][1]]);
        }
        let dropped = passes.iter().filter(|passes| !**passes).count();
        assert_eq!(rig.stats(RX).dropped_offload.get(), dropped as u64);
    }
}

/// The largest packet that a tap has.
#[test]
fn large_packets() {
    let features = ALL.features();
    for (mergeable, len) in [(true, 4000), (false, 65562)] {
        let merge = feature(VIRTIO_NET_F_MRG_RXBUF);
        let features = if mergeable { FEATURES } else { FEATURES & !merge } | features;
        let mut rig = Rig::with(FakePort::new(1, ALL), features);
        let heads = if mergeable { SIZE } else { 2 };
        for head in 0..heads {
            rig.supply(head, len);
        }
        let large = frame(MAC, if mergeable { 16 * 4000 - HEADER } else { 65550 }, 3);
        rig.port.arrive(0, &large);
        rig.send(0, &large);
        rig.run();
        let received = rig.received();
        assert_eq!(received.len(), 1);
        assert!(received[0][HEADER..] == large && rig.port.sent()[0] == large);
    }
}

// Virtio 1.2, 5.1.4.1: what is not to be segmented fits into the MTU, once that was negotiated.
#[test]
fn packets_larger_than_the_mtu() {
    let merge = FEATURES | feature(VIRTIO_NET_F_MRG_RXBUF) | ALL.features();
    for (features, expected) in [(merge | feature(VIRTIO_NET_F_MTU), 2), (merge, 3)] {
        let mut rig = Rig::with(FakePort::new(1, ALL), features);
        for head in 0..SIZE {
            rig.supply(head, 2000);
        }
        // 1 500 bytes with a tag, one more, and many more that are to be segmented.
        rig.port.arrive(0, &frame(MAC, 1518, 1));
        rig.port.arrive(0, &frame(MAC, 1519, 2));
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&[1, 1]);
        rig.port.arrive_with(0, header, &frame(MAC, 9000, 3));
        rig.run();
        assert_eq!(rig.received().len(), expected);
        assert_eq!(rig.stats(RX).dropped_too_long.get(), 3 - expected as u64);
    }
}

/// A packet from the driver that no network could carry is dropped, whatever the length its buffers add up
/// to.
// torture b8
#[test]
fn packets_that_are_too_long() {
    let mut rig = Rig::new();
    let table = BUFFERS + 0x1000;
    let bufs: Vec<_> = (0..SIZE).map(|_| readable(BUFFERS, 3 << 20)).collect();
    rig.chain(table, 0, &bufs);
    let indirect = Buf {
        flags: VIRTQ_DESC_F_INDIRECT,
        ..readable(table, 16 * usize::from(SIZE))
    };
    rig.offer(TX, 0, &[indirect]);
    rig.send(1, &frame(MAC, 60, 1));
    rig.run();
    assert_eq!((rig.take_used(TX).len(), rig.port.sent().len()), (2, 1));
    assert_eq!(rig.stats(TX).dropped_too_long.get(), 1);
}

#[test]
fn limits_keep_packets_back() {
    let mut rig = Rig::new();
    let time = rig.set_clock(1_000_000_000);
    let limits = RateLimits {
        bytes: Rate { rate: 1000, burst: 1 },
        ..RateLimits::default()
    };
    rig.net.receive_throttle().set_limits(limits);
    rig.net.transmit_throttle().set_limits(limits);
    for head in 0..3 {
        rig.supply(head, 2000);
        rig.send(head, &frame(MAC, 100, head as u8));
        rig.port.arrive(0, &frame(MAC, 100, head as u8));
    }
    for sent in 1..=3 {
        rig.run();
        assert_eq!((rig.port.sent().len(), rig.received().len()), (sent, 1));
        if sent < 3 {
            let deadlines = [RX, TX].map(|number| rig.vq(number).deadline().unwrap());
            assert_eq!(deadlines, [time.load(Ordering::Relaxed) + 100_000_000; 2]);
            time.store(deadlines[0] - 1, Ordering::Relaxed);
            rig.run();
            assert_eq!((rig.port.sent().len(), rig.received().len()), (sent, 0));
            time.store(deadlines[0], Ordering::Relaxed);
        }
    }
}

/// A port without headers of its own: those of received packets are empty.
#[test]
fn headers_of_a_port_without_any() {
    let mut rig = Rig::with(FakePort::with_header(1, Offloads::default(), false), FEATURES);
    rig.supply(0, 40);
    rig.supply(1, 40);
    rig.port.arrive(0, &frame(MAC, 60, 1));
    rig.run();
    let packet = &rig.received()[0];
    assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(packet[HEADER..], frame(MAC, 60, 1));
}

/// A port without room keeps packets in the ring.
#[test]
fn no_room_in_the_port() {
    let mut rig = Rig::new();
    rig.port.state().room = Some(2);
    for head in 0..5 {
        rig.send(head, &frame(MAC, 60, head as u8));
    }
    rig.run();
    assert_eq!((rig.take_used(TX).len(), rig.port.sent().len()), (2, 2));
    assert!(rig.vq(TX).deadline().is_some() && rig.stats(TX).no_room.get() == 1);
    rig.port.state().room = None;
    rig.run();
    assert_eq!(rig.take_used(TX).len(), 3);
    assert_eq!(
        rig.port.sent(),
        (0..5).map(|seed| frame(MAC, 60, seed)).collect::<Vec<_>>()
    );
}
