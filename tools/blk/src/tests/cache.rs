//! The write cache as the driver chooses it: CONFIG_WCE, writeback and writethrough (5.2.5, 5.2.6.2).

use ringvirtio::virtio::feature;

use super::rig::{BUFFERS, ENGINES, Rig, TestEngine, WRITABLE_FEATURES, readable};
use crate::device;
use crate::disk::EngineKind;
use crate::engine::IoKind;
use crate::engine::fake::FakeEngine;
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;

fn fake(features: u64) -> (Rig, FakeEngine) {
    let mut rig = Rig::with(EngineKind::Threads, 64, features, false);
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    (rig, engine)
}

/// The driver stores the `writeback` byte, and the daemon applies it.
fn set_writeback(rig: &mut Rig, writeback: u8) -> bool {
    let features = rig.features;
    let disk = rig.queue().disk().clone();
    let mut config = device::config(&disk, 256, 1);
    config[32] = writeback;
    device::driver_wrote(&disk, features, &config)
}

fn write(rig: &mut Rig, sector: u64, byte: u8) -> u8 {
    rig.fill(DATA, &[byte; 512]);
    rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(DATA, 512)))
        .0
}

/// Returns whether a write that completes in this mode survives a power cut.
fn survives(features: u64, writeback: Option<u8>, lie: bool) -> bool {
    let (mut rig, engine) = fake(features);
    if lie {
        engine.lie();
    }
    if let Some(writeback) = writeback {
        set_writeback(&mut rig, writeback);
    }
    assert_eq!(write(&mut rig, 7, 0x5c), OK);
    engine.power_cut();
    engine.image()[7 * 512..8 * 512] == [0x5c; 512]
}

// virtio-checklist 53, 58: durable before completion with neither FLUSH nor CONFIG_WCE, with CONFIG_WCE
// alone, and when writeback is 0; else it may wait for a flush. Negative control: an engine that does not
// sync fails.
#[test]
fn when_a_write_is_durable() {
    let (flush, choice) = (feature(VIRTIO_BLK_F_FLUSH), feature(VIRTIO_BLK_F_CONFIG_WCE));
    let none = WRITABLE_FEATURES & !flush & !choice;
    for (features, writeback, durable) in [
        (none, None, true),
        (none | choice, None, true),
        (none | choice, Some(1), true),
        (none | flush, None, false),
        // Without CONFIG_WCE the driver's byte has no effect.
        (none | flush, Some(0), false),
        (none | flush | choice, None, false),
        (none | flush | choice, Some(1), false),
        (none | flush | choice, Some(0), true),
    ] {
        assert_eq!(
            survives(features, writeback, false),
            durable,
            "{features:#x} {writeback:?}"
        );
        assert!(
            !survives(features, writeback, true),
            "an engine that does not sync"
        );
    }
}

#[test]
fn the_mode_changes_at_run_time() {
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    assert!(!set_writeback(&mut rig, 1), "as it was");
    for (writeback, kind) in [
        (0, IoKind::WriteDurable),
        (1, IoKind::Write),
        (0, IoKind::WriteDurable),
    ] {
        assert!(set_writeback(&mut rig, writeback));
        assert!(!set_writeback(&mut rig, writeback));
        assert_eq!(write(&mut rig, 3, writeback), OK);
        assert_eq!(engine.requested().last().unwrap().kind, kind);
    }
    assert_eq!(rig.queue().stats().durable.get(), 2);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, OK);
}

/// Outstanding writes complete when they are durable if the driver turns the cache off meanwhile; `lie` is
/// the negative control.
fn turned_off_while_outstanding(lie: bool) -> bool {
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    if lie {
        engine.lie();
    }
    let complete = |rig: &mut Rig, engine: &FakeEngine| {
        let mut done = Vec::new();
        rig.engine.get().reap(&mut done);
        for outcome in done {
            rig.queue()
                .complete(outcome.tag, outcome.result, &mut engine.clone());
        }
    };
    engine.hold(true);
    rig.fill(DATA, &[0x66; 1024]);
    // One is completed and not published, the other is in flight.
    rig.offer_request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
    rig.offer_request(3, VIRTIO_BLK_T_OUT, 8, Some(readable(DATA, 512)));
    rig.queue().service(&mut engine.clone());
    engine.run_one(0);
    complete(&mut rig, &engine);
    assert!(set_writeback(&mut rig, 0));
    rig.queue().service(&mut engine.clone());
    assert_eq!(rig.vq().publish(), 0, "it waits for its sync");
    // The second completes while the sync of the first runs, which does not cover it.
    engine.run_one(0);
    complete(&mut rig, &engine);
    assert_eq!(rig.vq().publish(), 0);
    assert_eq!(engine.pending(), 1);
    engine.run_one(0);
    complete(&mut rig, &engine);
    assert_eq!(rig.vq().publish(), 1);
    assert_eq!(rig.take_used(), [(0, 1)]);
    engine.run_one(0);
    complete(&mut rig, &engine);
    assert_eq!((rig.vq().publish(), rig.vq().in_flight()), (1, 0));
    assert_eq!(rig.take_used(), [(3, 1)]);
    let stats = rig.queue().stats();
    assert_eq!((stats.writes.get(), stats.flushes.get()), (2, 0));
    engine.power_cut();
    let image = engine.image();
    image[..512] == [0x66; 512] && image[8 * 512..9 * 512] == [0x66; 512]
}

// virtio-checklist 58: a write that was submitted while writeback was 0 is durable, even if the daemon took
// it off the ring before the change
#[test]
fn outstanding_writes_when_the_cache_is_turned_off() {
    assert!(turned_off_while_outstanding(false));
    assert!(
        !turned_off_while_outstanding(true),
        "an engine that does not sync is noticed"
    );
}

/// The daemon dies with a write that is completed and not published; the cache is off when the next one
/// starts.
fn turned_off_between_daemons(lie: bool) -> bool {
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    if lie {
        engine.lie();
    }
    rig.fill(DATA, &[0x67; 512]);
    let status = rig.offer_request(0, VIRTIO_BLK_T_OUT, 5, Some(readable(DATA, 512)));
    rig.offer_request(3, VIRTIO_BLK_T_OUT, 6, Some(readable(DATA, 512)));
    engine.hold(true);
    rig.queue().service(&mut engine.clone());
    engine.run_one(0);
    let mut done = Vec::new();
    rig.engine.get().reap(&mut done);
    for outcome in done {
        rig.queue()
            .complete(outcome.tag, outcome.result, &mut engine.clone());
    }
    assert_eq!((rig.byte(status), rig.used_idx()), (OK, 0));
    set_writeback(&mut rig, 0);
    let disk = rig.queue().disk().clone();
    engine.orphan(|| false);
    rig.kill();
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    rig.open_on(disk);
    rig.run();
    assert_eq!(rig.take_used(), [(0, 1), (3, 1)]);
    engine.power_cut();
    engine.image()[5 * 512..7 * 512] == [0x67; 1024]
}

// virtio-checklist 58; torture c5: the same with a restart of the daemon in between
#[test]
fn the_cache_is_turned_off_while_no_daemon_runs() {
    assert!(turned_off_between_daemons(false));
    assert!(
        !turned_off_between_daemons(true),
        "an engine that does not sync is noticed"
    );
}

// A failed sync makes such a write an error, although its data are written.
#[test]
fn the_sync_for_a_cached_write_fails() {
    use crate::engine::fake::Scripted;
    let (mut rig, engine) = fake(WRITABLE_FEATURES);
    engine.hold(true);
    let status = rig.offer_request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
    rig.queue().service(&mut engine.clone());
    assert!(set_writeback(&mut rig, 0));
    engine.hold(false);
    engine.script([Scripted::Whole, Scripted::Fail(libc::EIO)]);
    rig.run();
    assert_eq!(rig.take_used(), [(0, 1)]);
    assert_eq!(rig.byte(status), RequestStatus::IoErr as u8);
    assert!(rig.queue().disk().sync_failed());
}

// On the real engines.
#[test]
fn both_modes_on_real_files() {
    for kind in ENGINES {
        let mut rig = Rig::with(kind, 64, WRITABLE_FEATURES, false);
        for writeback in [0, 1, 0, 1] {
            set_writeback(&mut rig, writeback);
            for sector in 0..8 {
                assert_eq!(write(&mut rig, sector, writeback + sector as u8), OK);
                assert_eq!(rig.image_at(sector, 512), [writeback + sector as u8; 512]);
            }
        }
    }
}
