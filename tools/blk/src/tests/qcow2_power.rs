//! Writers on a qcow2 image, each on its own part of the disk, whose writes to the file are recorded; and
//! what must hold after a kill or a power cut at any point of that record.
//!
//! After a kill the file has all that was written. After a power cut it has what a completed sync covers, and
//! of what was written since any sectors.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskConfig, Format};
use crate::image::qcow2::recorder::{Event, Recorder};
use crate::image::{BlockingIo, Image};

const SECTOR: usize = 512;

/// Waits until an image is not locked. A process that another test starts holds what is open here, locks
/// included, from its fork until it executes its program.
pub fn await_unlocked(image: &Path) {
    let file = File::open(image).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while crate::image::lock::is_locked(&file).unwrap() {
        assert!(Instant::now() < deadline, "{} stays locked", image.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `qemu-img`, which `tools/setup.sh` installs.
pub fn qemu_img(arguments: &[&str]) {
    arguments
        .iter()
        .map(Path::new)
        .filter(|path| path.is_file())
        .for_each(await_unlocked);
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.expect("qemu-img, which tools/setup.sh installs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {error}");
}

/// Returns what `qemu-img check` finds wrong, beside clusters that are leaked.
pub fn damage(image: &Path) -> Option<String> {
    await_unlocked(image);
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(image)
        .output()
        .expect("qemu-img, which tools/setup.sh installs");
    // 3: leaked clusters, which are allowed after a kill.
    match output.status.code() {
        Some(0 | 3) => None,
        _ => Some(format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// A generator of numbers.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// An operation of a writer: what its range has afterwards, or no bytes for a flush; and how many events
/// there were before and after it.
struct Op {
    at: usize,
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

/// A part of the disk and its history.
pub struct Window {
    offset: u64,
    initial: Vec<u8>,
    ops: Vec<Op>,
}

impl Window {
    pub fn new(disk: &Disk, offset: u64, len: usize) -> Self {
        let mut initial = vec![0; len];
        disk.run_blocking(BlockingIo::Read(&mut initial), offset).unwrap();
        Self {
            offset,
            initial,
            ops: Vec::new(),
        }
    }

    /// Returns the contents after all operations.
    fn contents(&self) -> Vec<u8> {
        self.after(|_| true)
    }

    fn after(&self, counts: impl Fn(&Op) -> bool) -> Vec<u8> {
        let mut bytes = self.initial.clone();
        for op in self.ops.iter().filter(|op| counts(op)) {
            bytes[op.at..op.at + op.bytes.len()].copy_from_slice(&op.bytes);
        }
        bytes
    }

    /// Returns what is wrong with the contents `found` after a cut after `cut` events, at which operations
    /// that ended within the first `lasting` events must be seen.
    fn compare(&self, found: &[u8], lasting: usize, cut: usize) -> Option<String> {
        let least = self.after(|op| op.end <= lasting);
        for (number, (found, least)) in found.chunks(SECTOR).zip(least.chunks(SECTOR)).enumerate() {
            let at = number * SECTOR;
            let later = self.ops.iter().any(|op| {
                let covers = (op.at..op.at + op.bytes.len()).contains(&at);
                covers && op.end > lasting && op.begin <= cut && op.bytes[at - op.at..][..SECTOR] == *found
            });
            if found != least && !later {
                let (offset, found, least) = (self.offset + at as u64, &found[..16], &least[..16]);
                return Some(format!(
                    "sector at {offset:#x} begins with {found:x?}, not {least:x?}"
                ));
            }
        }
        None
    }

    /// Writes, zeroes, discards and flushes at random. What fails for lack of space has no effect that
    /// counts.
    fn use_disk(&mut self, disk: &Disk, recorder: &Recorder, rounds: u32, random: &mut Random) {
        for round in 0..rounds {
            let sectors = [1, 7, 8, 64, 300][random.below(5) as usize];
            let at = random.below((self.initial.len() / SECTOR - sectors) as u64) as usize * SECTOR;
            let len = sectors * SECTOR;
            let mut bytes = vec![0; len];
            let begin = recorder.len();
            let offset = self.offset + at as u64;
            let kind = random.below(10);
            let done = match kind {
                0 => disk.run_blocking(BlockingIo::Sync, 0),
                1 | 2 => {
                    let (len, unmap) = (len as u64, kind == 1);
                    disk.run_blocking(BlockingIo::Zero { len, unmap }, offset)
                }
                3 => disk.run_blocking(BlockingIo::Discard { len: len as u64 }, offset),
                _ => {
                    for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                        sector.fill(random.below(255) as u8 + 1);
                        sector[..8].copy_from_slice(&(u64::from(round) << 32 | number as u64).to_le_bytes());
                    }
                    disk.run_blocking(BlockingIo::Write(&bytes, false), offset)
                }
            };
            let end = recorder.len();
            match done {
                Ok(()) if kind == 0 => bytes.clear(),
                // Zero, or unchanged.
                Ok(()) if kind == 3 => disk.run_blocking(BlockingIo::Read(&mut bytes), offset).unwrap(),
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    if kind == 0 {
                        continue;
                    }
                    // Any part of it may be there, and what is there now need not stay.
                    let end = usize::MAX;
                    self.ops.push(Op {
                        at,
                        bytes: bytes.clone(),
                        begin,
                        end,
                    });
                    disk.run_blocking(BlockingIo::Read(&mut bytes), offset).unwrap();
                    self.ops.push(Op {
                        at,
                        bytes,
                        begin,
                        end,
                    });
                    continue;
                }
            }
            self.ops.push(Op {
                at,
                bytes,
                begin,
                end,
            });
        }
    }
}

/// A recorded run on an image.
pub struct Run {
    config: DiskConfig,
    before: Vec<u8>,
    events: Vec<Event>,
    windows: Vec<Window>,
}

impl Run {
    /// Runs a writer on each window (offset and size) of the image. `room`: bytes that the file may grow by.
    pub fn new(
        config: &DiskConfig,
        windows: &[(u64, usize)],
        rounds: u32,
        seed: u64,
        room: Option<u64>,
    ) -> Self {
        let (before, disk, recorder) = recorded(config, room);
        let mut windows: Vec<_> = windows
            .iter()
            .map(|(offset, len)| Window::new(&disk, *offset, *len))
            .collect();
        std::thread::scope(|scope| {
            for (number, window) in windows.iter_mut().enumerate() {
                let (disk, recorder) = (&disk, &recorder);
                let mut random = Random(seed * 1000 + number as u64 + 1);
                scope.spawn(move || window.use_disk(disk, recorder, rounds, &mut random));
            }
        });
        for window in &windows {
            let mut found = vec![0; window.initial.len()];
            disk.run_blocking(BlockingIo::Read(&mut found), window.offset)
                .unwrap();
            assert!(
                found == window.contents(),
                "seed {seed}: window at {:#x}",
                window.offset
            );
        }
        drop(disk);
        let events = recorder.events().clone();
        Self {
            config: config.clone(),
            before,
            events,
            windows,
        }
    }

    /// Records what `act` does with an image.
    pub fn of(config: &DiskConfig, act: impl FnOnce(&Disk)) -> Self {
        let (before, disk, recorder) = recorded(config, None);
        act(&disk);
        drop(disk);
        let events = recorder.events().clone();
        Self {
            config: config.clone(),
            before,
            events,
            windows: Vec::new(),
        }
    }

    /// Checks the image as it is, with `qemu-img`.
    pub fn check_end(&self) {
        let path = &self.config.path;
        assert_eq!(damage(path), None);
        let raw = path.with_extension("converted");
        qemu_img(&[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            path.to_str().unwrap(),
            raw.to_str().unwrap(),
        ]);
        let file = File::open(&raw).unwrap();
        for window in &self.windows {
            let mut found = vec![0; window.initial.len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, window.offset).unwrap();
            assert_eq!(window.compare(&found, self.events.len(), self.events.len()), None);
        }
        std::fs::remove_file(raw).unwrap();
    }

    /// Returns what is wrong after a kill or a power cut at a random point. `barriers`: syncs that are not a
    /// flush of the guest's count.
    pub fn replay(&self, random: &mut Random, power: bool, barriers: bool) -> Option<String> {
        let cut = random.below(self.events.len() as u64 + 1) as usize;
        let flushed = self
            .flushes()
            .filter(|op| op.end <= cut)
            .map(|op| op.begin)
            .max()
            .unwrap_or(0);
        let synced = match barriers {
            true => self.events[..cut]
                .iter()
                .filter_map(|event| match event {
                    Event::Sync { covered } => Some(*covered),
                    Event::Write { .. } => None,
                })
                .max()
                .unwrap_or(0),
            false => flushed,
        };
        let mut bytes = self.before.clone();
        for (number, event) in self.events[..cut].iter().enumerate() {
            let Event::Write {
                offset,
                bytes: written,
            } = event
            else {
                continue;
            };
            let lost = if power && number >= synced {
                random.below(3)
            } else {
                0
            };
            for (sector, written) in written.chunks(SECTOR).enumerate() {
                if lost == 1 || (lost == 2 && random.below(2) == 0) {
                    continue;
                }
                let at = *offset as usize + sector * SECTOR;
                if bytes.len() < at + written.len() {
                    bytes.resize(at + written.len(), 0);
                }
                bytes[at..at + written.len()].copy_from_slice(written);
            }
        }
        // Beside the image, where its backing files are.
        let path = self.config.path.with_extension("replayed");
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let lasting = if power { flushed } else { cut };
        let found = self.examine(path, lasting, cut);
        found.map(|found| {
            format!(
                "power {power}, after {cut} of {} events, {synced} synced: {found}",
                self.events.len()
            )
        })
    }

    fn flushes(&self) -> impl Iterator<Item = &Op> {
        self.windows
            .iter()
            .flat_map(|window| &window.ops)
            .filter(|op| op.bytes.is_empty())
    }

    fn examine(&self, path: PathBuf, lasting: usize, cut: usize) -> Option<String> {
        if let Some(damage) = damage(&path) {
            return Some(damage);
        }
        let config = DiskConfig {
            path,
            ..self.config.clone()
        };
        let disk = super::rig::open_soon(&config);
        for window in &self.windows {
            let mut found = vec![0; window.initial.len()];
            disk.run_blocking(BlockingIo::Read(&mut found), window.offset)
                .unwrap();
            if let Some(wrong) = window.compare(&found, lasting, cut) {
                return Some(wrong);
            }
        }
        None
    }
}

/// Opens an image, of which the bytes are returned, and records what is written to it. `room`: bytes that the
/// file may grow by.
fn recorded(config: &DiskConfig, room: Option<u64>) -> (Vec<u8>, Arc<Disk>, Arc<Recorder>) {
    let before = std::fs::read(&config.path).unwrap();
    let disk = super::rig::open_soon(config);
    let recorder = Arc::new(Recorder::default());
    if let Some(room) = room {
        recorder.set_end(before.len() as u64 + room);
    }
    let Image::Qcow2(image) = disk.backing() else {
        panic!("no qcow2 image")
    };
    image.record(recorder.clone());
    (before, disk, recorder)
}

/// Returns how many of the things that a variable of the environment sets.
pub fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |count| count.parse().unwrap())
}

/// Returns the configuration of a qcow2 image.
pub fn config(path: PathBuf) -> DiskConfig {
    DiskConfig {
        path,
        format: Format::Qcow2,
        ..DiskConfig::default()
    }
}
