//! Drivers that violate the specification: the queue breaks, DEVICE_NEEDS_RESET is set once, nothing else
//! changes.

use proptest::prelude::*;
use ringvirtio::virtio::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE, feature,
};

use super::rig::{
    ALL_FEATURES, BASE, BUFFERS, Buf, Desc, ENGINES, RAM, Rig, WRITABLE_FEATURES, readable, writable,
};
use crate::disk::EngineKind;
use crate::virtio::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};

const DATA: u64 = BUFFERS + 0x1_0000;
const STATUS: u64 = BUFFERS + 0x100;
const NEXT: u16 = VIRTQ_DESC_F_NEXT;
const WRITE: u16 = VIRTQ_DESC_F_WRITE;
const INDIRECT: u16 = VIRTQ_DESC_F_INDIRECT;

/// Returns a rig whose RAM outside the rings is poisoned, so that any stray store is noticed.
fn poisoned() -> Rig {
    let rig = Rig::new(EngineKind::Threads);
    rig.fill(BUFFERS, &vec![0xa5; 0x4_0000]);
    rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
    rig
}

/// Serves the queue and checks that it broke for this reason and that nothing was written.
fn assert_breaks(mut rig: Rig, reason: &str) {
    let before = (rig.bytes(BUFFERS, 0x4_0000), rig.image());
    rig.run();
    let faults = rig.fault_list();
    assert_eq!(faults.len(), 1, "one reset is requested");
    assert!(faults[0].contains(reason), "{faults:?}, expected {reason}");
    assert!(rig.vq().is_broken());
    assert_eq!(rig.take_used(), []);
    assert_eq!(rig.interrupt_count(), 0);
    // It stays broken, even for a new daemon, and requests no second reset.
    rig.offer_request(3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
    rig.run();
    rig.reopen();
    rig.run();
    assert_eq!((rig.take_used(), rig.fault_list().len()), (vec![], 1));
    rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
    rig.fill(BUFFERS + 3 * 64, &[0xa5; 64]);
    assert!(
        before == (rig.bytes(BUFFERS, 0x4_0000), rig.image()),
        "nothing else was written"
    );
    // After a reset it works again.
    rig.epoch += 1;
    rig.fill(rig.ring.avail.0, &[0; 64]);
    rig.fill(rig.ring.used.0, &[0; 256]);
    (rig.avail_idx, rig.used_seen) = (0, 0);
    rig.reopen();
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))),
        (0, 513)
    );
}

// torture b1 (CVE-2019-9547)
#[test]
fn chains_that_loop() {
    let cases: [&[(u16, u16)]; 3] = [&[(0, 0)], &[(0, 1), (1, 0)], &[(0, 5), (5, 6), (6, 7), (7, 5)]];
    for links in cases {
        for flags in [NEXT, NEXT | WRITE] {
            let mut rig = poisoned();
            for &(from, to) in links {
                rig.write_desc(
                    BASE,
                    from,
                    Desc {
                        addr: DATA,
                        len: 16,
                        flags,
                        next: to,
                    },
                );
            }
            rig.offer_head(0);
            assert_breaks(rig, "loops");
        }
    }
}

// torture b1
#[test]
fn chains_that_point_past_the_table() {
    for next in [16, 17, 0x8000, 0xffff] {
        let mut rig = poisoned();
        rig.write_desc(
            BASE,
            0,
            Desc {
                addr: BUFFERS,
                len: 16,
                flags: NEXT,
                next,
            },
        );
        rig.offer_head(0);
        assert_breaks(rig, "outside of a table of 16");
    }
    for head in [16, 0xffff] {
        let mut rig = poisoned();
        rig.offer_head(head);
        assert_breaks(rig, "outside of the descriptor table");
    }
}

fn indirect(len: u32, flags: u16) -> Rig {
    let mut rig = poisoned();
    rig.write_desc(
        BASE,
        0,
        Desc {
            addr: BUFFERS + 0x1000,
            len,
            flags,
            next: 1,
        },
    );
    rig.write_desc(
        BASE,
        1,
        Desc {
            addr: STATUS,
            len: 1,
            flags: WRITE,
            next: 0,
        },
    );
    rig.chain_in(
        BUFFERS + 0x1000,
        0,
        &[readable(BUFFERS, 16), writable(DATA, 512), writable(STATUS, 1)],
    );
    rig.offer_head(0);
    rig
}

// torture b2
#[test]
fn bad_indirect_tables() {
    for len in [0, 1, 15, 17, 49, 0xffff_fff0, u32::MAX, 32769 * 16] {
        assert_breaks(indirect(len, INDIRECT), "an indirect table of");
    }
    assert_breaks(indirect(48, INDIRECT | NEXT), "with a next one");
    assert_breaks(indirect(16, INDIRECT), "outside of a table of 1");

    let rig = indirect(48, INDIRECT);
    rig.write_desc(
        BUFFERS + 0x1000,
        1,
        Desc {
            addr: BUFFERS + 0x1000,
            len: 48,
            flags: INDIRECT,
            next: 0,
        },
    );
    assert_breaks(rig, "inside an indirect table");

    // A loop inside the table, and a chain longer than the queue.
    let rig = indirect(48, INDIRECT);
    rig.write_desc(
        BUFFERS + 0x1000,
        1,
        Desc {
            addr: DATA,
            len: 512,
            flags: NEXT | WRITE,
            next: 1,
        },
    );
    assert_breaks(rig, "loops");
    let rig = indirect(17 * 16, INDIRECT);
    let mut bufs = vec![readable(BUFFERS, 16)];
    bufs.extend([writable(DATA, 32); 15]);
    bufs.push(writable(STATUS, 1));
    rig.chain_in(BUFFERS + 0x1000, 0, &bufs);
    assert_breaks(rig, "longer than the queue");

    // Past the end of RAM.
    let rig = indirect(48, INDIRECT);
    rig.write_desc(
        BASE,
        0,
        Desc {
            addr: BASE + RAM as u64 - 32,
            len: 48,
            flags: INDIRECT,
            next: 0,
        },
    );
    assert_breaks(rig, "indirect table:");
}

// torture b2
#[test]
fn an_indirect_table_that_was_not_negotiated() {
    let mut rig = indirect(48, INDIRECT);
    rig.features &= !feature(VIRTIO_RING_F_INDIRECT_DESC);
    rig.epoch += 1;
    rig.reopen();
    assert_breaks(rig, "not negotiated");
}

// torture b3
#[test]
fn an_avail_index_that_jumps() {
    for idx in [17, 0x8000, 0xffff] {
        let rig = poisoned();
        rig.set_u16(rig.ring.avail.0 + 2, idx);
        assert_breaks(rig, "avail.idx");
    }
}

// torture b3
#[test]
fn an_avail_index_that_goes_back() {
    let mut rig = Rig::new(EngineKind::Threads);
    for _ in 0..3 {
        assert_eq!(rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))).0, 0);
    }
    rig.set_u16(rig.ring.avail.0 + 2, 2);
    rig.run();
    assert_eq!(
        rig.fault_list(),
        ["avail.idx is 2, 3 are popped, and the queue has 16 entries"]
    );
}

// torture b4 (CVE-2026-45782)
#[test]
fn the_same_head_twice_in_flight() {
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, 77] {
        let mut rig = Rig::new(EngineKind::Threads);
        let status = rig.offer_request(2, kind, 0, Some(writable(DATA, 512)));
        rig.offer_head(2);
        rig.run();
        assert_eq!(
            rig.fault_list(),
            ["head 2 was made available while it is in flight"]
        );
        // The first completes, once.
        assert_eq!(rig.take_used().len(), 1);
        assert_eq!(rig.byte(status), if kind == 77 { 2 } else { 0 });
        rig.run();
        assert_eq!(rig.take_used().len(), 0);
    }
}

// torture b5 (CVE-2018-1059)
#[test]
fn buffers_that_are_not_ram() {
    let end = BASE + RAM as u64;
    let cases = [
        (0, 512),                    // below RAM: devices, EL2
        (0x0a00_0000, 512),          // a device page
        (BASE - 1, 512),             // crossing the start
        (end - 511, 512),            // crossing the end
        (end, 1),                    // just past the end
        (u64::MAX - 510, 512),       // up to the end of the address space
        (u64::MAX - 100, 512),       // wrapping
        (u64::MAX, u32::MAX),        // wrapping
        (BASE, u32::MAX),            // 4 GiB-1 bytes
        (BASE + 0x1_0000_0000, 512), // RAM if truncated to 32 bits
    ];
    for (addr, len) in cases {
        for write in [false, true] {
            let mut rig = poisoned();
            rig.offer(
                0,
                &[
                    readable(BUFFERS, 16),
                    Buf { addr, len, write },
                    writable(STATUS, 1),
                ],
            );
            assert_breaks(rig, "not all guest RAM");
        }
    }
}

// torture b7
#[test]
fn headers_and_statuses_that_are_missing() {
    let cases: [(&[Buf], &str); 8] = [
        (&[readable(BUFFERS, 15), writable(STATUS, 1)], "header shorter"),
        (&[readable(BUFFERS, 0), writable(STATUS, 1)], "header shorter"),
        (&[writable(BUFFERS, 16), writable(STATUS, 1)], "header shorter"),
        (&[writable(STATUS, 1)], "header shorter"),
        (&[readable(BUFFERS, 16)], "no room for the status"),
        (
            &[readable(BUFFERS, 16), writable(STATUS, 0)],
            "no room for the status",
        ),
        (
            &[readable(BUFFERS, 16), readable(DATA, 512), readable(STATUS, 1)],
            "no room for the status",
        ),
        (
            &[readable(BUFFERS, 16), writable(DATA, 512), readable(STATUS, 1)],
            "follows a writable",
        ),
    ];
    for (bufs, reason) in cases {
        let mut rig = poisoned();
        rig.offer(0, bufs);
        assert_breaks(rig, reason);
    }
}

// torture b6
#[test]
fn buffers_that_overlap_rings_and_tables() {
    for engine in ENGINES {
        for target in [BASE, BASE + 0x8_0000, BASE + 0xa_0000, BUFFERS - 512] {
            let mut rig = Rig::new(engine);
            let before = rig.image();
            rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(target, 1024)));
            // Any result is allowed, as long as serving ends and the image is unchanged.
            rig.run();
            rig.run();
            assert_eq!(rig.image(), before);
        }
        // The status byte inside the data buffer.
        let mut rig = Rig::new(engine);
        rig.header(BUFFERS, VIRTIO_BLK_T_IN, 0);
        rig.offer(
            0,
            &[
                readable(BUFFERS, 16),
                writable(DATA, 512),
                writable(DATA + 100, 1),
            ],
        );
        rig.run();
        assert_eq!(rig.take_used(), [(0, 513)]);
        assert_eq!(rig.byte(DATA + 100), 0);
    }
}

// torture b12 (CVE-2015-8550, CVE-2020-14375): a second vCPU rewrites header, descriptors and indirect table
#[test]
fn a_second_vcpu_rewrites_requests_and_tables() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let stop = AtomicBool::new(false);
    let mut rig = poisoned();
    let image = rig.image();
    let memory = rig.memory.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddress};
            let mut seed = 0x1234_5678_u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                // Words of a descriptor, the indirect table or the header: valid or random ones.
                let word = (seed >> 40) % 10;
                let (addr, good) = match word {
                    0 => (BASE, BUFFERS + 0x1000),
                    1 => (BASE + 8, 48 | u64::from(INDIRECT) << 32),
                    2..8 => (
                        BUFFERS + 0x1000 + (word - 2) * 8,
                        [
                            BUFFERS,
                            16 | u64::from(NEXT) << 32 | 1 << 48,
                            DATA,
                            512 | u64::from(NEXT | WRITE) << 32 | 2 << 48,
                            STATUS,
                            1 | u64::from(WRITE) << 32,
                        ][(word - 2) as usize],
                    ),
                    8 => (BUFFERS, 0),
                    _ => (BUFFERS + 8, 1),
                };
                let value = if seed & 0x7000 == 0 { seed } else { good };
                // Never a write request: the image must not change.
                let value = if addr == BUFFERS { value & !1 } else { value };
                memory.write_obj(value, GuestAddress(addr)).unwrap();
            }
        });
        let mut served = 0;
        for _ in 0..20_000 {
            rig.offer_head(0);
            rig.run();
            served += rig.take_used().len();
            if rig.vq().is_broken() {
                rig.epoch += 1;
                rig.set_u16(rig.ring.avail.0 + 2, 0);
                rig.set_u16(rig.ring.used.0 + 2, 0);
                (rig.avail_idx, rig.used_seen) = (0, 0);
                let disk = rig.queue().disk().clone();
                rig.open_on(disk);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            served > 100,
            "too few requests were served during the race: {served}"
        );
    });
    assert_eq!(rig.image(), image);
}

// torture b15: used_event and flags at random; progress is never lost, interrupts never outnumber completions
#[test]
fn random_interrupt_suppression() {
    let mut rig = Rig::with(
        EngineKind::Threads,
        16,
        ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX),
        false,
    );
    let mut seed = 1_u32;
    let mut completed = 0;
    for round in 0..2000 {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        rig.set_u16(rig.ring.avail.0, (seed >> 8) as u16);
        rig.set_u16(rig.ring.avail.0 + 4 + 32, (seed >> 16) as u16);
        rig.set_u16(rig.ring.used.0, (seed >> 4) as u16);
        for head in 0..=(round % 4) {
            rig.offer_request(head * 3, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
        }
        rig.run();
        let used = rig.take_used().len();
        assert_eq!(used, usize::from(round % 4) + 1);
        completed += used;
        assert!(rig.interrupt_count() <= completed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    // torture b1-b7 at random: with any descriptors, heads and indices, serving ends without a panic, and
    // used lengths do not exceed the buffers.
    #[test]
    fn random_rings(
        descs in prop::collection::vec((0_u64..6, 0_u32..0x3000, 0_u16..8, 0_u16..20), 16),
        kinds in prop::collection::vec(0_u32..15, 4),
        heads in prop::collection::vec(0_u16..18, 1..16),
        jump in prop_oneof![9 => Just(0_u16), 1 => any::<u16>()],
    ) {
        let mut rig = Rig::with(EngineKind::Threads, 16, WRITABLE_FEATURES, false);
        let places = [BUFFERS, BUFFERS + 0x20, DATA, BASE, BASE + RAM as u64 - 0x1000, u64::MAX - 0x100];
        for (number, kind) in kinds.iter().enumerate() {
            rig.header(BUFFERS + number as u64 * 16, *kind, u64::from(*kind));
        }
        for (index, (place, len, flags, next)) in descs.iter().enumerate() {
            let desc = Desc { addr: places[*place as usize], len: *len, flags: *flags, next: *next };
            rig.write_desc(BASE, index as u16, desc);
        }
        for head in &heads {
            rig.offer_head(*head);
        }
        rig.set_u16(rig.ring.avail.0 + 2, rig.avail_idx.wrapping_add(jump));
        rig.run();
        rig.run();
        prop_assert!(rig.fault_list().len() <= 1);
        prop_assert_eq!(rig.vq().in_flight(), 0);
        if descs.iter().all(|desc| desc.0 != 3) {
            // No buffer overlaps the rings, so only the device has written the used ring.
            let used = rig.take_used();
            prop_assert!(used.len() <= heads.len());
            let room: u64 = descs.iter().map(|desc| u64::from(desc.1)).sum();
            for (id, len) in used {
                prop_assert!(heads.contains(&(id as u16)));
                prop_assert!(u64::from(len) <= room);
            }
        }
    }
}
