//! The daemon is killed at every step, and again while it takes over: each request completes exactly once.
//!
//! A kill is an unwinding from a named step ([`ringvirtio::steps`]); the new daemon sees what memory holds
//! then. I/O that was in flight at the kill happens or does not. A model of driver and disk checks every used
//! entry.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use proptest::prelude::*;
use ringvirtio::steps::{Killed, arm, disarm};
use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, feature};

use super::rig::{
    BUFFERS, Rig, SECTORS, TestEngine, WRITABLE_FEATURES, open_soon, pattern, readable, writable,
};
use crate::disk::{Disk, EngineKind};
use crate::engine::fake::{FakeEngine, Scripted};
use crate::virtio::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const SIZE: u16 = 32;
const DATA: u64 = BUFFERS + 0x1_0000;

/// A driver with its view of the disk.
struct Driver {
    rig: Rig,
    fake: FakeEngine,
    disk: Arc<Disk>,
    /// What each sector holds once all outstanding requests have completed.
    model: Vec<u8>,
    /// By head: type, sector and status address of the outstanding requests.
    outstanding: HashMap<u32, (u32, u64, u64)>,
    completed: usize,
    offered: usize,
    kills: usize,
    interrupts_seen: usize,
}

impl Driver {
    fn new() -> Self {
        let features = WRITABLE_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);
        let rig = Rig::closed(EngineKind::Threads, SIZE, features, false);
        let model: Vec<u8> = (0..SECTORS * 512).map(pattern).collect();
        let disk = open_soon(&rig.config);
        let fake = FakeEngine::new(model.clone());
        let outstanding = HashMap::new();
        let mut driver = Self {
            rig,
            fake,
            disk,
            model,
            outstanding,
            completed: 0,
            offered: 0,
            kills: 0,
            interrupts_seen: 0,
        };
        driver.start_daemon();
        driver
    }

    /// Makes a request on head `3 * lane` available, for the lane's own sector, unless one is outstanding.
    fn offer(&mut self, lane: u16, kind: u32) {
        let head = lane * 3;
        if self.outstanding.contains_key(&head.into()) {
            return;
        }
        let sector = u64::from(lane);
        let data = DATA + sector * 512;
        let buf = match kind {
            VIRTIO_BLK_T_OUT => {
                let bytes = [(self.offered % 251) as u8; 512];
                self.rig.fill(data, &bytes);
                self.model[lane as usize * 512..][..512].copy_from_slice(&bytes);
                Some(readable(data, 512))
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.model[lane as usize * 512..][..512].fill(0);
                Some(self.rig.segments(data, &[(sector, 1, 0)]))
            }
            VIRTIO_BLK_T_FLUSH => None,
            _ => {
                self.rig.fill(data, &[0xa5; 512]);
                Some(writable(data, 512))
            }
        };
        let status = self.rig.offer_request(head, kind, sector, buf);
        self.outstanding.insert(head.into(), (kind, sector, status));
        self.offered += 1;
    }

    /// Handles an interrupt as a driver does.
    fn interrupt(&mut self) {
        if self.rig.interrupt_count() > self.interrupts_seen {
            self.interrupts_seen = self.rig.interrupt_count();
            self.take();
        }
    }

    /// Pops and checks the used entries, and enables the interrupt for the next.
    fn take(&mut self) {
        for (head, len) in self.rig.take_used() {
            let (kind, sector, status) = self
                .outstanding
                .remove(&head)
                .unwrap_or_else(|| panic!("head {head} was used twice"));
            assert_eq!(self.rig.byte(status), 0, "type {kind}");
            let data = DATA + sector * 512;
            if kind == VIRTIO_BLK_T_IN {
                assert_eq!(len, 513);
                assert!(
                    self.rig.bytes(data, 512) == self.model[sector as usize * 512..][..512],
                    "sector {sector}"
                );
            }
            if kind == VIRTIO_BLK_T_GET_ID {
                assert_eq!(self.rig.bytes(data, 8), b"serial-0");
            }
            self.completed += 1;
        }
        self.rig.set_u16(
            self.rig.ring.avail.0 + 4 + 2 * u64::from(SIZE),
            self.rig.used_seen,
        );
    }

    /// Runs `act` as the daemon; returns `false` if it was killed.
    fn daemon(&mut self, act: impl FnOnce(&mut Self)) -> bool {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| act(self))) else {
            return true;
        };
        assert!(panic.is::<Killed>(), "only the tests kill");
        self.kills += 1;
        false
    }

    fn start_daemon(&mut self) {
        self.rig.drop_queue();
        self.rig.engine = TestEngine::Custom(Box::new(self.fake.clone()));
        let disk = self.disk.clone();
        while !self.daemon(|driver| driver.rig.open_on(disk.clone())) {}
        // The number of requests that the log must have.
        let untaken = self.rig.used_idx().wrapping_sub(self.rig.used_seen);
        let waiting = self.outstanding.len() - usize::from(untaken);
        assert_eq!(usize::from(self.rig.vq().outstanding()), waiting);
    }

    /// Serves until everything has completed, through any number of kills. `happens` decides which orphaned
    /// operations happen; `nth` arms the next kill.
    fn serve(&mut self, happens: &mut dyn FnMut() -> bool, nth: &mut dyn FnMut() -> Option<u64>) {
        for _ in 0..1000 {
            if let Some(steps) = nth() {
                arm(steps);
            }
            let alive = self.daemon(|driver| driver.rig.run());
            if alive {
                disarm();
                self.interrupt();
                if self.outstanding.is_empty() {
                    return;
                }
            } else {
                // A merged transfer may have happened in part, too.
                if happens() {
                    self.fake.script([Scripted::Short(700)]);
                }
                self.fake.orphan(&mut *happens);
                // The interrupt may have come before the kill; the guest may poll at any time.
                if happens() {
                    self.take();
                }
                if let Some(steps) = nth() {
                    arm(steps);
                }
                self.start_daemon();
                disarm();
            }
        }
        panic!("requests are lost: {:?}", self.outstanding);
    }

    fn finish(self) {
        assert_eq!(self.completed, self.offered);
        assert!(self.fake.image() == self.model);
        assert_eq!(self.rig.fault_list(), Vec::<String>::new());
        assert_eq!(usize::from(self.rig.used_idx()), self.completed % 65536);
    }
}

/// The kinds of a round's requests, one for each lane.
type Rounds = [[u32; 5]; 2];

/// All kinds together.
const MIXED: Rounds = [
    [
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ],
    [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_OUT,
    ],
];
/// Lanes are adjacent: all writes are merged, then two reads and three writes.
const MERGED: Rounds = [
    [VIRTIO_BLK_T_OUT; 5],
    [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_OUT,
    ],
];

/// Two rounds of five requests with a kill after `first` steps and one after `second` more.
fn scenario(rounds: &Rounds, first: u64, second: Option<u64>, happens: bool) -> usize {
    let mut driver = Driver::new();
    let mut kills = vec![second, Some(first)];
    for kinds in rounds {
        for (lane, kind) in kinds.iter().enumerate() {
            driver.offer(lane as u16, *kind);
        }
        let mut nth = || kills.pop().flatten();
        driver.serve(&mut || happens, &mut nth);
    }
    disarm();
    let count = driver.kills;
    driver.finish();
    count
}

// torture c5: at each crash point, and at each of the take-over
#[test]
fn killed_at_every_step() {
    // Only every second or fourth step is a second kill, in turn.
    for (rounds, least, stride) in [(MIXED, 34, 2), (MERGED, 40, 4)] {
        for happens in [false, true] {
            let mut first = 0;
            while scenario(&rounds, first, None, happens) > 0 {
                first += 1;
                for second in (first % stride..12).step_by(stride as usize) {
                    scenario(&rounds, first, Some(second), happens);
                }
            }
            assert!(first >= least, "{first} steps were tried");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    // torture c5: any traffic, many kills
    #[test]
    fn killed_again_and_again(
        traffic in prop::collection::vec(prop::collection::vec((0_u16..10, 0_usize..7), 1..12), 1..12),
        kills in prop::collection::vec(0_u64..60, 0..30),
        luck in any::<u64>(),
    ) {
        let mut driver = Driver::new();
        // Mostly transfers, so that many are merged.
        const KINDS: [u32; 7] = [
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_GET_ID,
            VIRTIO_BLK_T_WRITE_ZEROES,
        ];
        let mut luck = luck;
        let mut kills = kills.into_iter();
        for wave in traffic {
            for (lane, kind) in wave {
                driver.offer(lane, KINDS[kind]);
            }
            let mut happens = || {
                luck = luck.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                luck & 1 == 0
            };
            driver.serve(&mut happens, &mut || kills.next());
        }
        disarm();
        driver.finish();
    }
}

// torture c5: data that were flushed before the kill survive a power cut after it
#[test]
fn flushed_writes_survive_kill_and_power_cut() {
    assert!(flushed_writes_survive(false));
    assert!(
        !flushed_writes_survive(true),
        "an engine that does not sync is noticed"
    );
}

fn flushed_writes_survive(lie: bool) -> bool {
    let mut driver = Driver::new();
    if lie {
        driver.fake.lie();
    }
    driver.offer(0, VIRTIO_BLK_T_OUT);
    driver.serve(&mut || true, &mut || None);
    driver.offer(1, VIRTIO_BLK_T_FLUSH);
    driver.serve(&mut || true, &mut || None);
    let flushed = driver.model[..512].to_vec();
    driver.offer(2, VIRTIO_BLK_T_OUT);
    driver.serve(&mut || true, &mut || None);
    driver.fake.power_cut();
    assert_ne!(
        driver.fake.image(),
        driver.model,
        "what was not flushed is gone: the model of the cache works"
    );
    driver.fake.image()[..512] == flushed
}

// Overlapping writes are rerun in the order of their starts.
#[test]
fn the_log_keeps_the_order() {
    use ringvirtio::inflight::InflightLog;
    let rig = Rig::closed(EngineKind::Threads, SIZE, 0, false);
    let area = rig.setup().inflight;
    let (mut log, past) = InflightLog::open(&area, SIZE, 7).unwrap();
    assert!(past.fresh);
    for head in [9, 2, 31, 5, 0] {
        log.start(head);
    }
    log.finish(31, 1234);
    let (_, past) = InflightLog::open(&area, SIZE, 7).unwrap();
    assert_eq!((past.restart, past.done), (vec![9, 2, 5, 0], vec![(31, 1234)]));
    assert_eq!((past.next_avail, past.used_idx, past.republish), (5, 0, None));
}

// A reset empties the log: another epoch. A changed layout, or another size, is refused.
#[test]
fn logs_of_other_epochs() {
    use ringvirtio::SetupError;
    use ringvirtio::inflight::{InflightError, VERSION};

    use crate::queue::BlockQueue;
    let mut driver = Driver::new();
    driver.fake.hold(true);
    driver.offer(0, VIRTIO_BLK_T_OUT);
    let engine = &mut driver.fake.clone();
    assert_eq!(driver.rig.queue().service(engine), 1);
    driver.fake.orphan(|| false);
    driver.rig.drop_queue();
    let mut setup = driver.rig.setup();
    setup.ring.size = 16;
    let error = BlockQueue::new(driver.disk.clone(), setup).err().unwrap();
    assert_eq!(
        error,
        SetupError::Inflight(InflightError::Size {
            found: 32,
            expected: 16
        })
    );
    assert_eq!(
        error.to_string(),
        "in-flight log: for a queue of 32 entries, expected 16"
    );
    // The same log with the same epoch restarts the write; with another epoch it is empty.
    for (epoch, restarted) in [(1, 1), (1, 1), (2, 0)] {
        driver.rig.epoch = epoch;
        let mut queue = BlockQueue::new(driver.disk.clone(), driver.rig.setup()).unwrap();
        if restarted == 0 {
            driver.rig.set_u16(driver.rig.ring.avail.0 + 2, 0);
        }
        queue.service(&mut driver.fake.clone());
        assert_eq!(
            (queue.stats().queue.restarted.get(), queue.queue.in_flight()),
            (restarted, restarted as u16)
        );
    }
    let word = |value: u64| {
        // SAFETY: the log's first word, which only this test accesses now.
        unsafe { driver.rig.log.as_ptr().cast::<u64>().write(value) };
        BlockQueue::new(driver.disk.clone(), driver.rig.setup())
            .err()
            .map(|error| error.to_string())
    };
    let text = format!("in-flight log: layout version 9, expected {VERSION}");
    assert_eq!(word(0x0020_0009_4642_4952), Some(text));
    assert!(word(0x1234).is_some_and(|text| text.contains("magic 0x1234")));
}
