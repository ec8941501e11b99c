//! Images in memory, which are mapped: transfers have the same effect as system calls, even if other
//! processes change the file meanwhile.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ringvirtio::memory::IoVec;
use ringvirtio::virtio::VIRTQ_DESC_F_INDIRECT;
use tempfile::TempDir;

use super::engines::{mounted, unmount};
use super::neighbours::StopAtEnd;
use super::rig::{
    ALL_FEATURES, BUFFERS, Buf, Desc, ENGINES, Rig, TestEngine, WRITABLE_FEATURES, pattern, readable,
    writable,
};
use super::service::{Running, collect, own_queue};
use crate::disk::{DiskConfig, EngineKind};
use crate::engine::uring::OwnRingEngine;
use crate::engine::{Engine, IoKind, IoOp};
use crate::image::mapped::CHUNK;
use crate::virtio::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = 0;
/// Sectors of a chunk.
const SECTORS_OF_CHUNK: u64 = CHUNK / 512;

fn memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn rig_in(dir: &TempDir, kind: EngineKind, image: &[u8]) -> Rig {
    let path = dir.path().join(format!("{kind:?}.img"));
    std::fs::write(&path, image).unwrap();
    open(path, kind, false)
}

fn open(path: std::path::PathBuf, kind: EngineKind, readonly: bool) -> Rig {
    let mut rig = Rig::closed(kind, 64, WRITABLE_FEATURES, readonly);
    rig.config = DiskConfig {
        path,
        readonly,
        ..rig.config.clone()
    };
    rig.open();
    assert!(rig.queue().disk().is_memory());
    rig
}

fn image(bytes: u64) -> Vec<u8> {
    (0..bytes).map(pattern).collect()
}

/// Returns the chunks that are mapped.
fn mapped(rig: &mut Rig) -> usize {
    both(rig)[0]
}

/// Returns the chunks that are mapped, and those of them that are mapped for writing.
fn both(rig: &mut Rig) -> [usize; 2] {
    rig.queue().disk().raw().unwrap().mapped().expect("mapped")
}

fn blocks(rig: &Rig) -> u64 {
    std::fs::metadata(&rig.config.path).unwrap().blocks()
}

/// Punches a hole, as another program would.
fn punch(file: &File, offset: i64, len: i64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }, 0);
}

fn write(rig: &mut Rig, sector: u64, bytes: &[u8]) -> (u8, u32) {
    rig.fill(DATA, bytes);
    rig.request(
        0,
        VIRTIO_BLK_T_OUT,
        sector,
        Some(readable(DATA, bytes.len() as u32)),
    )
}

fn read(rig: &mut Rig, sector: u64, len: u32) -> Vec<u8> {
    rig.fill(DATA, &vec![0xee; len as usize]);
    let done = rig.request(0, VIRTIO_BLK_T_IN, sector, Some(writable(DATA, len)));
    assert_eq!(done, (OK, len + 1), "read of {len} at sector {sector}");
    rig.bytes(DATA, len as usize)
}

fn discard(rig: &mut Rig, sector: u64, sectors: u32) {
    let data = rig.segments(DATA, &[(sector, sectors, 0)]);
    assert_eq!(rig.request(0, VIRTIO_BLK_T_DISCARD, 0, Some(data)).0, OK);
}

// Buffers of any size and alignment, of a file with holes and of one without; no other bytes change.
#[test]
fn large_transfers() {
    let dir = memory();
    // Pages of the buffers, and bytes that are cut off.
    let shapes: [(Vec<u64>, u32); 5] = [
        (vec![1; 40], 0),
        (vec![1; 40], 512),
        (vec![20, 70, 1, 3, 17], 0),
        (vec![1, 40, 1], 512),
        (vec![150], 0),
    ];
    for (kind, holes) in ENGINES.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let size = if holes { 512 } else { 8 << 20 };
        let mut rig = rig_in(&dir, kind, &image(size));
        rig.queue().disk().set_size(8 << 20).unwrap();
        let mut expected = rig.image();
        for (round, (pages, less)) in shapes.iter().enumerate() {
            let sector = 11 + 1007 * round as u64;
            let offset = sector as usize * 512;
            // None of them is adjacent to another.
            let places: Vec<(u64, u32)> = pages
                .iter()
                .scan(DATA, |at, count| {
                    let place = (*at, *count as u32 * 4096 - less);
                    *at += (count + 1) * 4096;
                    Some(place)
                })
                .collect();
            let mut end = offset;
            for (at, len) in &places {
                let bytes: Vec<u8> = (0..*len)
                    .map(|byte| (u64::from(byte) * 7 + at / 4096 + round as u64) as u8)
                    .collect();
                rig.fill(*at, &bytes);
                expected[end..][..bytes.len()].copy_from_slice(&bytes);
                end += bytes.len();
            }
            for (kind, used) in [(VIRTIO_BLK_T_OUT, 1), (VIRTIO_BLK_T_IN, end - offset + 1)] {
                let write = kind == VIRTIO_BLK_T_IN;
                rig.header(BUFFERS, kind, sector);
                let mut bufs = vec![readable(BUFFERS, 16)];
                for (at, len) in &places {
                    bufs.push(Buf {
                        addr: *at,
                        len: *len,
                        write,
                    });
                    if write {
                        rig.fill(*at, &vec![0xee; *len as usize]);
                    }
                }
                bufs.push(writable(BUFFERS + 64, 1));
                rig.fill(BUFFERS + 64, &[0xff]);
                rig.offer(0, &bufs);
                rig.run();
                let done = (rig.take_used(), rig.byte(BUFFERS + 64));
                assert_eq!(done, (vec![(0, used as u32)], OK));
            }
            assert!(rig.image() == expected, "{kind:?}, holes: {holes}, {round}");
            // Also by shorter pieces.
            let last = (end as u64 - 1) / CHUNK;
            assert!(holes || both(&mut rig)[1] as u64 > last - offset as u64 / CHUNK + round as u64);
            let back: Vec<u8> = places
                .iter()
                .flat_map(|(at, len)| rig.bytes(*at, *len as usize))
                .collect();
            assert!(back == expected[offset..end], "{kind:?}, holes: {holes}, {round}");
        }
        assert_eq!(rig.queue().stats().retries.get(), 0, "no transfer was short");
        assert!(holes || mapped(&mut rig) > 0);
    }
}

// A chunk is mapped for one large transfer or for several small ones, and only if it has no hole; other
// processes' writes are visible in any case.
#[test]
fn when_chunks_are_mapped() {
    let dir = memory();
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(4 * CHUNK));
        rig.image_file().set_len(8 * CHUNK).unwrap();
        assert!(rig.queue().disk().reread_capacity().unwrap());
        let before = blocks(&rig);
        for count in 1..=8 {
            assert_eq!(both(&mut rig), [0, 0]);
            assert_eq!(read(&mut rig, 3, 512), image(4 * 512)[3 * 512..], "{count}");
        }
        for count in 1..=64 {
            assert_eq!(both(&mut rig), [1, 0], "{count}");
            assert_eq!(read(&mut rig, 3, 512), image(4 * 512)[3 * 512..]);
            assert_eq!(write(&mut rig, 3, &image(4 * 512)[3 * 512..]), (OK, 1));
        }
        let last = 3 * SECTORS_OF_CHUNK;
        for count in 1..=64 {
            assert_eq!(both(&mut rig), [1, 1], "{count}");
            assert_eq!(write(&mut rig, last, &[0x60; 512]), (OK, 1));
        }
        assert_eq!(both(&mut rig), [2, 2]);
        assert_eq!(rig.image_at(last, 512), [0x60; 512]);
        discard(&mut rig, last, 8);
        assert_eq!(write(&mut rig, last, &[0x60; 4096]), (OK, 1));
        assert_eq!(both(&mut rig), [1, 1]);
        read(&mut rig, SECTORS_OF_CHUNK, 64 << 10);
        assert_eq!(both(&mut rig), [2, 1]);
        // Across the border of two, one of which is not mapped yet.
        assert_eq!(
            write(&mut rig, 2 * SECTORS_OF_CHUNK - 64, &[0x61; 64 << 10]),
            (OK, 1)
        );
        assert_eq!(both(&mut rig), [3, 3]);
        assert_eq!(
            rig.image_at(2 * SECTORS_OF_CHUNK - 64, 64 << 10),
            [0x61; 64 << 10]
        );
        let host = rig.image_file();
        host.write_all_at(&[0x62; 512], 5 * 512).unwrap();
        assert_eq!(read(&mut rig, 5, 1024)[..512], [0x62; 512]);

        for _ in 0..20 {
            assert_eq!(read(&mut rig, 5 * SECTORS_OF_CHUNK, 64 << 10), [0; 64 << 10]);
            assert_eq!(read(&mut rig, 6 * SECTORS_OF_CHUNK, 512), [0; 512]);
        }
        assert_eq!(mapped(&mut rig), 3, "not those with holes");
        assert_eq!(blocks(&rig), before, "a hole that is read stays one");
        for part in 0..4 {
            let sector = 5 * SECTORS_OF_CHUNK + part * 128;
            assert_eq!(write(&mut rig, sector, &[0x63; 64 << 10]), (OK, 1));
        }
        read(&mut rig, 5 * SECTORS_OF_CHUNK, 64 << 10);
        assert_eq!(mapped(&mut rig), 4, "it has none any more");
        assert_eq!(blocks(&rig), before + SECTORS_OF_CHUNK);
    }
}

// Reading does not fill a hole that the guest has punched, and a hole that another process punches reads
// zero.
#[test]
fn holes_that_are_made_later() {
    let dir = memory();
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(4 * CHUNK));
        read(&mut rig, 0, 1 << 20);
        assert_eq!(mapped(&mut rig), 4);
        let before = blocks(&rig);
        discard(&mut rig, 8, 64);
        assert_eq!(mapped(&mut rig), 3);
        for _ in 0..10 {
            assert_eq!(read(&mut rig, 8, 64 * 512), [0; 64 * 512]);
        }
        assert_eq!(blocks(&rig), before - 64);
        assert_eq!(write(&mut rig, 8, &[0x71; 64 * 512]), (OK, 1));
        assert_eq!(read(&mut rig, 0, 128 << 10)[8 * 512..72 * 512], [0x71; 64 * 512]);
        assert_eq!(mapped(&mut rig), 4);

        punch(&rig.image_file(), 0, 1 << 20);
        assert_eq!(read(&mut rig, 0, 1 << 20), vec![0; 1 << 20]);
        assert_eq!(write(&mut rig, 77, &[0x72; 512]), (OK, 1));
        assert_eq!(rig.image_at(77, 512), [0x72; 512]);
    }
}

// torture c9: a mapping beyond the end of a truncated file has the same effect as a short file
#[test]
fn a_file_that_was_cut() {
    let dir = memory();
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(4 * CHUNK));
        read(&mut rig, 0, 1 << 20);
        assert_eq!(mapped(&mut rig), 4);
        rig.image_file().set_len(CHUNK + 4096 + 1000).unwrap();
        let sector = SECTORS_OF_CHUNK;
        let data = Some(writable(DATA, 64 << 10));
        assert_eq!(rig.request(0, VIRTIO_BLK_T_IN, sector, data).0, 1);
        assert_eq!(mapped(&mut rig), 3, "it is not tried again");
        assert_eq!(
            read(&mut rig, sector, 4096),
            image(CHUNK + 4096)[CHUNK as usize..]
        );
        let data = Some(writable(DATA, 512));
        assert_eq!(rig.request(0, VIRTIO_BLK_T_IN, 3 * sector, data), (1, 0));
        // A write extends it, as by system calls.
        assert_eq!(write(&mut rig, 3 * sector, &[0x55; 128 << 10]), (OK, 1));
        assert_eq!(rig.image_at(3 * sector, 128 << 10), [0x55; 128 << 10]);
        assert_eq!(read(&mut rig, sector + 16, 512), [0; 512]);
        assert_eq!(read(&mut rig, 0, 128 << 10), image(128 << 10));
    }
}

// torture c8: no space for an allocation is an error of the request, and its neighbours are unchanged
#[test]
fn no_room_for_a_page() {
    let Some(dir) = mounted(c"tmpfs", c"size=1m") else {
        return;
    };
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(2 * CHUNK));
        read(&mut rig, 0, 512 << 10);
        assert_eq!(mapped(&mut rig), 2);
        // Another process punches a hole, and uses the space.
        punch(&rig.image_file(), 64 << 10, 128 << 10);
        let other = dir.path().join("other");
        let file = File::create(&other).unwrap();
        while file
            .write_all_at(&[1; 4096], file.metadata().unwrap().len())
            .is_ok()
        {}
        // Reading a hole by a system call needs no space.
        assert_eq!(read(&mut rig, 128, 64 << 10), [0; 64 << 10]);
        assert_eq!(write(&mut rig, 128, &[0x44; 64 << 10]).0, 1);
        assert_eq!(read(&mut rig, 0, 64 << 10), image(64 << 10));
        std::fs::remove_file(&other).unwrap();
        drop(file);
        assert_eq!(write(&mut rig, 128, &[0x45; 64 << 10]), (OK, 1));
        assert_eq!(read(&mut rig, 128, 64 << 10), [0x45; 64 << 10]);
        drop(rig);
        std::fs::remove_file(dir.path().join(format!("{kind:?}.img"))).unwrap();
    }
    unmount(&dir);
}

// torture c9: while another thread truncates and extends the file continuously
#[test]
fn a_file_that_is_cut_all_the_time() {
    let dir = memory();
    let len = 4 * CHUNK;
    let whole = image(len);
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &whole);
        let file = rig.image_file();
        let (cuts, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let cut = cuts.fetch_add(1, Ordering::Relaxed) * 4096 % len;
                    file.set_len(cut).unwrap();
                    file.set_len(len).unwrap();
                    file.write_all_at(&whole, 0).unwrap();
                }
            });
            let mut round = 0;
            while round < 300 || cuts.load(Ordering::Relaxed) < 20 {
                round += 1;
                let (kind, data) = match round % 2 {
                    0 => (VIRTIO_BLK_T_IN, writable(DATA, 1 << 20)),
                    _ => (VIRTIO_BLK_T_OUT, readable(DATA, 1 << 20)),
                };
                let (status, _) = rig.request(0, kind, 0, Some(data));
                assert!(status <= 1, "{status}");
            }
        });
        file.set_len(len).unwrap();
        file.write_all_at(&whole, 0).unwrap();
        for _ in 0..2 {
            assert_eq!(read(&mut rig, 0, 1 << 20), whole);
        }
        assert_eq!(mapped(&mut rig), 4, "as ever");
    }
}

// The new part of a grown image is mapped, too; the part that a shrink has cut off is not read.
#[test]
fn an_image_whose_size_changes() {
    let dir = memory();
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(CHUNK));
        rig.queue().disk().set_size(3 * CHUNK).unwrap();
        for chunk in 0..3 {
            let data = vec![chunk as u8 + 1; CHUNK as usize];
            assert_eq!(write(&mut rig, chunk * SECTORS_OF_CHUNK, &data), (OK, 1));
            assert_eq!(read(&mut rig, chunk * SECTORS_OF_CHUNK, CHUNK as u32), data);
        }
        assert_eq!(mapped(&mut rig), 3);
        rig.queue().disk().set_size(3 * CHUNK - 512).unwrap();
        assert_eq!(read(&mut rig, 2 * SECTORS_OF_CHUNK, 64 << 10), [3; 64 << 10]);
        assert_eq!(mapped(&mut rig), 0, "what lies behind its end is not the file's");
        rig.queue().disk().set_size(CHUNK + 512).unwrap();
        assert_eq!(mapped(&mut rig), 0);
        assert_eq!(read(&mut rig, SECTORS_OF_CHUNK - 127, 64 << 10)[..100], [1; 100]);
        assert_eq!(mapped(&mut rig), 1, "not the last one, which is not whole");
        let data = Some(writable(DATA, 1024));
        assert_eq!(rig.request(0, VIRTIO_BLK_T_IN, SECTORS_OF_CHUNK, data), (1, 0));
        rig.queue().disk().set_size(2 * CHUNK).unwrap();
        assert_eq!(read(&mut rig, SECTORS_OF_CHUNK + 1, 4096), [0; 4096]);
        assert_eq!(mapped(&mut rig), 0);
        assert_eq!(read(&mut rig, 0, 64 << 10), [1; 64 << 10]);
        assert_eq!(
            read(&mut rig, SECTORS_OF_CHUNK, 64 << 10)[512..],
            [0; (64 << 10) - 512]
        );
        assert_eq!(mapped(&mut rig), 1, "there is a hole");
    }
}

#[test]
fn a_disk_that_is_only_read() {
    let dir = memory();
    let path = dir.path().join("read.img");
    std::fs::write(&path, image(2 * CHUNK)).unwrap();
    for kind in ENGINES {
        let mut rig = open(path.clone(), kind, true);
        assert_eq!(read(&mut rig, 0, 512 << 10), image(2 * CHUNK));
        assert_eq!(read(&mut rig, 0, 512 << 10), image(2 * CHUNK));
        assert_eq!(mapped(&mut rig), 2);
        assert_eq!(write(&mut rig, 0, &[1; 512]).0, 1);
        assert_eq!(rig.image(), image(2 * CHUNK));
    }
}

// Backups depend on it: a copy, which the kernel does not see, updates it with the next flush or when the
// disk is closed.
#[test]
fn the_time_of_modification_follows() {
    let dir = memory();
    for kind in ENGINES {
        let mut rig = rig_in(&dir, kind, &image(2 * CHUNK));
        // Mapped for writing, so that the next write is a copy.
        assert_eq!(write(&mut rig, 0, &image(2 * CHUNK)), (OK, 1));
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let age = |rig: &Rig| {
            let metadata = std::fs::metadata(&rig.config.path).unwrap();
            metadata.modified().unwrap() == long_ago
        };
        rig.image_file().set_modified(long_ago).unwrap();
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
        assert!(age(&rig), "nothing was written");
        assert_eq!(write(&mut rig, 0, &[9; 4096]), (OK, 1));
        assert!(age(&rig), "a copy: else this test shows nothing");
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
        assert!(!age(&rig));
        rig.image_file().set_modified(long_ago).unwrap();
        assert_eq!(write(&mut rig, 0, &[8; 4096]), (OK, 1));
        rig.kill();
        assert!(!age(&rig));
        let mut expected = image(2 * CHUNK);
        expected[..4096].fill(8);
        assert!(rig.image() == expected);
    }
}

// The reactor has its rounds in between, and queues take turns.
#[test]
fn queues_take_turns() {
    let Ok(mut ring) = OwnRingEngine::new(8) else {
        eprintln!("skipped: no io_uring here");
        return;
    };
    let dir = memory();
    let mut rig = rig_in(&dir, EngineKind::IoUring, &image(8 << 20));
    let disk = rig.queue().disk().clone();
    let mut memory: Vec<u8> = vec![0; 9 << 20];
    let (large, small) = memory.split_at_mut(6 << 20);
    let (first, small) = small.split_at_mut(1 << 20);
    let (second, third) = small.split_at_mut(1 << 20);
    // Queue and buffer: two of one queue, one each of two more.
    let ops =
        [(7, large), (7, first), (8, second), (9, third)].map(|(queue, bytes)| (queue, [IoVec::of(bytes)]));
    for (number, (queue, list)) in ops.iter().enumerate() {
        let op = IoOp {
            tag: queue << 16 | number as u64,
            image: disk.image(),
            kind: IoKind::Read,
            iov: list.as_ptr(),
            count: 1,
            offset: 0,
            len: list[0].len() as u64,
            owner: 0,
            immediate: false,
        };
        // SAFETY: lists, memory and disk live until the ring has completed the operations.
        unsafe { ring.push(op) };
    }
    let (mut done, mut order) = (Vec::new(), Vec::new());
    for round in 1.. {
        assert!(ring.state.is_copying());
        ring.submit();
        ring.reap(&mut done);
        for outcome in done.drain(..) {
            order.push((round, outcome.tag & 0xffff, outcome.result));
        }
        if round == 13 {
            assert_eq!(ring.state.abandon(9 << 16), 0, "it has ended");
            assert_eq!(ring.state.abandon(7 << 16 | 5), 2);
        }
        if !ring.state.is_copying() {
            break;
        }
    }
    // 256 KiB in each round.
    assert_eq!(order, [(11, 2, 1 << 20), (12, 3, 1 << 20)]);
    assert!(memory[7 << 20..8 << 20] == image(1 << 20) && memory[8 << 20..] == image(1 << 20));
    let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    // Five turns of the large one.
    assert!(memory[..5 * CHUNK as usize] == image(5 * CHUNK));
    assert!(untouched(&memory[5 * CHUNK as usize..7 << 20]));
}

// The transfers of a queue complete in order, each as early as possible, and a read has no more pieces than
// its data.
#[test]
fn large_transfers_of_a_queue_complete_in_order() {
    let dir = memory();
    let mut rig = rig_in(&dir, EngineKind::IoUring, &image(8 << 20));
    if !matches!(rig.engine, TestEngine::Uring(..)) {
        return;
    }
    let mut statuses = Vec::new();
    for number in 0..3_u16 {
        let data = writable(DATA + (u64::from(number) << 20), 1 << 20);
        statuses.push(rig.offer_request(number * 3, VIRTIO_BLK_T_IN, u64::from(number) * 2048, Some(data)));
    }
    rig.run();
    assert_eq!(rig.take_used(), [0, 3, 6].map(|head| (head, (1 << 20) + 1)));
    assert!(statuses.iter().all(|&status| rig.byte(status) == OK));
    assert!(rig.bytes(DATA, 3 << 20) == image(3 << 20));
    assert_eq!(mapped(&mut rig), 12, "nothing behind them");
}

// Copies as large as a guest can make them: removing a queue does not wait for them, and another queue's
// requests complete meanwhile.
#[test]
fn a_queue_is_removed_during_copies() {
    let dir = memory();
    let path = dir.path().join("large.img");
    File::create(&path).unwrap().set_len(4 << 30).unwrap();
    let reactor = Running::new(true);
    // A chain is not longer than the queue.
    let mut rig = Rig::closed(EngineKind::IoUring, 1024, WRITABLE_FEATURES, false);
    rig.config.path = path;
    let (served, _interrupts) = own_queue(&rig);
    // 512 buffers in one table, all the same 4 MiB, for each of 16 requests.
    let table = BUFFERS;
    rig.header(BUFFERS + 0x8000, VIRTIO_BLK_T_IN, 0);
    let mut bufs = vec![readable(BUFFERS + 0x8000, 16)];
    bufs.extend([writable(BUFFERS + 0x10_0000, 4 << 20); 512]);
    bufs.push(writable(BUFFERS + 0x8020, 1));
    rig.chain_in(table, 0, &bufs);
    for head in 0..16 {
        let indirect = Desc {
            addr: table,
            len: bufs.len() as u32 * 16,
            flags: VIRTQ_DESC_F_INDIRECT,
            next: 0,
        };
        rig.write_desc(rig.ring.desc.0, head, indirect);
        rig.offer_head(head);
    }
    let id = reactor.handle.add(served);
    let mut other = Rig::closed(EngineKind::IoUring, 16, ALL_FEATURES, false);
    let (served, interrupts) = own_queue(&other);
    let other_id = reactor.handle.add(served);
    for _ in 0..10 {
        let status = other.offer_request(0, VIRTIO_BLK_T_IN, 1, Some(writable(DATA, 512)));
        reactor.handle.schedule(other_id);
        collect(&mut other, &interrupts, 1);
        assert_eq!(other.byte(status), OK);
    }
    reactor.remove(id);
    assert_eq!(rig.fault_list(), Vec::<String>::new());
    assert!(rig.used_idx() < 16, "32 GiB were copied: this test shows nothing");
    // The next daemon finds them in the log. This one has none left.
    reactor.remove(other_id);
}
