//! Engines and images: every case on both engines, with O_DIRECT and through the page cache.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use ringvirtio::Completion;
use ringvirtio::memory::GuestRam;
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::rig::{
    BASE, BUFFERS, ENGINES, RAM, Rig, TestEngine, WRITABLE_FEATURES, open_soon, pattern, readable, writable,
};
use crate::disk::{Disk, DiskConfig, EngineKind, HostCache};
use crate::engine::uring::OwnRingEngine;
use crate::virtio::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = 0;

/// Returns a directory on a disk, where O_DIRECT and holes are supported; else one for temporary files.
fn disk_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Both engines, each with and without the page cache.
fn ways() -> impl Iterator<Item = (EngineKind, HostCache)> {
    ENGINES
        .into_iter()
        .flat_map(|kind| [HostCache::None, HostCache::Writeback].map(|cache| (kind, cache)))
}

/// Makes a rig over a file of `sectors` sectors in `dir`, registered with its engine.
fn rig_on(dir: &TempDir, kind: EngineKind, cache: HostCache, sectors: u64) -> Rig {
    let path = dir.path().join(format!("{kind:?}-{cache:?}.img"));
    let image: Vec<u8> = (0..sectors * 512).map(pattern).collect();
    std::fs::write(&path, image).unwrap();
    let mut rig = Rig::closed(kind, 64, WRITABLE_FEATURES, false);
    rig.config = DiskConfig {
        path,
        cache,
        ..rig.config.clone()
    };
    rig.open();
    attach(&mut rig);
    rig
}

fn attach(rig: &mut Rig) {
    let disk = rig.queue().disk().clone();
    if let TestEngine::Uring(engine, _) = &mut rig.engine {
        engine.attach(disk.backing(), &rig.ram);
    }
}

fn out(rig: &mut Rig, sector: u64, addr: u64, len: u32) {
    let done = rig.request(0, VIRTIO_BLK_T_OUT, sector, Some(readable(addr, len)));
    assert_eq!(done, (OK, 1), "write of {len} at sector {sector}");
}

fn read(rig: &mut Rig, sector: u64, addr: u64, len: u32) {
    let done = rig.request(0, VIRTIO_BLK_T_IN, sector, Some(writable(addr, len)));
    assert_eq!(done, (OK, len + 1), "read of {len} at sector {sector}");
}

/// Makes a request for one range; returns its status.
fn range(rig: &mut Rig, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    let mut segment = sector.to_le_bytes().to_vec();
    segment.extend(sectors.to_le_bytes());
    segment.extend(flags.to_le_bytes());
    rig.fill(DATA, &segment);
    rig.request(0, kind, 0, Some(readable(DATA, 16))).0
}

// Any sector, any length, buffers of any alignment: the bytes are written, and no others.
#[test]
fn transfers_of_any_alignment() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 4096);
        let mut expected = rig.image();
        let mut seed = 5_u32;
        for round in 0..40_u32 {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            let sector = u64::from(seed >> 20) % 3000;
            // Some aligned to a sector, some to a word, some unaligned.
            let shift = [0, 512, 4, 1][round as usize % 4];
            let len = [512, 4096, 65536, 0x4_8000][(seed >> 8) as usize % 4];
            let addr = DATA + shift;
            let bytes: Vec<u8> = (0..len).map(|at| (at * 13 + round) as u8).collect();
            rig.fill(addr, &bytes);
            out(&mut rig, sector, addr, len);
            expected[sector as usize * 512..][..len as usize].copy_from_slice(&bytes);
            let back = DATA + 0x10_0000 + shift;
            rig.fill(back, &vec![0xee; len as usize]);
            read(&mut rig, sector, back, len);
            assert!(
                rig.bytes(back, len as usize) == bytes,
                "{kind:?} {cache:?} {round}"
            );
        }
        assert!(rig.image() == expected, "{kind:?} {cache:?}");
        let file = rig.queue().disk().raw().unwrap();
        assert!(cache == HostCache::None || !file.direct);
        eprintln!("{kind:?} {cache:?}: direct {}", file.direct);
    }
}

// Segments that are not whole sectors are copied through a bounce buffer where the file requires it.
#[test]
fn segments_of_odd_lengths() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 64);
        let bytes: Vec<u8> = (0..1536).map(|at| (at % 241) as u8).collect();
        rig.fill(DATA, &bytes);
        rig.header(BUFFERS, VIRTIO_BLK_T_OUT, 9);
        let status = BUFFERS + 64;
        let parts = [(0, 100), (100, 924), (1024, 512)];
        let mut bufs = vec![readable(BUFFERS, 16)];
        bufs.extend(parts.map(|(at, len)| readable(DATA + at, len)));
        bufs.push(writable(status, 1));
        rig.offer(0, &bufs);
        rig.run();
        assert_eq!((rig.take_used(), rig.byte(status)), (vec![(0, 1)], OK));
        assert_eq!(rig.image_at(9, 1536), bytes);

        rig.header(BUFFERS, VIRTIO_BLK_T_IN, 9);
        let back = DATA + 0x1_0000;
        let mut bufs = vec![readable(BUFFERS, 16)];
        bufs.extend(parts.map(|(at, len)| writable(back + at, len)));
        bufs.push(writable(status, 1));
        rig.offer(0, &bufs);
        rig.run();
        assert_eq!((rig.take_used(), rig.byte(status)), (vec![(0, 1537)], OK));
        assert_eq!(rig.bytes(back, 1536), bytes);
    }
}

// A file that another program reads and writes through the page cache between the requests
#[test]
fn the_page_cache_agrees() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 64);
        let host = rig.image_file();
        host.write_all_at(&[0x21; 512], 8 * 512).unwrap();
        read(&mut rig, 8, DATA, 1024);
        assert_eq!(rig.bytes(DATA, 512), [0x21; 512]);
        rig.fill(DATA, &[0x22; 512]);
        out(&mut rig, 9, DATA, 512);
        assert_eq!(rig.image_at(8, 512), [0x21; 512]);
        assert_eq!(rig.image_at(9, 512), [0x22; 512]);
        assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
    }
}

// torture c9: the rest of a truncated file, also with O_DIRECT
#[test]
fn truncated_underneath() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 128);
        rig.image_file().set_len(5000).unwrap();
        let done = rig.request(0, VIRTIO_BLK_T_IN, 20, Some(writable(DATA, 512)));
        assert_eq!(done, (1, 0));
        let done = rig.request(0, VIRTIO_BLK_T_IN, 9, Some(writable(DATA, 1024)));
        assert_eq!(done, (1, 5000 - 9 * 512), "{kind:?} {cache:?}");
        read(&mut rig, 0, DATA, 512);
    }
}

// virtio-checklist 57: a discard deallocates blocks, zeroes read zero whether unmapped or not, neighbours are
// unchanged
#[test]
fn holes_and_zeroes() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 4096);
        rig.image_file().sync_all().unwrap();
        let blocks = |rig: &Rig| std::fs::metadata(&rig.config.path).unwrap().blocks();
        let before = blocks(&rig);
        assert_eq!(range(&mut rig, VIRTIO_BLK_T_DISCARD, 1024, 2048, 0), OK);
        assert!(
            blocks(&rig) <= before - 2000,
            "{kind:?}: {before} to {} blocks",
            blocks(&rig)
        );
        let mut expected: Vec<u8> = (0..4096 * 512).map(pattern).collect();
        expected[1024 * 512..3072 * 512].fill(0);
        // Ranges that are not whole blocks.
        for (sector, sectors, flags) in [(1, 3, 0), (17, 999, 1), (3333, 1, 1), (4095, 1, 0)] {
            assert_eq!(
                range(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, sector, sectors, flags),
                OK
            );
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert!(rig.image() == expected, "{kind:?} {cache:?}");
        let operations = rig.queue().stats().zeroes.get();
        assert_eq!(operations, 4);
    }
}

// Fallbacks for what a file lacks: discards have no effect, zeroes are written. ramfs has no fallocate.
#[test]
fn files_without_holes() {
    let Some(dir) = mounted(c"ramfs", c"") else { return };
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 2048);
        assert_eq!(range(&mut rig, VIRTIO_BLK_T_DISCARD, 8, 64, 0), OK);
        let mut expected: Vec<u8> = (0..2048 * 512).map(pattern).collect();
        assert!(rig.image() == expected, "a discard without effect");
        for (sector, sectors, flags) in [(1, 3, 0), (100, 1500, 1), (2047, 1, 0)] {
            let status = range(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, sector, sectors, flags);
            assert_eq!(status, OK);
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert!(rig.image() == expected, "{kind:?} {cache:?}");
    }
    unmount(&dir);
}

// tmpfs punches holes but has no ZERO_RANGE, and no real O_DIRECT.
#[test]
fn files_in_memory() {
    let Some(dir) = mounted(c"tmpfs", c"size=16m") else {
        return;
    };
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 2048);
        assert!(!rig.queue().disk().raw().unwrap().direct);
        let mut expected: Vec<u8> = (0..2048 * 512).map(pattern).collect();
        for (sector, sectors, flags) in [(1, 3, 0), (100, 1500, 1), (2047, 1, 0)] {
            let status = range(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, sector, sectors, flags);
            assert_eq!(status, OK);
            expected[sector as usize * 512..][..sectors as usize * 512].fill(0);
        }
        assert!(rig.image() == expected, "{kind:?} {cache:?}");
    }
    unmount(&dir);
}

/// Mounts a file system in a mount namespace of this thread; `None` where that is not permitted.
pub(super) fn mounted(kind: &std::ffi::CStr, data: &std::ffi::CStr) -> Option<TempDir> {
    // SAFETY: it affects only this thread, which the test harness ends after the test.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        eprintln!("skipped: mounting needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = target(&dir);
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings end in NUL and outlive the calls.
    let result = unsafe {
        let none = c"none".as_ptr();
        libc::mount(none, c"/".as_ptr(), none, private, std::ptr::null())
            | libc::mount(none, target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast())
    };
    if result != 0 {
        eprintln!("skipped: cannot mount {kind:?} here");
        return None;
    }
    Some(dir)
}

fn target(dir: &TempDir) -> std::ffi::CString {
    std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap()
}

pub(super) fn unmount(dir: &TempDir) {
    // SAFETY: the string ends in NUL and outlives the call.
    unsafe { libc::umount2(target(dir).as_ptr(), libc::MNT_DETACH) };
}

// Files and memory are registered with the ring as long as a queue uses them, with the lock and the pages
// that they hold
#[test]
fn registration_ends_with_the_last_user() {
    let Ok(mut ring) = OwnRingEngine::new(8) else {
        eprintln!("skipped: no io_uring here");
        return;
    };
    let rig = Rig::closed(EngineKind::IoUring, 16, 0, false);
    let disk = open_soon(&rig.config);
    ring.attach(disk.backing(), &rig.ram);
    ring.attach(disk.backing(), &rig.ram);
    let registered = ring.ring.registry.count();
    assert_eq!(registered.0, 1, "a fixed file");
    ring.detach(disk.backing(), &rig.ram);
    assert_eq!(ring.ring.registry.count(), registered);
    let weak = Arc::downgrade(&rig.ram);
    let users = weak.strong_count();
    ring.detach(disk.backing(), &rig.ram);
    assert_eq!(ring.ring.registry.count(), (0, 0));
    assert!(weak.strong_count() < users || registered.1 == 0);
    drop(disk);
    // The kernel releases a slot's file when no request uses the table's old state any more.
    open_soon(&rig.config);
}

// Memory in several regions: requests use the right fixed buffer
#[test]
fn fixed_buffers_of_several_regions() {
    let mut rig = Rig::closed(EngineKind::IoUring, 16, WRITABLE_FEATURES, false);
    let (low, high) = (BASE + 0x1000_0000, BASE + 0x2000_0000);
    let ranges = [
        (GuestAddress(BASE), RAM),
        (GuestAddress(low), 4 << 20),
        (GuestAddress(high), 4 << 20),
    ];
    rig.memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    rig.ram = GuestRam::new(rig.memory.clone()).unwrap();
    rig.open();
    attach(&mut rig);
    for (addr, byte) in [(low + 4096, 1_u8), (high + (4 << 20) - 4096, 2)] {
        rig.fill(addr, &[byte; 4096]);
        out(&mut rig, 8, addr, 4096);
        assert_eq!(rig.image_at(8, 4096), [byte; 4096]);
        rig.fill(addr, &[0; 4096]);
        read(&mut rig, 8, addr, 4096);
        assert_eq!(rig.bytes(addr, 4096), [byte; 4096]);
    }
}

// `null:` and `zero:` on both engines
#[test]
fn disks_without_storage() {
    for kind in ENGINES {
        for (path, byte) in [("null:1M", 0x5a_u8), ("zero:2048K", 0)] {
            let mut rig = Rig::closed(kind, 16, WRITABLE_FEATURES, false);
            rig.config.path = PathBuf::from(path);
            rig.open();
            attach(&mut rig);
            let capacity = if byte == 0 { 4096 } else { 2048 };
            assert_eq!(rig.queue().disk().capacity(), capacity);
            rig.fill(DATA, &[0x5a; 8192]);
            out(&mut rig, 0, DATA, 8192);
            read(&mut rig, capacity - 16, DATA, 8192);
            assert_eq!(rig.bytes(DATA, 8192), [byte; 8192]);
            rig.fill(DATA, &[0x5a; 512]);
            let beyond = rig.request(0, VIRTIO_BLK_T_IN, capacity, Some(writable(DATA, 512)));
            assert_eq!(beyond.0, 1);
            assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
            assert_eq!(range(&mut rig, VIRTIO_BLK_T_DISCARD, 0, 8, 0), OK);
        }
    }
    for bad in ["null:", "zero:12MB", "null:-1", "zero:0x10", "null:99999999999T"] {
        let config = DiskConfig {
            path: bad.into(),
            ..DiskConfig::default()
        };
        let error = Disk::open(&config).unwrap_err().to_string();
        assert!(
            error.contains(bad) && error.contains("expected a number"),
            "{error}"
        );
    }
    let config = DiskConfig {
        path: "null:513".into(),
        ..DiskConfig::default()
    };
    assert!(
        Disk::open(&config)
            .unwrap_err()
            .to_string()
            .contains("multiple of 512")
    );
}

// Many operations at once, of all kinds, some for the ring and some for its helpers: each completes once
#[test]
fn helpers_and_ring_together() {
    let dir = disk_dir();
    for (kind, cache) in ways() {
        let mut rig = rig_on(&dir, kind, cache, 4096);
        let mut statuses = Vec::new();
        for number in 0..16_u16 {
            let addr = DATA + 0x1_0000 + u64::from(number) * 0x1_0000 + u64::from(number % 2);
            rig.fill(addr, &[number as u8 + 1; 4096]);
            let sector = u64::from(number) * 16;
            statuses.push(rig.offer_request(
                number * 3,
                VIRTIO_BLK_T_OUT,
                sector,
                Some(readable(addr, 4096)),
            ));
        }
        rig.run();
        assert_eq!(rig.take_used().len(), 16);
        assert!(statuses.iter().all(|&status| rig.byte(status) == OK));
        for number in 0..16_u8 {
            assert_eq!(rig.image_at(u64::from(number) * 16, 4096), [number + 1; 4096]);
        }
        let mut nothing: Vec<Completion> = Vec::new();
        rig.engine.get().reap(&mut nothing);
        assert!(nothing.is_empty());
    }
}
