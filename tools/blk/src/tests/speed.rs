//! Not a test of right or wrong: 4 KiB requests a second through reactor and engine, for comparisons on one
//! machine.
//!
//! `cargo test --release -p ringblk speed -- --ignored --nocapture`; `RINGBLK_DIR` says where the image is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::waiter::eventfd;
use ringvirtio::{Commands, EventSource, QueueId, Reactor, ReactorOptions, ReadWidth};

use super::rig::{ALL_FEATURES, BUFFERS, Buf, ENGINES, Rig, open_soon};
use crate::queue::BlockQueue;
use crate::virtio::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

/// Pending and armed flags, as in EL2's shared page.
#[derive(Default)]
struct Flags {
    pending: AtomicBool,
    armed: AtomicBool,
    interrupt: AtomicU32,
}

struct FlagSource(Arc<Flags>, QueueId);

impl EventSource for FlagSource {
    fn collect(&mut self, commands: &mut Commands) {
        if self.0.pending.swap(false, Ordering::AcqRel) {
            commands.schedule(self.1);
        }
    }

    fn arm(&mut self) -> bool {
        self.0.armed.store(true, Ordering::SeqCst);
        self.0.pending.load(Ordering::SeqCst)
    }

    fn disarm(&mut self) {
        self.0.armed.store(false, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let features = ALL_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);
    for engine in ENGINES {
        for (kind, name) in [(VIRTIO_BLK_T_IN, "read"), (VIRTIO_BLK_T_OUT, "write")] {
            for (depth, len) in [(1_u16, 4096_u32), (32, 4096), (4, 32768)] {
                let mut rig = Rig::closed(engine, 256, features, false);
                if let Ok(dir) = std::env::var("RINGBLK_DIR") {
                    let path = std::path::Path::new(&dir).join("ringblk-speed.img");
                    std::fs::copy(&rig.config.path, &path).unwrap();
                    rig.config.path = path;
                }
                let flags = Arc::new(Flags::default());
                let mut setup = rig.setup();
                let raised = flags.clone();
                setup.notify_driver = Box::new(move || {
                    raised.interrupt.fetch_add(1, Ordering::Release);
                });
                let queue = BlockQueue::new(open_soon(&rig.config), setup).unwrap();
                let stats = queue.stats().clone();
                let (reactor, handle) = Reactor::new(ReactorOptions::default()).unwrap();
                let thread = std::thread::spawn(move || reactor.run().unwrap());
                let id = handle.add(Box::new(queue));
                let event = eventfd().unwrap();
                let ring = std::fs::File::from(event.try_clone().unwrap());
                handle.add_event_source(event, ReadWidth::Eight, Box::new(FlagSource(flags.clone(), id)));
                let start = Instant::now();
                let mut count = 0_u64;
                let mut busy = 0;
                let mut free: Vec<u16> = (0..depth).collect();
                while start.elapsed() < Duration::from_millis(500) {
                    let event = rig.avail_idx;
                    while let Some(lane) = free.pop() {
                        let at = BUFFERS + 0x1_0000 + u64::from(lane) * u64::from(len);
                        let data = Buf {
                            addr: at,
                            len,
                            write: kind == VIRTIO_BLK_T_IN,
                        };
                        rig.offer_request(lane * 3, kind, u64::from(lane % 8) * 8, Some(data));
                        busy += 1;
                    }
                    std::sync::atomic::fence(Ordering::SeqCst);
                    let wish = rig.u16_at(rig.ring.used.0 + 4 + 8 * 256);
                    if rig.avail_idx.wrapping_sub(wish).wrapping_sub(1) < rig.avail_idx.wrapping_sub(event)
                        && !flags.pending.swap(true, Ordering::SeqCst)
                        && flags.armed.swap(false, Ordering::SeqCst)
                    {
                        std::io::Write::write_all(&mut &ring, &1_u64.to_ne_bytes()).unwrap();
                    }
                    rig.set_u16(rig.ring.avail.0 + 4 + 512, rig.used_seen);
                    std::sync::atomic::fence(Ordering::SeqCst);
                    for (head, _) in rig.take_used() {
                        free.push((head / 3) as u16);
                        busy -= 1;
                        count += 1;
                    }
                    if busy == depth as i32 {
                        std::thread::yield_now();
                    }
                }
                let rate = count as f64 / start.elapsed().as_secs_f64();
                eprintln!(
                    "{engine:?} {name:5} {len:6} x {depth:2}: {rate:9.0}/s, {:.1} a batch, {:.2} interrupts each",
                    stats.queue.batched.get() as f64 / stats.queue.batches.get() as f64,
                    stats.queue.interrupts.get() as f64 / count as f64,
                );
                handle.stop();
                thread.join().unwrap();
            }
        }
    }
}
