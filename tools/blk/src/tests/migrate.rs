//! Migrating a disk: with writers, with faults on either side, and killed between any two steps.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use ringvirtio::memory::{GuestRam, Slots};
use vm_memory::MmapRegion;

use crate::disk::{Disk, DiskConfig};
use crate::migrate::{Migration, MigrationError, Progress, Step};
use crate::remote::{BlockingIo, RemoteDisk, RemoteEngine, RemoteImage};

const CHUNK: u64 = 256 << 10;
const SIZE: u64 = 3 * CHUNK + 8192;

/// A disk in memory that fails on demand.
#[derive(Debug)]
struct Faulty {
    bytes: Mutex<Vec<u8>>,
    /// Steps left, shared by several disks; at 0 the process dies.
    life: Arc<AtomicUsize>,
    /// Writes until one fails.
    writes: AtomicUsize,
    /// Reads of this offset fail.
    unreadable: AtomicU64,
    zeroes: bool,
    /// Blocks can be discarded; they read something else then.
    discards: AtomicBool,
    /// Syncs fail.
    unsynced: AtomicBool,
    /// Ranges that were zeroed by deallocation.
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
        let capacity = RemoteImage::size(&**self) / 512;
        Arc::new(Disk::of_remote(self.clone(), DiskConfig::default(), capacity))
    }

    fn now(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its server goes down and comes back with earlier contents.
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

impl RemoteImage for Faulty {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn supports_write_zeroes(&self) -> bool {
        self.zeroes
    }

    fn write_losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    fn run_blocking(&self, what: BlockingIo<'_>, offset: u64) -> io::Result<()> {
        self.step();
        let at = offset as usize;
        let failed = || Err(io::Error::from_raw_os_error(libc::EIO));
        if !matches!(what, BlockingIo::Read(_)) {
            let left = self.writes.load(Ordering::Relaxed);
            if left == 0 {
                return failed();
            }
            self.writes.store(left - 1, Ordering::Relaxed);
        }
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            BlockingIo::Read(_) if offset == self.unreadable.load(Ordering::Relaxed) => return failed(),
            BlockingIo::Read(to) => to.copy_from_slice(&held[at..at + to.len()]),
            BlockingIo::Write(from, _) => held[at..at + from.len()].copy_from_slice(from),
            BlockingIo::Sync if self.unsynced.load(Ordering::Relaxed) => return failed(),
            BlockingIo::Sync => {}
            BlockingIo::Discard { .. } if !self.discards.load(Ordering::Relaxed) => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            BlockingIo::Discard { len } => held[at..at + len as usize].fill(0xdd),
            BlockingIo::Zero { .. } if !self.zeroes => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            BlockingIo::Zero { len, unmap } => {
                held[at..at + len as usize].fill(0);
                self.unmapped.fetch_add(unmap.into(), Ordering::Relaxed);
            }
        }
        drop(held);
        self.step();
        Ok(())
    }
}

impl RemoteDisk for Faulty {
    fn on_resize(&self, _resized: Box<dyn Fn() + Send + Sync>) {}

    fn start(&self, _ram: &Arc<GuestRam>) -> io::Result<Box<dyn RemoteEngine>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn words() -> Arc<Slots<AtomicU64>> {
    let mapping = Arc::new(MmapRegion::new(4096).unwrap());
    Arc::new(Slots::in_mapping(&mapping, 0, 1).unwrap())
}

fn immortal() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(usize::MAX))
}

/// The contents to be migrated, with a chunk of zeroes.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect();
    bytes[CHUNK as usize..2 * CHUNK as usize].fill(0);
    bytes
}

fn finish(migration: &Migration) -> Result<(), MigrationError> {
    while migration.copy()? == Step::More {}
    migration.sync()?;
    let mut at = 0;
    while migration.verify(&mut at)? == Step::More {}
    Ok(())
}

#[test]
fn concurrent_writers_of_the_same_bytes_during_a_migration() {
    let (source, target) = (
        Faulty::new(content(), &immortal(), true),
        Faulty::new(vec![0xaa; SIZE as usize + 512], &immortal(), false),
    );
    let migration = Migration::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    thread::scope(|scope| {
        for writer in 1..=4_u64 {
            let migration = &migration;
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
                        migration
                            .run_blocking(BlockingIo::Zero { len, unmap }, offset)
                            .unwrap();
                    } else {
                        let bytes = vec![random as u8; len as usize];
                        migration
                            .run_blocking(BlockingIo::Write(&bytes, false), offset)
                            .unwrap();
                    }
                }
            });
        }
        finish(&migration).unwrap();
    });
    assert_eq!(migration.copied(), SIZE);
    assert!(migration.failure().is_none());
    assert_eq!(source.now(), target.now()[..SIZE as usize]);
}

/// The guest sees no error, and a daemon that finds the progress starts again.
#[test]
fn a_target_that_fails_leaves_the_source_complete() {
    for writes in 0..12 {
        let source = Faulty::new(content(), &immortal(), true);
        let target = Faulty::new(vec![0; SIZE as usize], &immortal(), true);
        target.writes.store(writes, Ordering::Relaxed);
        let words = words();
        let progress = Progress::new(words.clone(), 0);
        let migration = Migration::new(source.disk(), target.disk(), progress).unwrap();
        let mut ended = Ok(Step::More);
        for stamp in 0..12_u8 {
            let at = u64::from(stamp) * 512;
            migration
                .run_blocking(BlockingIo::Write(&[stamp; 1024], true), at)
                .unwrap();
            if ended.is_ok() {
                ended = migration.copy();
            }
        }
        assert!(matches!(ended, Err(MigrationError::Target(_))), "{writes}");
        assert_eq!(words.get(0).unwrap().load(Ordering::Relaxed), 0, "{writes}");
        assert!(migration.sync().is_err() && migration.verify(&mut 0).is_err());
        let now = source.now();
        for stamp in 0..12 {
            assert_eq!(now[stamp * 512], stamp as u8);
        }
    }
}

#[test]
fn a_migration_that_cannot_work_is_refused() {
    let disk = |size: u64| Faulty::new(vec![0; size as usize], &immortal(), true).disk();
    let new =
        |source: u64, target: u64| Migration::new(disk(source), disk(target), Progress::new(words(), 0));
    let error = new(SIZE, SIZE - 512).err().unwrap().to_string();
    assert_eq!(
        error,
        format!(
            "the target has {} bytes, expected at least the disk's {SIZE}",
            SIZE - 512
        )
    );
    let source = Faulty::new(content(), &immortal(), true);
    source.unreadable.store(CHUNK, Ordering::Relaxed);
    let migration = Migration::new(source.disk(), disk(SIZE), Progress::new(words(), 0)).unwrap();
    let error = finish(&migration).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot read the disk at byte {CHUNK}: ")),
        "{error}"
    );
    // A target that loses writes.
    source.unreadable.store(u64::MAX, Ordering::Relaxed);
    let target = Faulty::new(vec![0; SIZE as usize], &immortal(), true);
    let migration = Migration::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    while migration.copy().unwrap() == Step::More {}
    target.bytes.lock().unwrap()[2 * CHUNK as usize + 5] ^= 1;
    let error = finish(&migration).unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "differs from the disk in the {CHUNK} bytes from byte {}",
            2 * CHUNK
        )),
        "{error}"
    );
}

/// A guest's writes during a migration, as the in-flight log has them: after a kill at any step on either
/// disk, a new migration reruns the write that has not completed, and resumes. Negative controls: one that
/// does not rerun it, or assumes more progress than there was, finds that the target lacks data.
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
            let mut incomplete = None;
            // Around each border, and in the middle.
            let writes: Vec<(u64, u8)> = (0..12_u64)
                .map(|n| (n % 4 * CHUNK + [512, 4096, 7168][n as usize % 3], 100 + n as u8))
                .collect();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                let migration =
                    Migration::new(source.disk(), target.disk(), Progress::new(words.clone(), 0)).unwrap();
                for &(at, stamp) in &writes {
                    incomplete = Some((at, stamp));
                    migration
                        .run_blocking(BlockingIo::Write(&[stamp; 1024], false), at)
                        .unwrap();
                    incomplete = None;
                    migration.copy().unwrap();
                }
                finish(&migration).unwrap();
            }));
            life.store(usize::MAX, Ordering::Relaxed);
            if control == Some(1) {
                let word = words.get(0).unwrap();
                let copied = word.load(Ordering::Relaxed);
                word.store((copied + CHUNK).min(SIZE), Ordering::Relaxed);
            }
            let migration = Migration::new(source.disk(), target.disk(), Progress::new(words, 0)).unwrap();
            if let Some((at, stamp)) = incomplete
                && control != Some(0)
            {
                migration
                    .run_blocking(BlockingIo::Write(&[stamp; 1024], false), at)
                    .unwrap();
            }
            let finished = finish(&migration);
            match control {
                None => assert_eq!(migration.recopied(), 0, "killed after {steps} steps"),
                Some(control) => caught[control] += usize::from(migration.recopied() > 0),
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
    let migration = Migration::new(source, target, Progress::new(words(), 0)).unwrap();
    let disk = migration.disk();
    assert_eq!(disk.capacity() * 512, SIZE);
    disk.run_blocking(BlockingIo::Write(&[7; 1536], true), 512)
        .unwrap();
    finish(&migration).unwrap();
    disk.run_blocking(BlockingIo::Write(&[8; 512], false), 512)
        .unwrap();
    disk.run_blocking(
        BlockingIo::Zero {
            len: 1024,
            unmap: true,
        },
        4096,
    )
    .unwrap();
    finish(&migration).unwrap();
    let bytes = std::fs::read(&other).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    assert_eq!((bytes[512], bytes[1024], bytes[4096], bytes[5120]), (8, 7, 0, 11));
}

fn one_disk() -> (Arc<Faulty>, Arc<Faulty>, Arc<Migration>) {
    let source = Faulty::new(content(), &immortal(), true);
    let target = Faulty::new(vec![0xaa; SIZE as usize], &immortal(), true);
    let migration = Migration::new(source.disk(), target.disk(), Progress::new(words(), 0)).unwrap();
    (source, target, migration)
}

/// A server that goes down during a migration may lose completed writes, whether they were compared already
/// or not.
#[test]
fn what_a_server_loses_is_copied_again() {
    for compared in [0, 1, 4] {
        let (source, target, migration) = one_disk();
        while migration.copy().unwrap() == Step::More {}
        migration.sync().unwrap();
        let mut at = 0;
        for _ in 0..compared {
            migration.verify(&mut at).unwrap();
        }
        let before = target.now();
        migration
            .run_blocking(BlockingIo::Write(&[9; 1024], false), 512)
            .unwrap();
        target.lose(before);
        while migration.verify(&mut at).unwrap() == Step::More {}
        assert_eq!(migration.recopied(), CHUNK, "{compared}");
        assert_eq!(source.now(), target.now(), "{compared}");
        // Between the comparison and the switch.
        let before = target.now();
        migration
            .run_blocking(BlockingIo::Write(&[8; 1024], false), 2 * CHUNK)
            .unwrap();
        target.lose(before);
        assert_eq!(migration.seal().unwrap(), Step::More);
        at = 0;
        while migration.verify(&mut at).unwrap() == Step::More {}
        assert_eq!(migration.seal().unwrap(), Step::End);
        assert_eq!((migration.recopied(), source.now()), (2 * CHUNK, target.now()));
        // Without a loss nothing explains a difference.
        target.bytes.lock().unwrap()[5] ^= 1;
        assert!(matches!(
            migration.verify(&mut 0),
            Err(MigrationError::Differs { offset: 0 })
        ));
    }
}

/// For as long as the daemon lives: the migration may have ended at the guest's next flush.
#[test]
fn the_source_records_a_failed_sync() {
    for what in [BlockingIo::Sync, BlockingIo::Write(&[1; 512], true)] {
        let (source, _, migration) = one_disk();
        migration.run_blocking(BlockingIo::Sync, 0).unwrap();
        let unflushed = matches!(what, BlockingIo::Sync);
        source.unsynced.store(unflushed, Ordering::Relaxed);
        source.writes.store(usize::from(unflushed), Ordering::Relaxed);
        assert!(!migration.source().sync_failed());
        migration.run_blocking(what, 0).unwrap_err();
        assert!(migration.source().sync_failed());
        // The target has not failed.
        assert!(migration.failure().is_none());
    }
    let (source, _, migration) = one_disk();
    source.writes.store(0, Ordering::Relaxed);
    migration
        .run_blocking(BlockingIo::Write(&[1; 512], false), 0)
        .unwrap_err();
    assert!(!migration.source().sync_failed());
}

#[test]
fn discards_and_zeroes_have_the_same_effect_on_the_target() {
    let (source, target, migration) = one_disk();
    while migration.copy().unwrap() == Step::More {}
    // The chunk of zeroes.
    assert_eq!(target.unmapped.swap(0, Ordering::Relaxed), 1);
    for unmap in [false, true] {
        migration
            .run_blocking(BlockingIo::Zero { len: 512, unmap }, 512)
            .unwrap();
        let unmapped = target.unmapped.swap(0, Ordering::Relaxed);
        assert_eq!(unmapped, usize::from(unmap));
    }
    migration
        .run_blocking(BlockingIo::Discard { len: 512 }, 2048)
        .unwrap();
    assert_eq!(source.now()[2048..2560], [0; 512]);
    finish(&migration).unwrap();
    // A source that cannot discard keeps its contents, and so does the target.
    source.discards.store(false, Ordering::Relaxed);
    let writes = (source.now(), target.now());
    migration
        .run_blocking(BlockingIo::Discard { len: 4096 }, 4096)
        .unwrap();
    assert_eq!((source.now(), target.now()), writes);
    finish(&migration).unwrap();
    let (_, target, migration) = one_disk();
    migration.keep_blocks();
    while migration.copy().unwrap() == Step::More {}
    assert_eq!(target.unmapped.load(Ordering::Relaxed), 0);
}
