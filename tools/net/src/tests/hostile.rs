//! Drivers that violate the specification: the queue breaks, nothing else does, and a reset makes it work
//! again.

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use ringvirtio::virtio::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT};

use super::rig::{BASE, BUFFERS, Buf, MAC, RAM, RX, Rig, SIZE, TX, frame, readable, writable};

/// The poison around buffers.
const POISON: usize = 0x4000;

fn poisoned() -> Rig {
    let rig = Rig::new();
    rig.fill(BUFFERS, &[0xa5; POISON]);
    rig
}

/// The queue breaks with one request for a reset, for `reason`; the other queues work; after a reset all do.
fn assert_breaks(mut rig: Rig, number: u16, reason: &str) {
    rig.port.arrive(0, &frame(MAC, 60, 1));
    let before = rig.bytes(BUFFERS, POISON);
    rig.run();
    let faults = rig.faults();
    assert!(
        faults.len() == 1 && faults[0].contains(reason),
        "{faults:?}, expected {reason}"
    );
    assert_eq!(rig.take_used(number), []);
    assert_eq!(rig.port.sent().len(), 0);
    assert!(before == rig.bytes(BUFFERS, POISON), "something was written");
    // It stays broken, for the next daemon as well, and requests no second reset.
    rig.offer(number, 3, &[readable(BUFFERS, 60)]);
    rig.run();
    rig.open();
    rig.run();
    assert_eq!((rig.take_used(number), rig.faults().len()), (vec![], 1));
    if number != TX {
        rig.send(0, &frame(MAC, 60, 2));
        rig.run();
        assert_eq!((rig.take_used(TX), rig.port.sent().len()), (vec![(0, 0)], 1));
    }
    rig.reset();
    rig.port.state().sent.clear();
    rig.supply(0, 2000);
    rig.send(0, &frame(MAC, 60, 3));
    rig.run();
    assert_eq!((rig.received().len(), rig.port.sent().len()), (1, 1));
}

// torture k1
#[test]
fn buffers_of_the_wrong_direction() {
    let mut rig = poisoned();
    rig.offer(RX, 0, &[readable(BUFFERS, 2000)]);
    assert_breaks(rig, RX, "bytes to read");
    let mut rig = poisoned();
    rig.offer(RX, 0, &[readable(BUFFERS, 12), writable(BUFFERS + 64, 2000)]);
    assert_breaks(rig, RX, "bytes to read");
    let mut rig = poisoned();
    rig.offer(TX, 0, &[writable(BUFFERS, 72)]);
    assert_breaks(rig, TX, "bytes to write");
    let mut rig = poisoned();
    rig.offer(TX, 0, &[readable(BUFFERS, 72), writable(BUFFERS, 1)]);
    assert_breaks(rig, TX, "bytes to write");
    let mut rig = poisoned();
    let control = rig.control();
    rig.offer(control, 0, &[readable(BUFFERS, 3)]);
    assert_breaks(rig, control, "no room for the result");
    let mut rig = poisoned();
    rig.offer(control, 0, &[writable(BUFFERS, 3)]);
    assert_breaks(rig, control, "shorter than 2 bytes");
}

// torture b7, k1
#[test]
fn no_room_for_a_header() {
    for len in [0, 1, 11] {
        let mut rig = poisoned();
        rig.offer(RX, 0, &[writable(BUFFERS, len)]);
        assert_breaks(rig, RX, "shorter than 12 bytes");
        let mut rig = poisoned();
        rig.offer(TX, 0, &[readable(BUFFERS, len)]);
        assert_breaks(rig, TX, "without the header");
        let mut rig = poisoned();
        let control = rig.control();
        rig.offer(control, 0, &[readable(BUFFERS, len.min(1)), writable(BUFFERS, 1)]);
        assert_breaks(rig, control, "shorter than 2 bytes");
    }
}

/// Buffers before the bad one are used, those behind it are not.
#[test]
fn a_bad_buffer_behind_good_ones() {
    let mut rig = Rig::new();
    rig.supply(0, 30);
    rig.supply(1, 30);
    rig.offer(RX, 2, &[readable(BUFFERS, 30)]);
    rig.port.arrive(0, &frame(MAC, 60, 1));
    rig.run();
    assert_eq!((rig.take_used(RX), rig.faults().len()), (vec![], 1));
}

// torture b1, b3, b4
#[test]
fn chains_that_loop_or_leave_the_table() {
    for number in 0..3 {
        let buffer = if number == RX {
            writable(BUFFERS, 64)
        } else {
            readable(BUFFERS, 64)
        };
        let endless = Buf {
            flags: buffer.flags | VIRTQ_DESC_F_NEXT,
            ..buffer
        };
        let mut rig = poisoned();
        let table = rig.ring(number).desc.0;
        rig.descriptor(table, 0, endless, 1);
        rig.descriptor(table, 1, endless, 0);
        rig.offer_head(number, 0);
        assert_breaks(rig, number, "chain at head 0");
        let mut rig = poisoned();
        rig.descriptor(table, 0, endless, SIZE);
        rig.offer_head(number, 0);
        assert_breaks(rig, number, "chain at head 0");
        let mut rig = poisoned();
        rig.offer_head(number, SIZE);
        assert_breaks(rig, number, "head 16");
        let rig = poisoned();
        rig.set_u16(rig.ring(number).avail.0 + 2, SIZE + 1);
        assert_breaks(rig, number, "avail.idx is 17");
    }
    // A receive buffer is in flight from when it was popped until a packet is in it.
    let mut rig = poisoned();
    rig.offer(RX, 0, &[writable(Rig::buffer(0), 64)]);
    rig.offer_head(RX, 0);
    assert_breaks(rig, RX, "made available while it is in flight");
}

// torture b2, b5
#[test]
fn buffers_and_tables_that_are_no_ram() {
    for number in 0..3 {
        for addr in [0, BASE - 8, BASE + RAM as u64 - 8, u64::MAX - 8] {
            let buffer = if number == RX {
                writable(addr, 64)
            } else {
                readable(addr, 64)
            };
            let mut rig = poisoned();
            rig.offer(number, 0, &[buffer]);
            assert_breaks(rig, number, "chain at head 0");
            let mut rig = poisoned();
            let indirect = Buf {
                flags: VIRTQ_DESC_F_INDIRECT,
                ..readable(addr, 16)
            };
            rig.offer(number, 0, &[indirect]);
            assert_breaks(rig, number, "chain at head 0");
        }
    }
}

proptest! {
    /// With any rings and any tables, of any queue: no panic, and servicing ends.
    // torture b12
    #[test]
    fn any_bytes_in_the_rings(
        number in 0..3_u16,
        table in proptest::collection::vec(any::<u8>(), usize::from(SIZE) * 16),
        heads in proptest::collection::vec(0..SIZE + 2, 1..=usize::from(SIZE)),
    ) {
        let mut rig = Rig::new();
        rig.fill(rig.ring(number).desc.0, &table);
        for head in heads {
            rig.offer_head(number, head);
        }
        for seed in 0..4 {
            rig.port.arrive(0, &frame(MAC, 600, seed));
        }
        rig.run();
        rig.open();
        rig.run();
        prop_assert!(rig.faults().len() <= 1);
    }

    /// Descriptors that are right but for their sizes and places in RAM, and for what they overlap: no panic,
    /// and nothing outside of them is written.
    // torture b6, b13
    #[test]
    fn any_buffers_in_ram(
        bufs in proptest::collection::vec((0..0x3000_u64, 12..700_usize), 1..usize::from(SIZE)),
        lengths in proptest::collection::vec(14..1500_usize, 1..10),
    ) {
        let mut rig = Rig::new();
        rig.fill(BUFFERS - 0x1000, &[0xa5; 0x6000]);
        let mut covered = [false; 0x6000];
        for (head, (offset, len)) in bufs.iter().enumerate() {
            rig.offer(RX, head as u16, &[writable(BUFFERS + offset, *len)]);
            let at = 0x1000 + *offset as usize;
            covered[at..at + len].fill(true);
        }
        for (seed, len) in lengths.iter().enumerate() {
            rig.port.arrive(0, &frame(MAC, *len, seed as u8));
        }
        rig.run();
        let bytes = rig.bytes(BUFFERS - 0x1000, 0x6000);
        prop_assert!(bytes.iter().zip(covered).all(|(byte, covered)| covered || *byte == 0xa5));
        let used = rig.take_used(RX);
        let total: u64 = used.iter().map(|(_, len)| u64::from(*len)).sum();
        let stats = rig.stats(RX).snapshot();
        prop_assert_eq!(total, stats.bytes + 12 * stats.packets);
        prop_assert_eq!(rig.faults().len(), 0);
    }
}
