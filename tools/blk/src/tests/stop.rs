//! `on_error = stop`: a request that fails stays in flight, and its queue stops until the request is retried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringvirtio::QueueHandler;

use super::rig::{ALL_FEATURES, BUFFERS, Rig, TestEngine, WRITABLE_FEATURES, open_soon, readable, writable};
use super::service::{REACTOR_VARIANTS, Running, collect, queue};
use crate::control::OnError;
use crate::disk::{Disk, EngineKind};
use crate::engine::fake::{FakeEngine, Scripted};
use crate::remote::KnownGeometry;
use crate::virtio::{
    RequestStatus, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = RequestStatus::Ok as u8;
const IOERR: u8 = RequestStatus::IoErr as u8;

fn fake() -> (Rig, FakeEngine) {
    let mut rig = Rig::with(EngineKind::Threads, 64, WRITABLE_FEATURES, false);
    rig.queue().disk().control().set_on_error(OnError::Stop);
    let engine = FakeEngine::new(rig.image());
    rig.engine = TestEngine::Custom(Box::new(engine.clone()));
    (rig, engine)
}

// torture c8: nothing completes with an error, requests in flight complete, none is popped until the retry
#[test]
fn a_failing_write_stops_the_queue() {
    for error in [libc::ENOSPC, libc::EIO] {
        let (mut rig, engine) = fake();
        // Without a held request, a retry has no effect.
        rig.queue().retry();
        rig.run();
        rig.fill(DATA, &[0x21; 1024]);
        engine.script([Scripted::Fail(error), Scripted::Whole]);
        let failing = rig.offer_request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
        rig.offer_request(3, VIRTIO_BLK_T_OUT, 8, Some(readable(DATA, 512)));
        rig.run();
        assert_eq!(rig.take_used(), [(3, 1)]);
        assert!(rig.vq().stopped);
        assert_eq!((rig.vq().in_flight(), rig.byte(failing)), (0, 0xff));
        rig.offer_request(6, VIRTIO_BLK_T_IN, 0, Some(writable(DATA + 512, 512)));
        rig.run();
        assert_eq!(rig.take_used(), [], "no request is popped");
        let stats = rig.queue().stats().clone();
        assert_eq!(
            (stats.held.get(), stats.stops.get(), stats.errors.get()),
            (1, 1, 0)
        );
        // The request fails and is held again; the one offered meanwhile was popped with it.
        engine.script([Scripted::Fail(error)]);
        rig.queue().retry();
        rig.run();
        assert_eq!(
            (rig.take_used(), stats.held.get(), stats.stops.get()),
            (vec![(6, 513)], 1, 2)
        );
        rig.queue().retry();
        rig.run();
        assert_eq!(rig.take_used(), [(0, 1)]);
        assert_eq!((rig.byte(failing), stats.held.get()), (OK, 0));
        assert_eq!(engine.image()[..512], [0x21; 512]);
        assert!(!rig.vq().stopped);
    }
}

// A transfer resumes where it stopped, of a merged operation only the failed request is held, and segments
// that were done are not repeated.
#[test]
fn a_retry_resumes_where_it_stopped() {
    use Scripted::{Fail, Short, Whole};
    let (mut rig, engine) = fake();
    engine.script([Short(600), Fail(libc::EIO)]);
    let status = rig.offer_request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 1024)));
    rig.run();
    rig.queue().retry();
    rig.run();
    assert_eq!((rig.take_used(), rig.byte(status)), (vec![(0, 1025)], OK));
    assert_eq!(engine.requested().last().unwrap().offset, 1024 + 600);
    assert_eq!(rig.bytes(DATA, 1024), engine.image()[1024..2048]);

    engine.script([Fail(libc::EIO), Whole, Fail(libc::EIO), Whole]);
    for number in 0..3_u16 {
        let at = DATA + u64::from(number) * 512;
        rig.offer_request(
            number * 3,
            VIRTIO_BLK_T_IN,
            u64::from(number),
            Some(writable(at, 512)),
        );
    }
    rig.run();
    assert_eq!(rig.take_used(), [(0, 513), (6, 513)]);
    rig.queue().retry();
    rig.run();
    assert_eq!(rig.take_used(), [(3, 513)]);

    engine.script([Whole, Fail(libc::EIO)]);
    let segments = rig.segments(DATA, &[(0, 1, 0), (2, 1, 0), (4, 1, 0)]);
    rig.offer_request(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, Some(segments));
    rig.run();
    assert_eq!(rig.take_used(), []);
    let before = engine.requested().len();
    rig.queue().retry();
    rig.run();
    assert_eq!(rig.take_used(), [(0, 1)]);
    let offsets: Vec<u64> = engine.requested()[before..].iter().map(|op| op.offset).collect();
    assert_eq!(offsets, [1024, 2048]);
}

// torture b4: the head of a held request is in flight
#[test]
fn the_head_of_a_held_request_offered_again() {
    let (mut rig, engine) = fake();
    engine.script([Scripted::Fail(libc::EIO)]);
    rig.offer_request(2, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
    rig.run();
    rig.offer_head(2);
    rig.queue().retry();
    rig.run();
    assert_eq!(
        rig.fault_list(),
        ["head 2 was made available while it is in flight"]
    );
    assert_eq!(rig.take_used(), [(2, 513)]);
}

// A failed sync is reported immediately: the kernel has dropped the data, and a retry would succeed without
// it.
#[test]
fn a_failed_sync_is_reported() {
    let (mut rig, engine) = fake();
    engine.script([Scripted::Fail(libc::EIO)]);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None).0, IOERR);
    assert!(!rig.vq().stopped);
}

// torture c5: the daemon dies while the queue is stopped, and the next one submits the request again
#[test]
fn a_stopped_queue_outlives_the_daemon() {
    let (mut rig, engine) = fake();
    engine.script([Scripted::Fail(libc::EIO)]);
    let status = rig.offer_request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 512)));
    rig.run();
    assert!(rig.vq().stopped);
    rig.reopen();
    rig.run();
    assert_eq!((rig.take_used(), rig.byte(status)), (vec![(0, 513)], OK));
}

// torture c8: the disk is closed while stopped: nothing is retried or popped until an image is opened again
#[test]
fn a_closed_disk_keeps_its_requests() {
    let (mut rig, engine) = fake();
    let stops = Arc::new(AtomicUsize::new(0));
    let counter = stops.clone();
    let disk = rig.queue().disk().clone();
    disk.control().on_stop(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    engine.script([Scripted::Fail(libc::EIO)]);
    let status = rig.offer_request(0, VIRTIO_BLK_T_IN, 2, Some(writable(DATA, 512)));
    assert!(!disk.control().has_stopped());
    rig.run();
    assert_eq!(
        (stops.load(Ordering::Relaxed), disk.control().has_stopped()),
        (1, true)
    );
    let geometry = KnownGeometry {
        size: disk.capacity() * 512,
        block_size: 4096,
        readonly: false,
    };
    drop(disk);
    rig.kill();
    let closed = Disk::closed(&rig.config, geometry).unwrap();
    assert_eq!((closed.is_closed(), closed.block_size()), (true, 4096));
    // The image is not locked.
    drop(open_soon(&rig.config));
    rig.engine = TestEngine::new(rig.config.engine);
    rig.open_on(closed);
    rig.offer_request(3, VIRTIO_BLK_T_FLUSH, 0, None);
    for _ in 0..2 {
        rig.run();
        rig.queue().retry();
        let stats = rig.queue().stats().clone();
        assert_eq!((rig.take_used(), stats.held.get()), (vec![], 1));
        assert!(rig.vq().stopped && rig.vq().in_flight() == 0);
    }
    rig.reopen();
    rig.run();
    let mut used = rig.take_used();
    used.sort_unstable();
    assert_eq!((used, rig.byte(status)), (vec![(0, 513), (3, 1)], OK));
    assert_eq!(rig.bytes(DATA, 512), rig.image_at(2, 512));
    assert_eq!(rig.queue().stats().held.get(), 0);
}

// On a reactor, with a real file that is too short for a while: the queue stops, quiesces and resumes without
// completing, and is retried first without success, then with success.
#[test]
fn a_reactor_stops_and_retries() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        let disk = open_soon(&rig.config);
        disk.control().set_on_error(OnError::Stop);
        let (queue, interrupts) = queue(&rig, disk);
        let stats = queue.stats().clone();
        let id = reactor.handle.add(queue);
        let whole = rig.image();
        rig.image_file().set_len(8192).unwrap();
        rig.offer_request(0, VIRTIO_BLK_T_IN, 100, Some(writable(DATA, 512)));
        rig.offer_request(3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA + 512, 512)));
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        // Quiescing, as for a pause, does not wait for held requests.
        reactor.quiesce(id);
        assert_eq!((stats.held.get(), rig.used_idx()), (1, 1));
        reactor.handle.command(|commands| commands.retry(id));
        reactor.resume(id);
        while stats.stops.get() < 2 {
            std::thread::yield_now();
        }
        std::fs::write(&rig.config.path, &whole).unwrap();
        reactor.handle.command(|commands| commands.retry(id));
        collect(&mut rig, &interrupts, 1);
        assert_eq!((stats.held.get(), stats.errors.get()), (0, 0));
        assert_eq!(rig.bytes(DATA, 512), whole[51200..51712]);
        // A stopped queue can be removed, as by a reset.
        rig.image_file().set_len(8192).unwrap();
        rig.offer_request(0, VIRTIO_BLK_T_IN, 100, Some(writable(DATA, 512)));
        reactor.handle.schedule(id);
        while stats.stops.get() < 3 {
            std::thread::yield_now();
        }
        reactor.remove(id);
    }
}
