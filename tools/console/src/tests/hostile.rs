//! Drivers that violate the specification: the queue breaks, DEVICE_NEEDS_RESET is set once, nothing else
//! changes.

use proptest::prelude::*;
use ringvirtio::virtio::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

use super::rig::{
    BASE, BUFFERS, Buf, FROM_DRIVER, INPUT, OUTPUT, RAM, Rig, SIZE, TO_DRIVER, readable, writable,
};

const POISON: usize = 0x4_0000;
const QUEUES: [u16; 4] = [INPUT, OUTPUT, TO_DRIVER, FROM_DRIVER];

/// Returns a device of two ports whose queues to the driver have something to say.
fn poisoned() -> Rig {
    let mut rig = Rig::new(2);
    rig.fill(BUFFERS, &[0, 0, 0, 0, 0, 0, 1, 0]);
    rig.offer(FROM_DRIVER, 0, &[readable(BUFFERS, 8)]);
    rig.run();
    rig.take_used(FROM_DRIVER);
    rig.fill(BUFFERS, &vec![0xa5; POISON]);
    rig.port(0).type_in(b"typed");
    rig
}

/// Services the queues and checks that one broke for this reason, that nothing was written or appended, and
/// that the device works after a reset.
fn assert_breaks(mut rig: Rig, queue: u16, reason: &str) {
    let before = rig.bytes(BUFFERS, POISON);
    let interrupts = rig.interrupts();
    rig.run();
    let faults = rig.faults();
    assert_eq!(faults.len(), 1, "one reset is requested: {faults:?}");
    assert!(faults[0].contains(reason), "{faults:?}, expected {reason}");
    assert_eq!((rig.take_used(queue), rig.interrupts()), (vec![], interrupts));
    // It stays broken, for the next daemon as well, and requests no second reset.
    rig.run();
    rig.open();
    rig.run();
    assert_eq!((rig.take_used(queue), rig.faults().len()), (vec![], 1));
    assert!(before == rig.bytes(BUFFERS, POISON), "nothing was written");
    assert_eq!(rig.output(0, 0), b"");
    rig.reset();
    rig.print(OUTPUT, b"works");
    rig.offer(INPUT, 0, &[writable(BUFFERS, 8)]);
    rig.run();
    assert_eq!(
        (rig.take_used(INPUT), rig.output(0, 0)),
        (vec![(0, 5)], b"works".to_vec())
    );
}

// Virtio 1.2, 5.3.6.2.
#[test]
fn buffers_of_the_wrong_direction() {
    for (queue, buf, reason) in [
        (INPUT, readable(BUFFERS, 16), "bytes to read"),
        (TO_DRIVER, readable(BUFFERS, 16), "bytes to read"),
        (OUTPUT, writable(BUFFERS, 16), "bytes to write"),
        (FROM_DRIVER, writable(BUFFERS, 16), "bytes to write"),
    ] {
        let mut rig = poisoned();
        rig.offer(queue, 0, &[buf]);
        assert_breaks(rig, queue, reason);
        let mut rig = poisoned();
        rig.offer(queue, 0, &[readable(BUFFERS, 16), writable(BUFFERS + 64, 16)]);
        assert_breaks(rig, queue, reason);
    }
}

#[test]
fn no_room() {
    for (queue, len, reason) in [
        (INPUT, 0, "no room for a byte"),
        (TO_DRIVER, 7, "no room for a control"),
    ] {
        let mut rig = poisoned();
        rig.offer(queue, 0, &[writable(BUFFERS, len)]);
        assert_breaks(rig, queue, reason);
    }
    let mut rig = poisoned();
    rig.offer(FROM_DRIVER, 0, &[readable(BUFFERS, 7)]);
    assert_breaks(rig, FROM_DRIVER, "shorter than 8 bytes");
}

// torture b1
#[test]
fn chains_that_loop_or_leave_the_table() {
    for queue in QUEUES {
        let flags = if queue % 2 == 0 { VIRTQ_DESC_F_WRITE } else { 0 };
        let endless = Buf {
            addr: BUFFERS,
            len: 16,
            flags: flags | VIRTQ_DESC_F_NEXT,
        };
        let mut rig = poisoned();
        let table = rig.ring(queue).desc.0;
        rig.descriptor(table, 0, endless, 1);
        rig.descriptor(table, 1, endless, 0);
        rig.offer_head(queue, 0);
        assert_breaks(rig, queue, "chain at head 0");
        let mut rig = poisoned();
        rig.descriptor(table, 0, endless, SIZE);
        rig.offer_head(queue, 0);
        assert_breaks(rig, queue, "chain at head 0");
        let mut rig = poisoned();
        rig.offer_head(queue, SIZE);
        assert_breaks(rig, queue, "head 16");
    }
}

// torture b2, b5
#[test]
fn buffers_and_tables_that_are_no_ram() {
    for queue in QUEUES {
        let flags = if queue % 2 == 0 { VIRTQ_DESC_F_WRITE } else { 0 };
        for addr in [0, BASE - 8, BASE + RAM as u64 - 8, u64::MAX - 8] {
            for flags in [flags, VIRTQ_DESC_F_INDIRECT] {
                let mut rig = poisoned();
                rig.offer(queue, 0, &[Buf { addr, len: 16, flags }]);
                assert_breaks(rig, queue, "chain at head 0");
            }
        }
    }
}

// torture b3
#[test]
fn an_index_that_jumps() {
    for queue in QUEUES {
        let rig = poisoned();
        let popped = u16::from(queue == FROM_DRIVER);
        rig.set_avail_idx(queue, popped + SIZE + 1);
        assert_breaks(rig, queue, "avail.idx is");
    }
}

// torture b6: output that is the ring itself, and input into the table.
#[test]
fn buffers_that_overlap_rings_and_tables() {
    let mut rig = poisoned();
    let (input, output) = (rig.ring(INPUT), rig.ring(OUTPUT));
    rig.offer(OUTPUT, 0, &[readable(output.desc.0, 0x3000)]);
    rig.offer(INPUT, 0, &[writable(input.desc.0, 5)]);
    rig.run();
    assert_eq!(
        (rig.take_used(OUTPUT), rig.take_used(INPUT)),
        (vec![(0, 0)], vec![(0, 5)])
    );
    assert_eq!(rig.output(0, 0).len(), 0x3000);
}

// torture b12: a chain that becomes another one while it is appended.
#[test]
fn a_chain_that_shrinks_between_rounds() {
    let mut rig = poisoned();
    let table = rig.ring(OUTPUT).desc.0;
    rig.offer(OUTPUT, 0, &[readable(BUFFERS, 0x3_0000)]);
    let memory = rig.memory.clone();
    rig.port(0).on_output(Box::new(move || {
        use vm_memory::{Bytes, GuestAddress};
        memory.write_obj(8_u32, GuestAddress(table + 8)).unwrap();
    }));
    rig.run();
    assert_eq!(rig.take_used(OUTPUT), [(0, 0)]);
    assert_eq!(rig.faults(), [] as [String; 0]);
    rig.print(OUTPUT, b"end");
    assert!(rig.output(0, 0).ends_with(b"end"));
}

proptest! {
    /// With any rings and any tables: no panic, and servicing ends.
    #[test]
    fn any_bytes_in_the_rings(
        table in proptest::collection::vec(any::<u8>(), usize::from(SIZE) * 16),
        heads in proptest::collection::vec((0..4_u16, 0..SIZE + 2), 1..=usize::from(SIZE)),
    ) {
        let mut rig = poisoned();
        for queue in QUEUES {
            rig.fill(rig.ring(queue).desc.0, &table);
        }
        for (queue, head) in heads {
            rig.offer_head(queue, head);
        }
        rig.run();
        rig.open();
        rig.run();
        prop_assert!(rig.faults().len() <= 4);
    }
}
