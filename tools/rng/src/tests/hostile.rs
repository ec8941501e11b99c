//! Drivers that violate the specification: the queue breaks, DEVICE_NEEDS_RESET is set once, nothing else
//! changes.

use proptest::prelude::*;
use ringvirtio::virtio::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

use super::rig::{BASE, BUFFERS, Buf, RAM, Rig, SIZE, counting, readable, writable};

const POISON: usize = 0x4_0000;

fn poisoned() -> Rig {
    let rig = Rig::new(counting());
    rig.fill(BUFFERS, &vec![0xa5; POISON]);
    rig
}

/// Services the queue and checks that it broke for this reason, that nothing was written, and that it works
/// after a reset.
fn assert_breaks(mut rig: Rig, reason: &str) {
    let before = rig.bytes(BUFFERS, POISON);
    rig.run();
    let faults = rig.faults();
    assert_eq!(faults.len(), 1, "one reset is requested");
    assert!(faults[0].contains(reason), "{faults:?}, expected {reason}");
    assert_eq!((rig.take_used(), rig.interrupts()), (vec![], 0));
    // It stays broken, for the next daemon as well, and requests no second reset.
    rig.offer(3, &[writable(BUFFERS, 8)]);
    rig.run();
    rig.open();
    rig.run();
    assert_eq!((rig.take_used(), rig.faults().len()), (vec![], 1));
    assert!(before == rig.bytes(BUFFERS, POISON), "nothing was written");
    rig.reset();
    rig.offer(0, &[writable(BUFFERS, 8)]);
    rig.run();
    assert_eq!(rig.take_used(), [(0, 8)]);
}

/// Virtio 1.2, 5.4.6.1: the driver must not place a device-readable buffer into the queue.
#[test]
fn a_buffer_to_read() {
    let mut rig = poisoned();
    rig.offer(0, &[readable(BUFFERS, 16)]);
    assert_breaks(rig, "bytes to read");
    let mut rig = poisoned();
    rig.offer(0, &[readable(BUFFERS, 16), writable(BUFFERS + 64, 16)]);
    assert_breaks(rig, "bytes to read");
}

#[test]
fn no_room_for_a_byte() {
    let mut rig = poisoned();
    rig.offer(0, &[writable(BUFFERS, 0)]);
    assert_breaks(rig, "no room for a byte");
    let mut rig = poisoned();
    rig.offer(0, &[readable(BUFFERS, 0)]);
    assert_breaks(rig, "no room for a byte");
}

// torture b1
#[test]
fn chains_that_loop_or_leave_the_table() {
    let mut rig = poisoned();
    let endless = Buf {
        flags: VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT,
        ..writable(BUFFERS, 16)
    };
    rig.descriptor(rig.ring.desc.0, 0, endless, 1);
    rig.descriptor(rig.ring.desc.0, 1, endless, 0);
    rig.offer_head(0);
    assert_breaks(rig, "chain at head 0");
    let mut rig = poisoned();
    rig.descriptor(rig.ring.desc.0, 0, endless, SIZE);
    rig.offer_head(0);
    assert_breaks(rig, "chain at head 0");
    let mut rig = poisoned();
    rig.offer_head(SIZE);
    assert_breaks(rig, "head 16");
}

// torture b2, b3
#[test]
fn buffers_and_tables_that_are_no_ram() {
    for addr in [0, BASE - 8, BASE + RAM as u64 - 8, u64::MAX - 8] {
        let mut rig = poisoned();
        rig.offer(0, &[writable(addr, 16)]);
        assert_breaks(rig, "chain at head 0");
        let mut rig = poisoned();
        let indirect = Buf {
            addr,
            len: 16,
            flags: VIRTQ_DESC_F_INDIRECT,
        };
        rig.offer(0, &[indirect]);
        assert_breaks(rig, "chain at head 0");
    }
}

#[test]
fn an_index_that_jumps() {
    let rig = poisoned();
    rig.set_u16(rig.ring.avail.0 + 2, SIZE + 1);
    assert_breaks(rig, "avail.idx is 17");
}

proptest! {
    /// With any rings and any table: no panic, and servicing ends.
    #[test]
    fn any_bytes_in_the_rings(
        table in proptest::collection::vec(any::<u8>(), usize::from(SIZE) * 16),
        heads in proptest::collection::vec(0..SIZE + 2, 1..=usize::from(SIZE)),
    ) {
        let mut rig = Rig::new(counting());
        rig.fill(rig.ring.desc.0, &table);
        for head in heads {
            rig.offer_head(head);
        }
        rig.run();
        rig.open();
        rig.run();
        prop_assert!(rig.faults().len() <= 1);
    }
}
