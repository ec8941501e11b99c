//! A daemon process that is killed by SIGKILL during traffic, repeatedly, on both engines and with raw and
//! qcow2 images. The test program runs itself as the daemon ([`daemon`]); guest RAM, the in-flight log and
//! the image are files. The guest has many requests outstanding that write and read back versioned blocks,
//! and checks each.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringvirtio::memory::GuestRam;
use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::{Commands, EventSource, QueueId, Reactor, ReactorOptions, ReadWidth};
use tempfile::TempDir;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, MmapRegion};

use super::rig::{BASE, BUFFERS, ENGINES, RAM, Rig, WRITABLE_FEATURES, readable, writable};
use crate::disk::{Disk, DiskConfig, EngineKind, Format, HostCache, OpenContext, OpenOptions};
use crate::queue::BlockQueue;
use crate::virtio::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES};

const SIZE: u16 = 256;
const LANES: u16 = 32;
const DATA: u64 = BUFFERS + 0x10_0000;
const BLOCK: u32 = 16384;
const FEATURES: u64 = WRITABLE_FEATURES | feature(VIRTIO_RING_F_EVENT_IDX);

/// Returns a rig whose memory is in files of `dir`, so that two processes share it.
fn shared(kind: EngineKind, format: Format, dir: &Path) -> Rig {
    let open = |name: &str, len: u64| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(name))
            .unwrap();
        file.set_len(len).unwrap();
        FileOffset::new(file, 0)
    };
    let mut rig = Rig::closed(kind, SIZE, FEATURES, false);
    let ranges = [(GuestAddress(BASE), RAM, Some(open("ram", RAM as u64)))];
    rig.memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
    rig.ram = GuestRam::new(rig.memory.clone()).unwrap();
    rig.log = Arc::new(MmapRegion::from_file(open("log", 8192), 8192).unwrap());
    let size = u64::from(LANES) * u64::from(BLOCK);
    let path = dir.join("image");
    match format {
        Format::Raw => drop(open("image", size)),
        Format::Qcow2 if path.exists() => {}
        Format::Qcow2 => super::qcow2::create(&path, size, None),
    }
    rig.config = DiskConfig {
        path,
        format,
        ..rig.config.clone()
    };
    rig
}

/// Returns the format that the directory's name encodes.
fn format_of(dir: &Path) -> Format {
    if dir.to_str().unwrap().ends_with("qcow2") {
        Format::Qcow2
    } else {
        Format::Raw
    }
}

struct Notifier(QueueId);

impl EventSource for Notifier {
    fn collect(&mut self, commands: &mut Commands) {
        commands.schedule(self.0);
    }
}

/// Runs the daemon if one of the tests below has started this process; else does nothing.
#[test]
fn daemon() {
    let Ok(dir) = std::env::var("RINGBLK_TEST_DAEMON") else {
        return;
    };
    let kind = engine_of_child();
    let rig = shared(kind, format_of(Path::new(&dir)), Path::new(&dir));
    // The lock is granted when the old daemon's I/O has ended.
    let options = OpenOptions {
        known: None,
        format_unstated: false,
        owner: Some(1),
        wait: Duration::from_secs(10),
    };
    let disk = Disk::open_with(&rig.config, &OpenContext::default(), &options).unwrap();
    let mut setup = rig.setup();
    setup.needs_reset = Box::new(|fault| {
        eprintln!("the daemon finds: {fault}");
        std::process::abort();
    });
    let (reactor, handle) = Reactor::new(ReactorOptions::default()).unwrap();
    let id = handle.add(Box::new(BlockQueue::new(disk, setup).unwrap()));
    // The guest's notifications are bytes on the standard input, which ends with the test.
    let (reader, mut writer) = std::io::pipe().unwrap();
    handle.add_event_source(reader.into(), ReadWidth::Eight, Box::new(Notifier(id)));
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(1..) = std::io::stdin().read(&mut bytes) {
            writer.write_all(&[1; 8]).unwrap();
        }
        std::process::exit(0);
    });
    reactor.run().unwrap();
}

fn engine_of_child() -> EngineKind {
    if std::env::var("RINGBLK_TEST_ENGINE").unwrap() == "threads" {
        EngineKind::Threads
    } else {
        EngineKind::IoUring
    }
}

/// Returns the command that runs one of the functions here in a process of its own.
fn command(function: &str, kind: EngineKind) -> Command {
    let engine = if kind == EngineKind::Threads {
        "threads"
    } else {
        "io_uring"
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("tests::sigkill::{function}"), "--nocapture"])
        .env("RINGBLK_TEST_ENGINE", engine)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    command
}

fn spawn(kind: EngineKind, dir: &Path) -> Child {
    command("daemon", kind)
        .env("RINGBLK_TEST_DAEMON", dir)
        .spawn()
        .unwrap()
}

/// A lane: the version in its block, and its outstanding request (type, address of the status byte).
#[derive(Clone, Copy, Default)]
struct Lane {
    version: u8,
    turn: u16,
    busy: Option<(u32, u64)>,
}

// torture c5: SIGKILL at random times; c7: the take-over waits for the lock. RINGBLK_KILLS is the number of
// kills.
#[test]
fn killed_for_real() {
    for kind in ENGINES {
        let (dir, lanes) = kill_again_and_again(kind, Format::Raw);
        let image = std::fs::read(dir.path().join("image")).unwrap();
        check(&lanes, &image);
    }
}

// The same with qcow2, whose tables each write changes: no change may be lost with the process.
#[test]
fn killed_with_qcow2() {
    for kind in ENGINES {
        let (dir, lanes) = kill_again_and_again(kind, Format::Qcow2);
        let path = dir.path();
        if let Some(image) = super::qcow2::qemu_reads(&path.join("image"), &path.join("raw")) {
            check(&lanes, &image);
        }
        // The lock is released a moment after the process ends.
        let mut rig = shared(kind, Format::Qcow2, path);
        let options = OpenOptions {
            known: None,
            format_unstated: false,
            owner: Some(1),
            wait: Duration::from_secs(10),
        };
        rig.epoch += 1;
        (rig.avail_idx, rig.used_seen) = (0, 0);
        rig.set_u16(rig.ring.avail.0 + 2, 0);
        rig.set_u16(rig.ring.used.0 + 2, 0);
        rig.open_on(Disk::open_with(&rig.config, &OpenContext::default(), &options).unwrap());
        let len = u32::from(LANES) * BLOCK;
        let done = rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, len)));
        assert_eq!(done, (0, len + 1));
        check(&lanes, &rig.bytes(DATA, len as usize));
    }
}

fn check(lanes: &[Lane], image: &[u8]) {
    for (lane, block) in lanes.iter().zip(image.chunks(BLOCK as usize)) {
        assert!(block.iter().all(|&byte| byte == lane.version));
    }
}

fn kill_again_and_again(kind: EngineKind, format: Format) -> (TempDir, [Lane; LANES as usize]) {
    let kills: u32 = std::env::var("RINGBLK_KILLS")
        .ok()
        .map_or(15, |text| text.parse().unwrap());
    // On a real file system a FLUSH takes long and other requests overtake it, so that the requests completed
    // before a kill are no prefix of those popped. On tmpfs a daemon without a log would pass.
    let program = std::env::current_exe().unwrap();
    let parent = program.parent().unwrap();
    let suffix = if format == Format::Qcow2 { "qcow2" } else { "raw" };
    let dir = tempfile::Builder::new()
        .suffix(suffix)
        .tempdir_in(parent)
        .unwrap();
    let mut rig = shared(kind, format, dir.path());
    let mut lanes = [Lane::default(); LANES as usize];
    let mut total = 0_u64;
    let mut seed = 7_u32;
    for round in 0..=kills {
        let mut child = spawn(kind, dir.path());
        let start = Instant::now();
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        let life = Duration::from_micros(1000 + u64::from(seed >> 16) % 30_000);
        let mut served = 0;
        let mut first = None;
        // The daemon lives for a while after its first completion; the last one until all requests are
        // complete.
        while first.is_none_or(|first: Instant| first.elapsed() < life)
            || (round == kills && lanes.iter().any(|lane| lane.busy.is_some()))
        {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{kind:?}, kill {round}: no request completes"
            );
            if round < kills || first.is_none_or(|first| first.elapsed() < life) {
                offer(&mut rig, &mut lanes);
            }
            if let Some(stdin) = &mut child.stdin {
                stdin.write_all(&[1]).unwrap();
            }
            let count = take(&mut rig, &mut lanes);
            served += count;
            if served > 0 && first.is_none() {
                first = Some(Instant::now());
            }
            if count == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        total += served;
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eprintln!("{kind:?}, {format:?}: {kills} kills, {total} requests");
    assert!(total > 100, "{total} requests were served");
    (dir, lanes)
}

// Without a flush, completed writes are visible to the next daemon: they are in the page cache, not in the
// process.
#[test]
fn killed_without_a_flush() {
    for kind in ENGINES {
        for format in [Format::Raw, Format::Qcow2] {
            let suffix = if format == Format::Qcow2 { "qcow2" } else { "raw" };
            let dir = tempfile::Builder::new().suffix(suffix).tempdir().unwrap();
            let mut rig = shared(kind, format, dir.path());
            let mut lanes = [Lane::default(); LANES as usize];
            for request in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_OUT] {
                for request in [request, VIRTIO_BLK_T_IN] {
                    let mut child = spawn(kind, dir.path());
                    for (lane, number) in lanes.iter_mut().zip(0..) {
                        offer_one(&mut rig, lane, number, request);
                    }
                    let start = Instant::now();
                    while lanes.iter().any(|lane| lane.busy.is_some()) {
                        assert!(start.elapsed() < Duration::from_secs(10), "no request completes");
                        if let Some(stdin) = &mut child.stdin {
                            stdin.write_all(&[1]).unwrap();
                        }
                        take(&mut rig, &mut lanes);
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            }
        }
    }
}

/// Writes in an endless loop if the test below has started this process; else does nothing.
#[test]
fn writer() {
    let Ok(path) = std::env::var("RINGBLK_TEST_WRITER") else {
        return;
    };
    let kind = engine_of_child();
    let mut rig = Rig::closed(kind, 64, FEATURES, false);
    rig.config = DiskConfig {
        format: format_of(Path::new(&path)),
        path: path.into(),
        cache: HostCache::None,
        ..rig.config.clone()
    };
    rig.open();
    for round in 1_u8.. {
        let status = (0..8_u16)
            .map(|number| {
                let addr = BUFFERS + 0x1_0000 + u64::from(number) * 0x8_0000;
                rig.fill(addr, &vec![round; 0x8_0000]);
                rig.offer_request(
                    number * 3,
                    VIRTIO_BLK_T_OUT,
                    u64::from(number) * 1024,
                    Some(readable(addr, 0x8_0000)),
                )
            })
            .last();
        rig.run();
        rig.take_used();
        assert_eq!(rig.byte(status.unwrap()), 0);
    }
}

// torture c7: once the lock of a killed process is granted, none of its writes reaches the image, on either
// engine
#[test]
fn the_lock_proves_that_io_has_ended() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for kind in ENGINES {
        for name in ["a.raw", "a.qcow2"] {
            let path = dir.path().join(name);
            for _ in 0..3 {
                match format_of(&path) {
                    Format::Raw => std::fs::write(&path, vec![0; 4 << 20]).unwrap(),
                    Format::Qcow2 => super::qcow2::create(&path, 4 << 20, None),
                }
                let before = std::fs::read(&path).unwrap();
                let mut child = command("writer", kind)
                    .env("RINGBLK_TEST_WRITER", &path)
                    .spawn()
                    .unwrap();
                let start = Instant::now();
                while std::fs::read(&path).unwrap() == before {
                    assert!(start.elapsed() < Duration::from_secs(10), "nothing is written");
                }
                child.kill().unwrap();
                let config = DiskConfig {
                    path: path.clone(),
                    format: format_of(&path),
                    ..DiskConfig::default()
                };
                let options = OpenOptions {
                    known: None,
                    format_unstated: false,
                    owner: None,
                    wait: Duration::from_secs(10),
                };
                let disk = Disk::open_with(&config, &OpenContext::default(), &options).unwrap();
                let granted = std::fs::read(&path).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                assert!(
                    std::fs::read(&path).unwrap() == granted,
                    "{kind:?}, {name}: written after the lock was granted"
                );
                drop(disk);
                child.wait().unwrap();
            }
        }
    }
}

fn offer(rig: &mut Rig, lanes: &mut [Lane; LANES as usize]) {
    for number in 0..LANES {
        let lane = &mut lanes[usize::from(number)];
        if lane.busy.is_some() {
            continue;
        }
        let kind = [
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_WRITE_ZEROES,
            VIRTIO_BLK_T_OUT,
        ][usize::from(number.wrapping_add(lane.turn) % 6)];
        lane.turn = lane.turn.wrapping_add(1);
        offer_one(rig, lane, number, kind);
    }
}

fn offer_one(rig: &mut Rig, lane: &mut Lane, number: u16, kind: u32) {
    let addr = DATA + u64::from(number) * u64::from(BLOCK);
    let sector = u64::from(number) * u64::from(BLOCK) / 512;
    let data = match kind {
        VIRTIO_BLK_T_OUT => {
            rig.fill(addr, &vec![lane.version.wrapping_add(1); BLOCK as usize]);
            Some(readable(addr, BLOCK))
        }
        VIRTIO_BLK_T_IN => {
            rig.fill(addr, &[0xee; BLOCK as usize]);
            Some(writable(addr, BLOCK))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            // Unmapped.
            let mut segment = sector.to_le_bytes().to_vec();
            segment.extend((BLOCK / 512).to_le_bytes());
            segment.extend(1_u32.to_le_bytes());
            // Between the headers.
            let at = BUFFERS + u64::from(number) * 192 + 64;
            rig.fill(at, &segment);
            Some(readable(at, 16))
        }
        _ => None,
    };
    let status = rig.offer_request(number * 3, kind, sector, data);
    lane.busy = Some((kind, status));
}

fn take(rig: &mut Rig, lanes: &mut [Lane; LANES as usize]) -> u64 {
    let used = rig.take_used();
    for &(head, _) in &used {
        let number = head / 3;
        let lane = &mut lanes[number as usize];
        let (kind, status) = lane
            .busy
            .take()
            .unwrap_or_else(|| panic!("head {head} was used twice"));
        assert_eq!(rig.byte(status), 0, "no guest error");
        let addr = DATA + u64::from(number) * u64::from(BLOCK);
        match kind {
            VIRTIO_BLK_T_OUT => lane.version = lane.version.wrapping_add(1),
            VIRTIO_BLK_T_WRITE_ZEROES => lane.version = 0,
            VIRTIO_BLK_T_IN => {
                let block = rig.bytes(addr, BLOCK as usize);
                assert!(
                    block.iter().all(|&byte| byte == lane.version),
                    "lane {number}: torn or lost"
                );
            }
            _ => {}
        }
    }
    used.len() as u64
}
