//! DISCARD and WRITE_ZEROES: segments, their limits and flags, effects on real files, and durability.

use std::os::unix::fs::MetadataExt;

use ringvirtio::virtio::feature;

use super::rig::{
    ALL_FEATURES, BUFFERS, ENGINES, Rig, SECTORS, TestEngine, WRITABLE_FEATURES, readable, writable,
};
use crate::disk::EngineKind;
use crate::engine::IoKind;
use crate::engine::fake::{FakeEngine, Scripted};
use crate::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROES_SECTORS};
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;
const UNSUPP: u8 = RequestStatus::Unsupp as u8;
const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
const ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

fn fake(features: u64) -> (Rig, FakeEngine) {
    let mut rig = Rig::with(EngineKind::Threads, 64, features, false);
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    (rig, engine)
}

fn request(rig: &mut Rig, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
    let data = rig.segments(DATA, segments);
    let (status, used) = rig.request(0, kind, 0, Some(data));
    assert_eq!(used, 1, "only the status is written");
    status
}

// virtio-checklist 57: a zeroed range reads zero, its neighbours do not change; with unmap and without, both
// engines
#[test]
fn zeroed_ranges_read_zero() {
    for kind in ENGINES {
        for flags in [0, UNMAP] {
            let mut rig = Rig::with(kind, 64, WRITABLE_FEATURES, false);
            let mut expected = rig.image();
            let segments = [(3, 1, flags), (16, 40, flags), (126, 2, flags)];
            let status = request(&mut rig, ZEROES, &segments);
            if status == UNSUPP {
                // A file system without it, and an engine without a fallback: an error, and no effect.
                assert!(rig.image() == expected);
                eprintln!("skipped: no zeroes on the file system of {:?}", rig.config.path);
                continue;
            }
            assert_eq!(status, OK);
            for (sector, count, _) in segments {
                expected[sector as usize * 512..][..count as usize * 512].fill(0);
            }
            assert!(rig.image() == expected, "{kind:?} {flags}");
            rig.fill(DATA, &[0xa5; 20480]);
            let read = rig.request(0, VIRTIO_BLK_T_IN, 16, Some(writable(DATA, 20480)));
            assert_eq!((read, rig.bytes(DATA, 20480)), ((OK, 20481), vec![0; 20480]));
            let stats = rig.queue().stats();
            assert_eq!((stats.zeroes.get(), stats.bytes_zeroed.get()), (1, 43 * 512));
        }
    }
}

// Discarded blocks are deallocated; the others and the size are unchanged.
#[test]
fn discarded_blocks_are_freed() {
    for kind in ENGINES {
        let mut rig = Rig::closed(kind, 64, WRITABLE_FEATURES, false);
        std::fs::write(&rig.config.path, vec![0x77; 1 << 20]).unwrap();
        rig.open();
        let blocks = |rig: &Rig| std::fs::metadata(&rig.config.path).unwrap().blocks();
        let before = blocks(&rig);
        assert_eq!(request(&mut rig, DISCARD, &[(256, 512, 0), (1024, 512, 0)]), OK);
        let after = blocks(&rig);
        assert!(after + 1024 <= before, "{before} blocks, then {after}");
        let image = rig.image();
        assert_eq!(image.len(), 1 << 20);
        for (sector, byte) in image.chunks(512).enumerate() {
            let freed = (256..768).contains(&sector) || (1024..1536).contains(&sector);
            assert!(freed || byte.iter().all(|&byte| byte == 0x77), "sector {sector}");
        }
        let stats = rig.queue().stats();
        assert_eq!(
            (stats.discards.get(), stats.bytes_discarded.get()),
            (1, 512 << 10)
        );
    }
}

// virtio-checklist 56: unknown flags, and unmap of a discard, are unsupported, and the request has no effect
#[test]
fn unknown_flags() {
    for (kind, flags) in [
        (DISCARD, UNMAP),
        (DISCARD, 2),
        (ZEROES, 2),
        (ZEROES, UNMAP | 0x8000_0000),
        (ZEROES, u32::MAX),
    ] {
        let (mut rig, engine) = fake(WRITABLE_FEATURES);
        assert_eq!(request(&mut rig, kind, &[(0, 8, 0), (8, 8, flags)]), UNSUPP);
        assert_eq!(engine.requested(), []);
        // Flags are checked first, before the range.
        assert_eq!(request(&mut rig, kind, &[(u64::MAX, 8, flags)]), UNSUPP);
    }
}

// virtio-checklist 63; torture b8, b9: ranges outside, too long, too many, or cut off: IOERR, no effect
#[test]
fn ranges_that_are_wrong() {
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    for kind in [DISCARD, ZEROES] {
        for bad in [
            (SECTORS, 1),
            (SECTORS - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 7, 8),
            (1 << 55, 8),
            (0, SECTORS as u32 + 1),
            (0, u32::MAX),
        ] {
            assert_eq!(
                request(&mut rig, kind, &[(0, 1, 0), (bad.0, bad.1, 0)]),
                IOERR,
                "{bad:?}"
            );
        }
        for len in [0, 1, 15, 17, 31, 16 * (MAX_SEGMENTS + 1)] {
            rig.fill(DATA, &vec![0; len as usize]);
            assert_eq!(
                rig.request(0, kind, 0, Some(readable(DATA, len))),
                (IOERR, 1),
                "{len}"
            );
        }
        assert_eq!(rig.request(0, kind, 0, None), (IOERR, 1));
        // A range at the very end and an empty range are valid.
        assert_eq!(request(&mut rig, kind, &[(SECTORS, 0, 0), (0, 0, 0)]), OK);
    }
    assert_eq!(engine.requested(), []);
}

// The limits of the configuration space are enforced.
#[test]
fn limits_of_the_configuration_space() {
    for (kind, most, op) in [
        (DISCARD, MAX_DISCARD_SECTORS, IoKind::Discard),
        (ZEROES, MAX_ZEROES_SECTORS, IoKind::WriteZeroes { unmap: false }),
    ] {
        let mut rig = Rig::closed(EngineKind::Threads, 128, WRITABLE_FEATURES, false);
        rig.image_file().set_len((u64::from(most) + 1) * 512).unwrap();
        rig.open();
        let engine = FakeEngine::default();
        rig.engine = TestEngine::Custom(Box::new(engine.clone()));
        let config = crate::device::config(rig.queue().disk(), 256, 1);
        let word = |offset: usize| u32::from_le_bytes(config[offset..offset + 4].try_into().unwrap());
        let at = if kind == DISCARD { 36 } else { 48 };
        assert_eq!((word(at), word(at + 4)), (most, MAX_SEGMENTS));
        assert_eq!(request(&mut rig, kind, &[(0, most + 1, 0)]), IOERR);
        assert_eq!(request(&mut rig, kind, &[(1, most, 0)]), OK);
        assert_eq!(
            request(&mut rig, kind, &vec![(0, 1, 0); MAX_SEGMENTS as usize]),
            OK
        );
        let asked = engine.requested();
        assert_eq!(asked.len(), 1 + MAX_SEGMENTS as usize);
        assert_eq!(
            (asked[0].kind, asked[0].offset, asked[0].len),
            (op, 512, u64::from(most) * 512)
        );
    }
}

// torture b10: on a read-only disk IOERR; virtio-checklist 61: not negotiated, unsupported
#[test]
fn requests_that_are_not_allowed() {
    for kind in [DISCARD, ZEROES] {
        let mut rig = Rig::with(
            EngineKind::Threads,
            64,
            ALL_FEATURES | feature(VIRTIO_BLK_F_RO),
            true,
        );
        let before = rig.image();
        assert_eq!(request(&mut rig, kind, &[(0, 8, 0)]), IOERR);
        assert!(rig.image() == before);
        let mut rig = Rig::with(EngineKind::Threads, 64, ALL_FEATURES, false);
        assert_eq!(request(&mut rig, kind, &[(0, 8, 0)]), UNSUPP);
        assert!(rig.image() == before);
    }
}

// virtio-checklist 37; torture b7: segments are bytes of the readable buffers, in any framing
#[test]
fn segments_in_any_framing() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 64, WRITABLE_FEATURES, false);
        rig.header(DATA, DISCARD, 0);
        rig.segments(DATA + 16, &[(8, 8, 0), (24, 8, 0)]);
        // Header and segments in pieces of 1, 17, 13, 1, ... bytes.
        let mut bufs = Vec::new();
        let mut at = 0;
        for len in [1, 17, 13, 1, 9, 7] {
            bufs.push(readable(DATA + at, len));
            at += u64::from(len);
        }
        assert_eq!(at, 48);
        bufs.push(writable(BUFFERS, 1));
        rig.offer(5, &bufs);
        rig.run();
        assert_eq!((rig.take_used(), rig.byte(BUFFERS)), (vec![(5, 1)], OK));
        assert_eq!(rig.queue().stats().bytes_discarded.get(), 16 * 512);
    }
}

// torture c8: errors, interruptions, and a file system that cannot
#[test]
fn ranges_whose_file_fails() {
    use Scripted::{Fail, Whole};
    let segments = [(0, 8, 0), (8, 8, 0), (32, 8, 0)];
    for (kind, script, expected, asked) in [
        (DISCARD, vec![Fail(libc::EINTR), Whole, Fail(libc::EAGAIN)], OK, 5),
        (ZEROES, vec![Whole, Fail(libc::EINTR)], OK, 4),
        (DISCARD, vec![Whole, Fail(libc::EIO)], IOERR, 2),
        (ZEROES, vec![Fail(libc::ENOSPC)], IOERR, 1),
        (DISCARD, vec![Fail(libc::EOPNOTSUPP); 3], OK, 3),
        (ZEROES, vec![Fail(libc::EOPNOTSUPP)], UNSUPP, 1),
    ] {
        let (mut rig, engine) = fake(WRITABLE_FEATURES);
        engine.script(script.clone());
        assert_eq!(request(&mut rig, kind, &segments), expected, "{kind} {script:?}");
        assert_eq!(engine.requested().len(), asked, "{kind} {script:?}");
    }
}

// virtio-checklist 58 for zeroes: without FLUSH they are durable before they complete. Negative control: an
// engine that does not sync fails.
#[test]
fn zeroes_are_durable_without_flush() {
    for (lie, features, durable) in [
        (false, WRITABLE_FEATURES & !feature(VIRTIO_BLK_F_FLUSH), true),
        (false, WRITABLE_FEATURES, false),
        (true, WRITABLE_FEATURES & !feature(VIRTIO_BLK_F_FLUSH), false),
    ] {
        let (mut rig, engine) = fake(features);
        if lie {
            engine.lie();
        }
        assert_eq!(request(&mut rig, ZEROES, &[(4, 4, UNMAP)]), OK);
        assert!(engine.image()[2048..4096] == [0; 2048]);
        engine.power_cut();
        assert_eq!(engine.image()[2048..4096] == [0; 2048], durable);
    }
}

// A range does not overtake the transfers of its batch that came before it.
#[test]
fn ranges_keep_their_place_in_a_batch() {
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    rig.fill(DATA, &[0x11; 512]);
    rig.offer_request(0, VIRTIO_BLK_T_OUT, 5, Some(readable(DATA, 512)));
    let segments = rig.segments(DATA + 0x1000, &[(5, 1, 0)]);
    rig.offer_request(3, ZEROES, 0, Some(segments));
    rig.offer_request(6, VIRTIO_BLK_T_OUT, 6, Some(readable(DATA, 512)));
    rig.run();
    assert_eq!(rig.take_used().len(), 3);
    let kinds: Vec<IoKind> = engine.requested().iter().map(|asked| asked.kind).collect();
    let zeroes = IoKind::WriteZeroes { unmap: false };
    assert_eq!(kinds, [IoKind::Write, zeroes, IoKind::Write]);
    assert_eq!(engine.image()[5 * 512..6 * 512], [0; 512]);
}
