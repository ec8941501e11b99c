//! Files that fail: short transfers, interruptions, errors, no space, truncation; and durability.

use std::sync::Arc;

use ringvirtio::virtio::feature;

use super::rig::{
    ALL_FEATURES, BUFFERS, ENGINES, Rig, SECTORS, TestEngine, open_soon, pattern, readable, writable,
};
use crate::disk::{Disk, DiskConfig, EngineKind};
use crate::engine::IoKind;
use crate::engine::fake::{FakeEngine, Scripted};
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;

fn fake(features: u64) -> (Rig, FakeEngine) {
    let mut rig = Rig::with(EngineKind::Threads, 16, features, false);
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    (rig, engine)
}

// torture c8: short transfers are resumed where they ended, EINTR and EAGAIN are retried
#[test]
fn short_transfers_and_interruptions() {
    let (mut rig, engine) = fake(ALL_FEATURES);
    use Scripted::{Fail, Short};
    let script = [
        Short(1),
        Fail(libc::EINTR),
        Short(511),
        Short(512),
        Fail(libc::EAGAIN),
        Short(2000),
    ];
    engine.script(script);
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 4096))),
        (OK, 4097)
    );
    assert_eq!(rig.bytes(DATA, 4096), engine.image()[1024..5120]);
    let data: Vec<u8> = (0..4096_u32).map(|byte| (byte * 3 % 253) as u8).collect();
    rig.fill(DATA, &data);
    engine.script(script);
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_OUT, 2, Some(readable(DATA, 4096))),
        (OK, 1)
    );
    assert_eq!(engine.image()[1024..5120], data);
    assert_eq!(engine.image()[5120], pattern(5120));
    engine.script([Fail(libc::EINTR), Fail(libc::EAGAIN)]);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
    assert_eq!(rig.queue().stats().retries.get(), 14);
    // Not without a limit.
    engine.script([Fail(libc::EAGAIN); 101]);
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 512))),
        (IOERR, 0)
    );
}

// torture c8, b13: an error is IOERR, with no more claimed than was transferred
#[test]
fn errors_of_the_file() {
    let (mut rig, engine) = fake(ALL_FEATURES);
    for error in [
        libc::EIO,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EBADF,
        libc::EFBIG,
        libc::ENXIO,
    ] {
        engine.script([Scripted::Fail(error)]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_OUT, 2, Some(readable(DATA, 1024))),
            (IOERR, 1)
        );
        engine.script([Scripted::Short(600), Scripted::Fail(error)]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 1024))),
            (IOERR, 600)
        );
    }
    assert_eq!(rig.queue().stats().errors.get(), 12);
    // The queue continues afterwards.
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_OUT, 2, Some(readable(DATA, 1024))),
        (OK, 1)
    );
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 2, None), (OK, 1));
}

// torture c8: after a failed fdatasync no later FLUSH says OK until the image is opened again, and the first
// one then does not: whether a device was opened again or a new daemon has taken over, also after a reset of
// the device
#[test]
fn a_failed_sync_stays_recorded() {
    let (mut rig, engine) = fake(ALL_FEATURES);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
    engine.script([Scripted::Fail(libc::EIO)]);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, IOERR);
    // The kernel would report success now.
    for _ in 0..3 {
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, IOERR);
    }
    assert_eq!(
        rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))).0,
        OK
    );
    for daemon in ["the same", "a new one", "a new one after a reset"] {
        match daemon {
            "the same" => rig.queue = None,
            _ => rig.kill(),
        }
        if daemon.ends_with("reset") {
            rig.epoch += 1;
            (rig.avail_idx, rig.used_seen) = (0, 0);
            rig.set_u16(rig.ring.avail.0 + 2, 0);
            rig.set_u16(rig.ring.used.0 + 2, 0);
        }
        rig.engine = TestEngine::Custom(Box::new(engine.clone()));
        rig.open();
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512))).0,
            OK
        );
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, IOERR, "{daemon}");
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK, "{daemon}");
        engine.script([Scripted::Fail(libc::EIO)]);
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, IOERR);
    }
    // Another start of the guest: nothing of it can be lost.
    rig.kill();
    rig.epoch += 1 << ringvirtio::inflight::RESET_BITS;
    (rig.avail_idx, rig.used_seen) = (0, 0);
    rig.set_u16(rig.ring.avail.0 + 2, 0);
    rig.set_u16(rig.ring.used.0 + 2, 0);
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    rig.open();
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
}

// torture c8: flushes that wait for a failing one fail too
#[test]
fn flushes_that_share_a_failing_sync() {
    let (mut rig, engine) = fake(ALL_FEATURES);
    engine.script([Scripted::Fail(libc::EIO)]);
    let statuses: Vec<u64> = (0..4)
        .map(|head| rig.offer_request(head * 2, VIRTIO_BLK_T_FLUSH, 0, None))
        .collect();
    rig.run();
    assert_eq!(rig.take_used().len(), 4);
    assert!(statuses.iter().all(|&status| rig.byte(status) == IOERR));
}

// virtio-checklist 59: a FLUSH that arrives during an fdatasync waits for the next one, which starts after it
#[test]
fn a_late_flush_gets_a_sync_of_its_own() {
    late_flush(false);
    // Negative control: an engine that does not sync loses the write.
    late_flush(true);
}

fn late_flush(lie: bool) {
    let (mut rig, engine) = fake(ALL_FEATURES);
    if lie {
        engine.lie();
    }
    rig.fill(DATA, &[0x5d; 512]);
    engine.hold(true);
    rig.offer_request(0, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.queue().service(&mut engine.clone());
    rig.offer_request(3, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
    rig.queue().service(&mut engine.clone());
    let complete = |rig: &mut Rig, index| {
        engine.run_one(index);
        let mut done = Vec::new();
        rig.engine.get().reap(&mut done);
        for outcome in done {
            rig.queue()
                .complete(outcome.tag, outcome.result, &mut engine.clone());
        }
        rig.vq().publish();
    };
    // The write completes, then it is flushed, while the first sync has not ended.
    complete(&mut rig, 1);
    assert_eq!(rig.take_used(), [(3, 1)]);
    rig.offer_request(6, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.offer_request(9, VIRTIO_BLK_T_FLUSH, 0, None);
    rig.queue().service(&mut engine.clone());
    assert_eq!(engine.pending(), 1, "one sync at a time");
    complete(&mut rig, 0);
    assert_eq!(rig.take_used(), [(0, 1)]);
    assert_eq!(engine.pending(), 1, "one for both");
    complete(&mut rig, 0);
    assert_eq!(rig.take_used().len(), 2);
    engine.power_cut();
    let kept = engine.image()[..512] == rig.bytes(DATA, 512);
    assert_eq!(kept, !lie);
}

// virtio-checklist 58: durable before completion without FLUSH; with it, by FLUSH. The second half is the
// negative control: this test fails for a device that never makes writes durable.
#[test]
fn writes_are_durable_without_flush() {
    for (negotiated, kind) in [(false, IoKind::WriteDurable), (true, IoKind::Write)] {
        let features = if negotiated {
            ALL_FEATURES
        } else {
            ALL_FEATURES & !feature(VIRTIO_BLK_F_FLUSH)
        };
        let (mut rig, engine) = fake(features);
        rig.fill(DATA, &[0x77; 1024]);
        engine.script([Scripted::Short(700)]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_OUT, 4, Some(readable(DATA, 1024))),
            (OK, 1)
        );
        assert!(engine.requested().iter().all(|asked| asked.kind == kind));
        engine.power_cut();
        assert_eq!(engine.image()[2048..3072] == [0x77; 1024], !negotiated);
    }
}

/// Cuts the power after random writes and flushes; returns in how many of 40 cases a flushed write was lost.
fn power_cuts(lie: bool) -> usize {
    let mut lost = 0;
    for cut in 0..40 {
        let (mut rig, engine) = fake(ALL_FEATURES);
        if lie {
            engine.lie();
        }
        let mut flushed = engine.image();
        let mut written = flushed.clone();
        let mut seed = cut as u32 + 1;
        for step in 0..cut {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            let sector = u64::from(seed >> 20) % (SECTORS - 1);
            if seed.is_multiple_of(4) {
                assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
                flushed = written.clone();
            } else {
                rig.fill(DATA, &[step as u8; 1024]);
                assert_eq!(
                    rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, 1024)))
                        .0,
                    OK
                );
                written[sector as usize * 512..][..1024].fill(step as u8);
            }
        }
        assert!(engine.image() == written);
        engine.power_cut();
        lost += usize::from(engine.image() != flushed);
    }
    lost
}

// torture e2 in small: every write completed before a completed FLUSH survives a power cut at any moment
#[test]
fn power_cuts_keep_what_was_flushed() {
    assert_eq!(power_cuts(false), 0);
}

// torture e3 in small, negative control: an engine without fdatasync fails the same test
#[test]
fn power_cuts_catch_an_engine_that_lies() {
    let lost = power_cuts(true);
    assert!(lost >= 20, "caught in {lost} of 40 cases");
}

// virtio-checklist 58 on the real engines: RWF_DSYNC is accepted and writes
#[test]
fn durable_writes_on_real_files() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 16, ALL_FEATURES & !feature(VIRTIO_BLK_F_FLUSH), false);
        rig.fill(DATA, &[0x42; 2048]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_OUT, 4, Some(readable(DATA, 1024))),
            (OK, 1)
        );
        rig.header(BUFFERS, VIRTIO_BLK_T_OUT, 8);
        rig.offer(
            0,
            &[
                readable(BUFFERS, 16),
                readable(DATA, 100),
                readable(DATA + 100, 924),
                writable(BUFFERS + 64, 1),
            ],
        );
        rig.run();
        assert_eq!((rig.take_used(), rig.byte(BUFFERS + 64)), (vec![(0, 1)], OK));
        assert_eq!(rig.image_at(4, 1024), [0x42; 1024]);
        assert_eq!(rig.image_at(8, 1024), [0x42; 1024]);
    }
}

// torture c9
#[test]
fn a_file_truncated_underneath() {
    for kind in ENGINES {
        let mut rig = Rig::new(kind);
        rig.image_file().set_len(5000).unwrap();
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 20, Some(writable(DATA, 512))),
            (IOERR, 0)
        );
        // Half of it is there.
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 9, Some(writable(DATA, 1024))),
            (IOERR, 5000 - 9 * 512)
        );
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))),
            (OK, 513)
        );
    }
}

// torture c9: of a merged read, those before the new end are there
#[test]
fn a_batch_across_the_end_of_a_truncated_file() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 64, ALL_FEATURES, false);
        rig.image_file().set_len(5000).unwrap();
        let statuses: Vec<u64> = (0..16)
            .map(|lane| {
                let data = writable(DATA + u64::from(lane) * 512, 512);
                rig.offer_request(lane * 3, VIRTIO_BLK_T_IN, lane.into(), Some(data))
            })
            .collect();
        rig.run();
        assert_eq!(rig.take_used().len(), 16);
        for (lane, status) in statuses.into_iter().enumerate() {
            let whole = lane < 5000 / 512;
            assert_eq!(rig.byte(status), if whole { OK } else { IOERR }, "sector {lane}");
            if whole {
                assert_eq!(
                    rig.bytes(DATA + lane as u64 * 512, 512),
                    rig.image_at(lane as u64, 512)
                );
            }
        }
        assert_eq!(rig.queue().stats().merges.get(), 1);
    }
}

// torture c9
#[test]
fn a_file_unlinked_underneath() {
    for kind in ENGINES {
        let mut rig = Rig::new(kind);
        std::fs::remove_file(&rig.config.path).unwrap();
        rig.fill(DATA, &[0x13; 512]);
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_OUT, 1, Some(readable(DATA, 512))),
            (OK, 1)
        );
        rig.fill(DATA, &[0; 512]);
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 1, None), (OK, 1));
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 1, Some(writable(DATA, 512))),
            (OK, 513)
        );
        assert_eq!(rig.bytes(DATA, 512), [0x13; 512]);
    }
}

// torture c8: ENOSPC of a real file system, a small tmpfs in a mount namespace of its own
#[test]
fn a_full_file_system() {
    // SAFETY: it concerns this thread alone, which the test harness ends after the test.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let mount = |source: &std::ffi::CStr, at: &std::ffi::CStr, flags, data: *const libc::c_char| {
        // SAFETY: strings end in NUL and outlive the call.
        unsafe {
            libc::mount(
                source.as_ptr(),
                at.as_ptr(),
                c"tmpfs".as_ptr(),
                flags,
                data.cast(),
            )
        }
    };
    if mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) != 0
        || mount(c"tmpfs", &target, 0, c"size=64k".as_ptr()) != 0
    {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    }
    let path = dir.path().join("disk.img");
    // Sparse, and larger than the file system.
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    for kind in ENGINES {
        let mut rig = Rig::closed(kind, 16, ALL_FEATURES, false);
        rig.config = DiskConfig {
            path: path.clone(),
            ..rig.config.clone()
        };
        let disk: Arc<Disk> = open_soon(&rig.config);
        rig.open_on(disk);
        let mut failed = 0;
        for sector in (0..2048).step_by(32) {
            let (status, _) = rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, 16384)));
            failed += usize::from(status == IOERR);
        }
        assert!(failed >= 60, "{failed} of 64 writes failed");
        assert_eq!(
            rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512))).0,
            OK
        );
    }
    // SAFETY: as above.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}
