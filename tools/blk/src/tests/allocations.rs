//! The request path allocates nothing per request once it has warmed up: counted, by thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::waiter::eventfd;
use ringvirtio::{Commands, EventSource, QueueId, ReactorOptions, ReadWidth};

use super::rig::{BUFFERS, Buf, ENGINES, Rig, WRITABLE_FEATURES, open_soon, readable, writable};
use super::service::{REACTOR_VARIANTS, Running, collect};
use crate::disk::EngineKind;
use crate::queue::BlockQueue;
use crate::virtio::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const DATA: u64 = BUFFERS + 0x10_0000;
const LANES: u16 = 40;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all calls are forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // While a thread ends, its counter may be gone already.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as for the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Offers requests of all kinds, many of which can be merged; the mix differs from round to round.
fn offer(rig: &mut Rig, round: u16) -> usize {
    for lane in 0..LANES {
        let head = lane * 6;
        let at = DATA + u64::from(lane) * 4096;
        let kind = match (lane + round * 3) % 20 {
            0 => VIRTIO_BLK_T_FLUSH,
            1 => VIRTIO_BLK_T_GET_ID,
            2 => VIRTIO_BLK_T_DISCARD,
            3 => 99,
            4..=11 => VIRTIO_BLK_T_IN,
            _ => VIRTIO_BLK_T_OUT,
        };
        let write = matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
        let part = |addr, len| Buf { addr, len, write };
        let header = BUFFERS + u64::from(head) * 64;
        rig.header(header, kind, u64::from(lane) * 2);
        match kind {
            VIRTIO_BLK_T_FLUSH => rig.offer(head, &[readable(header, 16), writable(header + 32, 1)]),
            VIRTIO_BLK_T_DISCARD => {
                let segments = rig.segments(at, &[(100, 2, 0), (110, 2, 0)]);
                rig.offer(head, &[readable(header, 16), segments, writable(header + 32, 1)]);
            }
            _ => rig.offer(
                head,
                &[
                    readable(header, 16),
                    part(at, 512),
                    part(at + 512, 256),
                    part(at + 768, 256),
                    writable(header + 32, 1),
                ],
            ),
        }
    }
    usize::from(LANES)
}

#[test]
fn the_counter_counts() {
    let before = COUNT.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(COUNT.get(), before + 1);
}

// The queue with an engine, on one thread.
#[test]
fn a_queue_allocates_nothing() {
    for kind in ENGINES {
        let mut rig = Rig::with(
            kind,
            256,
            WRITABLE_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX),
            false,
        );
        let mut done = Vec::with_capacity(1024);
        let mut round = |number: u16| {
            let count = offer(&mut rig, number);
            let (queue, engine) = (rig.queue.as_mut().unwrap(), &mut rig.engine);
            let before = COUNT.get();
            queue.service(engine.get());
            while queue.queue.in_flight() > 0 {
                engine.wait(&mut done);
                for outcome in done.drain(..) {
                    queue.complete(outcome.tag, outcome.result, engine.get());
                }
            }
            assert_eq!(queue.queue.publish(), count);
            let allocated = COUNT.get() - before;
            rig.take_used();
            allocated
        };
        let warm: u64 = (0..100).map(&mut round).sum();
        let steady: u64 = (100..400).map(&mut round).sum();
        assert_eq!(steady, 0, "{kind:?}; {warm} while warming up");
        assert!(rig.queue().stats().merged.get() > 1000);
    }
}

/// Schedules the queue, and stores how often the reactor's thread has allocated.
struct AllocationProbe {
    id: QueueId,
    allocated: Arc<AtomicU64>,
}

impl EventSource for AllocationProbe {
    fn collect(&mut self, commands: &mut Commands) {
        self.allocated.store(COUNT.get(), Ordering::Relaxed);
        commands.schedule(self.id);
    }
}

// The whole reactor, with each waiter. While it busy-polls it pops requests as the driver offers more: how
// they are merged varies, so the lists of merged transfers may still grow now and then.
#[test]
fn a_reactor_allocates_nothing() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        a_reactor_allocates_no_more_than(0, io_uring, engine, Duration::ZERO);
    }
    a_reactor_allocates_no_more_than(50, true, EngineKind::IoUring, ReactorOptions::POLL);
}

fn a_reactor_allocates_no_more_than(most: u64, io_uring: bool, engine: EngineKind, poll: Duration) {
    let reactor = Running::with(ReactorOptions {
        io_uring,
        poll,
        ..ReactorOptions::default()
    });
    let mut rig = Rig::closed(engine, 256, WRITABLE_FEATURES, false);
    let disk = open_soon(&rig.config);
    let (sender, interrupts) = std::sync::mpsc::channel();
    let mut setup = rig.setup();
    // The channel's allocations are the test's.
    setup.notify_driver = Box::new(move || {
        let before = COUNT.get();
        let _ = sender.send(());
        COUNT.set(before);
    });
    let id = reactor
        .handle
        .add(Box::new(BlockQueue::new(disk, setup).unwrap()));
    let event = eventfd().unwrap();
    let ring = std::fs::File::from(event.try_clone().unwrap());
    let allocated = Arc::new(AtomicU64::new(0));
    let watcher = AllocationProbe {
        id,
        allocated: allocated.clone(),
    };
    reactor
        .handle
        .add_event_source(event, ReadWidth::Eight, Box::new(watcher));
    let mut round = |number| {
        let count = offer(&mut rig, number);
        std::io::Write::write_all(&mut &ring, &1_u64.to_ne_bytes()).unwrap();
        collect(&mut rig, &interrupts, count);
    };
    (0..200).for_each(&mut round);
    let before = allocated.load(Ordering::Relaxed);
    (200..500).for_each(&mut round);
    // The count as of the beginning of the last round; a round is LANES requests.
    let allocated = allocated.load(Ordering::Relaxed) - before;
    assert!(
        allocated <= most,
        "{io_uring} {engine:?} {poll:?}: {allocated} allocations"
    );
}
