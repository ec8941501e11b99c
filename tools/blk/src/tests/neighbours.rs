//! A hostile guest beside a well-behaved one, both served by one reactor, as zones are: the latter's requests
//! complete without errors, its memory and image hold what it wrote, and the daemon leaks no descriptor.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::rig::{BUFFERS, Desc, Rig, SECTORS, WRITABLE_FEATURES, open_soon, pattern, readable, writable};
use super::service::{REACTOR_VARIANTS, Running, TEST_TIMEOUT, collect, queue};
use crate::virtio::{RequestStatus, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DATA: u64 = BUFFERS + 0x10_0000;
const OK: u8 = RequestStatus::Ok as u8;

/// Sets the flag on drop, also when an assertion fails.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns how many descriptors of files below a directory the process has open.
fn descriptors(below: &std::path::Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(below)))
        .count()
}

/// Attacks through one queue: offers random descriptors and requests, half of them nearly valid, until the
/// queue breaks or some rounds have passed. Returns whether it broke.
fn attack(rig: &mut Rig, reactor: &Running, seed: &mut u64) -> bool {
    let mut random = || {
        *seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *seed >> 24
    };
    rig.epoch += 1;
    rig.fill(rig.ring.avail.0, &[0; 256]);
    rig.fill(rig.ring.used.0, &[0; 1024]);
    (rig.avail_idx, rig.used_seen) = (0, 0);
    rig.faults.lock().unwrap().clear();
    let (served, _interrupts) = queue(rig, open_soon(&rig.config));
    let id = reactor.handle.add(served);
    for _ in 0..20 {
        for index in 0..64 {
            let kind = (random() % 16) as u32;
            rig.header(BUFFERS + u64::from(index) * 64, kind, random() % 300);
            let addr = match random() % 8 {
                0 => random(),
                1 => u64::MAX - random() % 4096,
                2 => rig.ring.used.0 + random() % 64,
                _ => BUFFERS + random() % 64 * 64,
            };
            let len = [16, 16, 512, 1, 0, u32::MAX, 4096, random() as u32][(random() % 8) as usize];
            let (flags, next) = ((random() % 8) as u16, (random() % 66) as u16);
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            rig.write_desc(rig.ring.desc.0, index, desc);
        }
        for _ in 0..random() % 8 {
            rig.offer_head((random() % 66) as u16);
        }
        if random() % 32 == 0 {
            rig.set_u16(rig.ring.avail.0 + 2, random() as u16);
        }
        reactor.handle.schedule(id);
        std::thread::yield_now();
        if !rig.fault_list().is_empty() {
            break;
        }
    }
    reactor.remove(id);
    let broken = !rig.fault_list().is_empty();
    assert!(rig.fault_list().len() <= 1, "one reset is requested");
    broken
}

// Items 1 to 8 of torture group b at random: other queues, memory and descriptors are unaffected; torture b4,
// b5
#[test]
fn a_hostile_guest_beside_a_well_behaved_one() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let (stop, broken) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut good = Rig::closed(engine, 64, WRITABLE_FEATURES, false);
        std::thread::scope(|scope| {
            let (stop, broken, reactor) = (&stop, &broken, &reactor);
            let attacker = scope.spawn(move || {
                let (mut bad, mut seed) = (Rig::closed(engine, 64, WRITABLE_FEATURES, false), 0x5eed_u64);
                while !stop.load(Ordering::Relaxed) {
                    broken.fetch_add(attack(&mut bad, reactor, &mut seed).into(), Ordering::Relaxed);
                }
                // The queues are removed; their images are closed a moment later.
                let deadline = Instant::now() + TEST_TIMEOUT;
                while descriptors(bad.dir.path()) > 0 {
                    assert!(Instant::now() < deadline, "descriptors are left");
                    std::thread::yield_now();
                }
            });
            let (served, interrupts) = queue(&good, open_soon(&good.config));
            let stats = served.stats().clone();
            let id = reactor.handle.add(served);
            // A failing assertion below must also end the attacker.
            let _stop = StopAtEnd(stop);
            let mut round = 0_u32;
            while round < 200 || broken.load(Ordering::Relaxed) < 50 {
                round += 1;
                let lanes: Vec<u64> = (0..8).collect();
                let statuses: Vec<u64> = lanes
                    .iter()
                    .map(|lane| {
                        let at = DATA + lane * 512;
                        good.fill(at, &[(round + *lane as u32) as u8; 512]);
                        good.offer_request(*lane as u16 * 3, VIRTIO_BLK_T_OUT, *lane, Some(readable(at, 512)))
                    })
                    .collect();
                reactor.handle.schedule(id);
                collect(&mut good, &interrupts, 8);
                assert!(statuses.iter().all(|status| good.byte(*status) == OK));
                let back = DATA + 0x1_0000;
                let status = good.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(back, 4096)));
                reactor.handle.schedule(id);
                collect(&mut good, &interrupts, 1);
                assert_eq!(good.byte(status), OK);
                assert_eq!(good.bytes(back, 4096), good.bytes(DATA, 4096));
            }
            stop.store(true, Ordering::Relaxed);
            attacker.join().unwrap();
            assert_eq!((stats.errors.get(), stats.unsupported.get()), (0, 0));
            assert_eq!(good.fault_list(), Vec::<String>::new());
            reactor.remove(id);
        });
        // The rest of the well-behaved guest's image is unchanged.
        let rest: Vec<u8> = (4096..SECTORS * 512).map(pattern).collect();
        assert!(good.image()[4096..] == rest, "{io_uring} {engine:?}");
    }
}
