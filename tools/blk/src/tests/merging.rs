//! Batches: how many requests are popped at once, which are merged, and merged operations that end early or
//! fail.

use super::rig::{ALL_FEATURES, BUFFERS, ENGINES, Rig, TestEngine, readable, writable};
use crate::disk::{Disk, EngineKind};
use crate::engine::IoKind;
use crate::engine::fake::{FakeEngine, Requested, Scripted};
use crate::virtio::{RequestStatus, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;
const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;

fn fake(size: u16) -> (Rig, FakeEngine) {
    let mut rig = Rig::with(EngineKind::Threads, size, ALL_FEATURES, false);
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    (rig, engine)
}

/// Offers requests of two sectors each. Request `n` has head `3 * n` and its data at `DATA + 1024 * n`; a
/// write's bytes are `n | 0x80`. Returns the addresses of their status bytes.
fn offer(rig: &mut Rig, requests: &[(u32, u64)]) -> Vec<u64> {
    let one = |(number, &(kind, sector)): (usize, &(u32, u64))| {
        let at = DATA + number as u64 * 1024;
        rig.fill(at, &[number as u8 | 0x80; 1024]);
        let data = if kind == OUT {
            readable(at, 1024)
        } else {
            writable(at, 1024)
        };
        rig.offer_request(number as u16 * 3, kind, sector, Some(data))
    };
    requests.iter().enumerate().map(one).collect()
}

fn requested(engine: &FakeEngine) -> Vec<(IoKind, u64, u64)> {
    let short = |op: &Requested| (op.kind, op.offset / 512, op.len);
    engine.requested().iter().map(short).collect()
}

fn ok(rig: &Rig, statuses: &[u64]) -> bool {
    statuses.iter().all(|&status| rig.byte(status) == OK)
}

// Requests of adjacent sectors are merged in whatever order they are in the batch; each gets its own bytes.
#[test]
fn adjacent_requests_are_merged() {
    let (mut rig, engine) = fake(64);
    let statuses = offer(
        &mut rig,
        &[
            (IN, 4),
            (OUT, 20),
            (IN, 2),
            (OUT, 22),
            (IN, 0),
            (IN, 40),
            (OUT, 18),
        ],
    );
    rig.run();
    assert_eq!(
        requested(&engine),
        [
            (IoKind::Read, 0, 3072),
            (IoKind::Read, 40, 1024),
            (IoKind::Write, 18, 3072)
        ]
    );
    let mut used = rig.take_used();
    used.sort_unstable();
    let expected = [
        (0, 1025),
        (3, 1),
        (6, 1025),
        (9, 1),
        (12, 1025),
        (15, 1025),
        (18, 1),
    ];
    assert!(used == expected && ok(&rig, &statuses), "{used:?}");
    for (number, sector) in [(0, 4), (2, 2), (4, 0), (5, 40)] {
        let at = sector * 512;
        assert_eq!(
            rig.bytes(DATA + number * 1024, 1024),
            engine.image()[at..at + 1024]
        );
    }
    for (number, sector) in [(1_u8, 20), (3, 22), (6, 18)] {
        assert_eq!(engine.image()[sector * 512..][..1024], [number | 0x80; 1024]);
    }
    let stats = rig.queue().stats().snapshot();
    assert_eq!(
        (
            stats.merges,
            stats.merged,
            stats.operations,
            stats.queue.batches,
            stats.queue.max_batch
        ),
        (2, 6, 3, 1, 7)
    );
    assert_eq!(
        (
            stats.reads,
            stats.writes,
            stats.queue.publications,
            stats.queue.interrupts
        ),
        (4, 3, 1, 1)
    );
}

// No merge across an overlap with a request of another kind or an earlier write, where the order matters.
#[test]
fn nothing_is_merged_across_an_overlap() {
    let (mut rig, engine) = fake(64);
    // The read overlaps both writes; the last write overlaps the one before it.
    let statuses = offer(&mut rig, &[(OUT, 0), (IN, 1), (OUT, 2), (IN, 4), (OUT, 3)]);
    rig.run();
    assert!(ok(&rig, &statuses));
    assert_eq!(
        requested(&engine),
        [
            (IoKind::Write, 0, 1024),
            (IoKind::Read, 1, 1024),
            (IoKind::Read, 4, 1024),
            (IoKind::Write, 2, 1024),
            (IoKind::Write, 3, 1024),
        ]
        .map(|asked| asked)
    );
    let image = engine.image();
    assert_eq!(
        (image[0], image[1536], image[2047], image[2559]),
        (0x80, 0x84, 0x84, 0x84)
    );
}

// Merged operations are bounded in bytes (1 MiB, or 64 KiB where I/O is a copy) and in buffers (IOV_MAX).
#[test]
fn merged_operations_are_bounded() {
    let (mut rig, engine) = fake(4096);
    let large = 24 * 1024_u32;
    let mut sector = 0;
    let image: Vec<u8> = vec![0; 8 << 20];
    std::fs::write(&rig.config.path, &image).unwrap();
    rig.drop_queue();
    rig.open();
    let memory = rig.queue().disk().is_memory();
    let engine_image = FakeEngine::new(image);
    rig.engine = TestEngine::Custom(Box::new(engine_image.clone()));
    drop(engine);
    for head in 0..100 {
        rig.offer_request(head * 3, IN, sector, Some(writable(DATA, large)));
        sector += u64::from(large / 512);
    }
    rig.run();
    assert_eq!(rig.take_used().len(), 100);
    let most = if memory { 64 << 10 } else { 1 << 20 };
    let lens: Vec<u64> = engine_image.requested().iter().map(|asked| asked.len).collect();
    assert!(lens.iter().all(|&len| len <= most), "{lens:?}");
    assert_eq!(lens.iter().sum::<u64>(), 100 * u64::from(large));
    assert_eq!(lens.len() as u64, 100_u64.div_ceil(most / u64::from(large)));
    // Three requests of 400 buffers: two fit.
    for number in 0..3_u16 {
        let head = number * 402;
        let at = BUFFERS + u64::from(number) * 64;
        rig.header(at, IN, u64::from(number) * 400);
        let mut bufs = vec![readable(at, 16)];
        bufs.extend((0..400).map(|_| writable(DATA, 512)));
        bufs.push(writable(at + 32, 1));
        rig.offer(head, &bufs);
    }
    let before = engine_image.requested().len();
    rig.run();
    assert_eq!(rig.take_used().len(), 3);
    let lens: Vec<u64> = engine_image.requested()[before..]
        .iter()
        .map(|asked| asked.len)
        .collect();
    if memory {
        assert_eq!(lens.len(), 3);
    } else {
        assert_eq!(lens, [800 * 512, 400 * 512]);
    }
}

// torture c8: a merged operation that is short, transfers nothing or fails: each request completes with its
// own status
#[test]
fn merged_operations_that_end_early() {
    for kind in [IN, OUT] {
        for outcome in [
            Scripted::Short(1),
            Scripted::Short(1024),
            Scripted::Short(1500),
            Scripted::Short(4095),
            Scripted::Fail(libc::EINTR),
            Scripted::Fail(libc::EIO),
        ] {
            let (mut rig, engine) = fake(64);
            engine.script([outcome]);
            let statuses = offer(&mut rig, &[(kind, 8), (kind, 10), (kind, 12), (kind, 14)]);
            rig.run();
            assert!(ok(&rig, &statuses), "{kind} {outcome:?}");
            assert_eq!(rig.take_used().len(), 4);
            for number in 0..4_usize {
                let data = rig.bytes(DATA + number as u64 * 1024, 1024);
                assert_eq!(engine.image()[(8 + number * 2) * 512..][..1024], data);
            }
            let stats = rig.queue().stats();
            assert_eq!((stats.merges.get(), stats.errors.get()), (1, 0));
            assert!(stats.retries.get() >= 1);
        }
    }
}

// torture c8: a permanent error fails the request that it belongs to, and no other
#[test]
fn an_error_fails_its_own_request() {
    for kind in [IN, OUT] {
        let (mut rig, engine) = fake(64);
        use Scripted::{Fail, Whole};
        // The merged operation, then four single ones, of which the second fails again.
        engine.script([Fail(libc::EIO), Whole, Fail(libc::EIO), Whole, Whole]);
        let statuses = offer(&mut rig, &[(kind, 8), (kind, 10), (kind, 12), (kind, 14)]);
        rig.run();
        let found: Vec<u8> = statuses.iter().map(|&status| rig.byte(status)).collect();
        assert_eq!(found, [OK, IOERR, OK, OK]);
    }
}

// Both engines, against a model: random batches of reads and writes that do not overlap in flight.
#[test]
fn merged_traffic_on_real_files() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 256, ALL_FEATURES, false);
        let mut model = rig.image();
        let mut seed = 12345_u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 16) % below
        };
        for round in 0..100_u32 {
            let mut requests = Vec::new();
            for place in 0..32_u64 {
                match next(3) {
                    0 => requests.push((IN, place * 2)),
                    1 => requests.push((OUT, place * 2)),
                    _ => {}
                }
            }
            for index in (1..requests.len()).rev() {
                requests.swap(index, next(index as u32 + 1) as usize);
            }
            let statuses = offer(&mut rig, &requests);
            for (number, &(kind, sector)) in requests.iter().enumerate() {
                if kind == OUT {
                    let byte = (number as u32 + round) as u8;
                    rig.fill(DATA + number as u64 * 1024, &[byte; 1024]);
                    model[sector as usize * 512..][..1024].fill(byte);
                }
            }
            rig.run();
            assert_eq!(rig.take_used().len(), requests.len());
            assert!(ok(&rig, &statuses));
            for (number, &(_, sector)) in requests.iter().enumerate() {
                let data = rig.bytes(DATA + number as u64 * 1024, 1024);
                assert_eq!(data, model[sector as usize * 512..][..1024], "round {round}");
            }
        }
        assert!(rig.image() == model);
        assert!(rig.queue().stats().merged.get() > 500);
    }
}

// A full queue: a round pops at most 256 requests, and completions are published between rounds.
#[test]
fn a_round_pops_a_bounded_number() {
    let mut rig = Rig::with(EngineKind::Threads, 1024, ALL_FEATURES, false);
    for head in 0..341 {
        rig.offer_request(head * 3, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
    }
    let mut engine = FakeEngine::default();
    assert_eq!(rig.queue().service(&mut engine), 256);
    assert!(rig.vq().has_more());
    assert_eq!((rig.vq().publish(), rig.used_idx()), (256, 256));
    assert_eq!(rig.queue().service(&mut engine), 85);
    assert!(!rig.vq().has_more());
    rig.vq().publish();
    let heads: Vec<u32> = rig.take_used().iter().map(|used| used.0).collect();
    assert_eq!(heads, (0..341).map(|head| head * 3).collect::<Vec<u32>>());
}

// A batch whose last request breaks the queue: the requests before it still complete.
#[test]
fn requests_before_a_fault_complete() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 64, ALL_FEATURES, false);
        let statuses = offer(&mut rig, &[(OUT, 0), (OUT, 2), (OUT, 4)]);
        rig.offer_head(0xffff);
        rig.run();
        assert_eq!(rig.fault_list().len(), 1);
        assert_eq!(rig.take_used().len(), 3);
        assert!(ok(&rig, &statuses));
        assert_eq!(
            rig.image_at(0, 3072),
            [[0x80; 1024], [0x81; 1024], [0x82; 1024]].concat()
        );
        let disk = rig.queue().disk().clone();
        rig.drop_queue();
        drop(disk);
        assert!(Disk::open(&rig.config).is_ok(), "the image is closed");
    }
}
