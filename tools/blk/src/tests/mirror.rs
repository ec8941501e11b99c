//! Moving a disk: with writers, with faults on either side, and killed between any two steps.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use crate::disk::{Disk, DiskConfig};
use crate::memory::{GuestRam, Slots};
use crate::mirror::{Mirror, MirrorError, Progress, Step};
use crate::remote::{Blocking, Remote, RemoteEngine};
use vm_memory::MmapRegion;

const CHUNK: u64 = 256 << 10;
const SIZE: u64 = 3 * CHUNK + 8192;

/// Bytes in memory, and when to fail.
#[derive(Debug)]
struct Faulty {
    bytes: Mutex<Vec<u8>>,
    /// Steps left, of this disk and others; at 0 the process dies.
    life: Arc<AtomicUsize>,
    /// Writes until one fails.
    writes: AtomicUsize,
    /// Reads of this offset fail.
    unreadable: AtomicU64,
    zeroes: bool,
    /// Blocks can be given back; they read something else then.
    discards: AtomicBool,
    /// Syncs fail.
    unsynced: AtomicBool,
    /// Ranges that were zeroed with blocks given back.
    unmapped: AtomicUsize,
    losses: AtomicU64,
}

/// What a killed process leaves behind on its stack.
struct Killed;

impl Faulty {
    fn new(bytes: Vec<u8>, life: &Arc<AtomicUsize>, zeroes: bool) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            life: life.clone(),
            writes: AtomicUsize::new(usize::MAX),
            unreadable: AtomicU64::new(u64::MAX),
            zeroes,
            discards: AtomicBool::new(true),
            unsynced: AtomicBool::new(false),
            unmapped: AtomicUsize::new(0),
            losses: AtomicU64::new(0),
        })
    }

    fn disk(self: &Arc<Self>) -> Arc<Disk> {
        Disk::of_remote(self.clone())
    }

    fn now(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its server goes and comes back as it was before.
    fn lose(&self, before: Vec<u8>) {
        *self.bytes.lock().unwrap() = before;
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    fn step(&self) {
        let left = self
            .life
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            panic_any(Killed);
        }
    }
}

impl Remote for Faulty {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn has_zeroes(&self) -> bool {
        self.zeroes
    }

    fn on_resize(&self, _tell: Box<dyn Fn() + Send + Sync>) {}

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    fn start(&self, _ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn perform(&self, what: Blocking<'_>, offset: u64) -> io::Result<()> {
        self.step();
        let at = offset as usize;
        let failed = || Err(io::Error::from_raw_os_error(libc::EIO));
        if !matches!(what, Blocking::Read(_)) {
            let left = self.writes.load(Ordering::Relaxed);
            if left == 0 {
                return failed();
            }
            self.writes.store(left - 1, Ordering::Relaxed);
        }
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Blocking::Read(_) if offset == self.unreadable.load(Ordering::Relaxed) => return failed(),
            Blocking::Read(to) => to.copy_from_slice(&held[at..at + to.len()]),
            Blocking::Write(from, _) => held[at..at + from.len()].copy_from_slice(from),
            Blocking::Sync if self.unsynced.load(Ordering::Relaxed) => return failed(),
            Blocking::Sync => {}
            Blocking::Discard { .. } if !self.discards.load(Ordering::Relaxed) => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            Blocking::Discard { len } => held[at..at + len as usize].fill(0xdd),
            Blocking::Zero { .. } if !self.zeroes => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            Blocking::Zero { len, unmap } => {
                held[at..at + len as usize].fill(0);
                self.unmapped.fetch_add(unmap.into(), Ordering::Relaxed);
            }
        }
        drop(held);
        self.step();
        Ok(())
    }
}

fn words() -> Arc<Slots<AtomicU64>> {
    let mapping = Arc::new(MmapRegion::new(4096).unwrap());
    Arc::new(Slots::in_mapping(&mapping, 0, 1).unwrap())
}

fn immortal() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(usize::MAX))
}

/// Something to be moved, with a chunk of zeroes.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect();
    bytes[CHUNK as usize..2 * CHUNK as usize].fill(0);
    bytes
}

fn finish(mirror: &Mirror) -> Result<(), MirrorError> {
    while mirror.copy()? == Step::More {}
    mirror.sync()?;
    let mut at = 0;
    while mirror.verify(&mut at)? == Step::More {}
    Ok(())
}

#[test]
fn writers_of_the_same_bytes_while_it_moves() {
    let (source, target) = (
        Faulty::new(content(), &immortal(), true),
        Faulty::new(vec![0xaa; SIZE as usize + 512], &immortal(), false),
    );
    let mirror = Mirror::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    thread::scope(|scope| {
        for writer in 1..=4_u64 {
            let mirror = &mirror;
            scope.spawn(move || {
                let mut random = writer.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..400 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let len = 512 * (1 + random % 16);
                    let offset = random / 16 % ((SIZE - len) / 512) * 512;
                    if random.is_multiple_of(8) {
                        let unmap = random.is_multiple_of(16);
                        mirror.perform(Blocking::Zero { len, unmap }, offset).unwrap();
                    } else {
                        let bytes = vec![random as u8; len as usize];
                        mirror.perform(Blocking::Write(&bytes, false), offset).unwrap();
                    }
                }
            });
        }
        finish(&mirror).unwrap();
    });
    assert_eq!(mirror.copied(), SIZE);
    assert!(mirror.failure().is_none());
    assert_eq!(source.now(), target.now()[..SIZE as usize]);
}

/// The guest never hears of it, and a daemon that finds what is left begins anew.
#[test]
fn a_target_that_fails_leaves_the_source_whole() {
    for writes in 0..12 {
        let source = Faulty::new(content(), &immortal(), true);
        let target = Faulty::new(vec![0; SIZE as usize], &immortal(), true);
        target.writes.store(writes, Ordering::Relaxed);
        let words = words();
        let progress = Progress::new(words.clone(), 0);
        let mirror = Mirror::new(source.disk(), target.disk(), progress).unwrap();
        let mut ended = Ok(Step::More);
        for stamp in 0..12_u8 {
            let at = u64::from(stamp) * 512;
            mirror.perform(Blocking::Write(&[stamp; 1024], true), at).unwrap();
            if ended.is_ok() {
                ended = mirror.copy();
            }
        }
        assert!(matches!(ended, Err(MirrorError::Target(_))), "{writes}");
        assert_eq!(words.get(0).unwrap().load(Ordering::Relaxed), 0, "{writes}");
        assert!(mirror.sync().is_err() && mirror.verify(&mut 0).is_err());
        let now = source.now();
        for stamp in 0..12 {
            assert_eq!(now[stamp * 512], stamp as u8);
        }
    }
}

#[test]
fn what_cannot_be_moved_is_said() {
    let disk = |size: u64| Faulty::new(vec![0; size as usize], &immortal(), true).disk();
    let new = |source: u64, target: u64| Mirror::new(disk(source), disk(target), Progress::new(words(), 0));
    let error = new(SIZE, SIZE - 512).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "the target has {} bytes, expected at least the disk's {SIZE}",
            SIZE - 512
        )
    );
    let source = Faulty::new(content(), &immortal(), true);
    source.unreadable.store(CHUNK, Ordering::Relaxed);
    let mirror = Mirror::new(source.disk(), disk(SIZE), Progress::new(words(), 0)).unwrap();
    let error = finish(&mirror).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot read the disk at byte {CHUNK}: ")),
        "{error}"
    );
    // A target that loses what it has taken.
    source.unreadable.store(u64::MAX, Ordering::Relaxed);
    let target = Faulty::new(vec![0; SIZE as usize], &immortal(), true);
    let mirror = Mirror::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    while mirror.copy().unwrap() == Step::More {}
    target.bytes.lock().unwrap()[2 * CHUNK as usize + 5] ^= 1;
    let error = finish(&mirror).unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "differs from the disk in the {CHUNK} bytes from byte {}",
            2 * CHUNK
        )),
        "{error}"
    );
}

/// A guest's writes while it moves, as the in-flight log knows them: killed before any step on either disk, a new mirror
/// with what is left runs again what was not answered, and goes on. Negative control: one that does not run it again, or
/// believes in more progress than there was, finds what the target lacks.
#[test]
fn killed_at_every_step() {
    let mut hook = Some(std::panic::take_hook());
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Killed>() {
            eprintln!("{info}")
        }
    }));
    let mut caught = [0; 2];
    for control in [None, Some(0), Some(1)] {
        for steps in 0.. {
            let life = Arc::new(AtomicUsize::new(steps));
            let source = Faulty::new(content(), &life, true);
            let target = Faulty::new(vec![0xaa; SIZE as usize], &life, steps % 2 == 0);
            let words = words();
            let mut unanswered = None;
            // Around each border, and in the middle.
            let writes: Vec<(u64, u8)> = (0..12_u64)
                .map(|n| (n % 4 * CHUNK + [512, 4096, 7168][n as usize % 3], 100 + n as u8))
                .collect();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                let mirror =
                    Mirror::new(source.disk(), target.disk(), Progress::new(words.clone(), 0)).unwrap();
                for &(at, stamp) in &writes {
                    unanswered = Some((at, stamp));
                    mirror
                        .perform(Blocking::Write(&[stamp; 1024], false), at)
                        .unwrap();
                    unanswered = None;
                    mirror.copy().unwrap();
                }
                finish(&mirror).unwrap();
            }));
            life.store(usize::MAX, Ordering::Relaxed);
            if control == Some(1) {
                let word = words.get(0).unwrap();
                let copied = word.load(Ordering::Relaxed);
                word.store((copied + CHUNK).min(SIZE), Ordering::Relaxed);
            }
            let mirror = Mirror::new(source.disk(), target.disk(), Progress::new(words, 0)).unwrap();
            if let Some((at, stamp)) = unanswered
                && control != Some(0)
            {
                mirror
                    .perform(Blocking::Write(&[stamp; 1024], false), at)
                    .unwrap();
            }
            let finished = finish(&mirror);
            match control {
                None => assert_eq!(mirror.mended(), 0, "killed after {steps} steps"),
                Some(control) => caught[control] += usize::from(mirror.mended() > 0),
            }
            finished.unwrap();
            assert_eq!(source.now(), target.now(), "killed after {steps} steps");
            if ended.is_ok() {
                break;
            }
        }
    }
    std::panic::set_hook(hook.take().unwrap());
    assert!(caught[0] > 0 && caught[1] > 0, "{caught:?}");
}

#[test]
fn files_of_all_kinds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    std::fs::write(&path, content()).unwrap();
    let open = |path: &std::path::Path| {
        Disk::open(&DiskConfig {
            path: path.to_owned(),
            ..DiskConfig::default()
        })
    };
    let source = open(&path).unwrap();
    let other = directory.path().join("target");
    std::fs::write(&other, vec![0x55; SIZE as usize]).unwrap();
    let target = open(&other).unwrap();
    let mirror = Mirror::new(source, target, Progress::new(words(), 0)).unwrap();
    let disk = Disk::mirrored(mirror.clone());
    assert_eq!(disk.capacity() * 512, SIZE);
    disk.perform(Blocking::Write(&[7; 1536], true), 512).unwrap();
    finish(&mirror).unwrap();
    disk.perform(Blocking::Write(&[8; 512], false), 512).unwrap();
    disk.perform(
        Blocking::Zero {
            len: 1024,
            unmap: true,
        },
        4096,
    )
    .unwrap();
    finish(&mirror).unwrap();
    let bytes = std::fs::read(&other).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    assert_eq!((bytes[512], bytes[1024], bytes[4096], bytes[5120]), (8, 7, 0, 11));
}

fn one_disk() -> (Arc<Faulty>, Arc<Faulty>, Arc<Mirror>) {
    let source = Faulty::new(content(), &immortal(), true);
    let target = Faulty::new(vec![0xaa; SIZE as usize], &immortal(), true);
    let mirror = Mirror::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    (source, target, mirror)
}

/// A server that goes while it moves may lose what it had answered, whether that was compared already or not.
#[test]
fn what_a_server_loses_is_copied_again() {
    for compared in [0, 1, 4] {
        let (source, target, mirror) = one_disk();
        while mirror.copy().unwrap() == Step::More {}
        mirror.sync().unwrap();
        let mut at = 0;
        for _ in 0..compared {
            mirror.verify(&mut at).unwrap();
        }
        let before = target.now();
        mirror.perform(Blocking::Write(&[9; 1024], false), 512).unwrap();
        target.lose(before);
        while mirror.verify(&mut at).unwrap() == Step::More {}
        assert_eq!(mirror.mended(), CHUNK, "{compared}");
        assert_eq!(source.now(), target.now(), "{compared}");
        // Between the comparison and the switch.
        let before = target.now();
        mirror
            .perform(Blocking::Write(&[8; 1024], false), 2 * CHUNK)
            .unwrap();
        target.lose(before);
        assert_eq!(mirror.seal().unwrap(), Step::More);
        at = 0;
        while mirror.verify(&mut at).unwrap() == Step::More {}
        assert_eq!(mirror.seal().unwrap(), Step::End);
        assert_eq!((mirror.mended(), source.now()), (2 * CHUNK, target.now()));
        // Without a loss nothing explains a difference.
        target.bytes.lock().unwrap()[5] ^= 1;
        assert!(matches!(
            mirror.verify(&mut 0),
            Err(MirrorError::Differs { offset: 0 })
        ));
    }
}

/// As long as the daemon lives: the mirror may be gone when the guest asks next.
#[test]
fn the_source_remembers_that_it_could_not_be_made_durable() {
    for what in [Blocking::Sync, Blocking::Write(&[1; 512], true)] {
        let (source, _, mirror) = one_disk();
        mirror.perform(Blocking::Sync, 0).unwrap();
        let unflushed = matches!(what, Blocking::Sync);
        source.unsynced.store(unflushed, Ordering::Relaxed);
        source.writes.store(usize::from(unflushed), Ordering::Relaxed);
        assert!(!mirror.source().sync_failed());
        mirror.perform(what, 0).unwrap_err();
        assert!(mirror.source().sync_failed());
        // The target is as good as it was.
        assert!(mirror.failure().is_none());
    }
    let (source, _, mirror) = one_disk();
    source.writes.store(0, Ordering::Relaxed);
    mirror.perform(Blocking::Write(&[1; 512], false), 0).unwrap_err();
    assert!(!mirror.source().sync_failed());
}

#[test]
fn discards_and_zeroes_do_to_the_target_what_they_do_to_the_source() {
    let (source, target, mirror) = one_disk();
    while mirror.copy().unwrap() == Step::More {}
    // The chunk of zeroes.
    assert_eq!(target.unmapped.swap(0, Ordering::Relaxed), 1);
    for unmap in [false, true] {
        mirror.perform(Blocking::Zero { len: 512, unmap }, 512).unwrap();
        let unmapped = target.unmapped.swap(0, Ordering::Relaxed);
        assert_eq!(unmapped, usize::from(unmap));
    }
    mirror.perform(Blocking::Discard { len: 512 }, 2048).unwrap();
    assert_eq!(source.now()[2048..2560], [0; 512]);
    finish(&mirror).unwrap();
    // A source that keeps its blocks keeps them, and the target does.
    source.discards.store(false, Ordering::Relaxed);
    let writes = (source.now(), target.now());
    mirror.perform(Blocking::Discard { len: 4096 }, 4096).unwrap();
    assert_eq!((source.now(), target.now()), writes);
    finish(&mirror).unwrap();
    let (_, target, mirror) = one_disk();
    mirror.keep_blocks();
    while mirror.copy().unwrap() == Step::More {}
    assert_eq!(target.unmapped.load(Ordering::Relaxed), 0);
}
