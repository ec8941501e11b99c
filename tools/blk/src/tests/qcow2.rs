//! qcow2 images on both engines: against a model and, where it is installed, against `qemu-img`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::qcow2_power::await_unlocked;
use super::rig::{
    ALL_FEATURES, BUFFERS, ENGINES, Rig, SECTORS, TestEngine, WRITABLE_FEATURES, open_soon, pattern,
    readable, writable,
};
use crate::disk::{Disk, DiskConfig, EngineKind, Format};
use crate::virtio::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const DATA: u64 = BUFFERS + 0x1_0000;
const OK: u8 = 0;
const MIB: usize = 1 << 20;

/// Writes an empty image of version 3 with clusters of 64 KiB, as the specification says, by hand.
pub fn create(path: &Path, size: u64, backing: Option<(&str, &str)>) {
    const CLUSTER: usize = 1 << 16;
    let mut file = vec![0_u8; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    // One entry of L1 for 512 MiB.
    put(36, &(size.div_ceil(512 << 20) as u32).to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    if let Some((name, format)) = backing {
        if !format.is_empty() {
            put(104, &0xe279_2aca_u32.to_be_bytes());
            put(108, &(format.len() as u32).to_be_bytes());
            put(112, format.as_bytes());
        }
        put(8, &512_u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(512, name.as_bytes());
    }
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    std::fs::write(path, file).unwrap();
}

/// Makes a closed rig whose disk is a new image over this backing file.
fn rig_over(kind: EngineKind, size: usize, backing: Option<(&str, &str)>) -> Rig {
    let mut rig = Rig::closed(kind, 64, WRITABLE_FEATURES, false);
    rig.config = DiskConfig {
        path: rig.dir.path().join("disk.qcow2"),
        format: Format::Qcow2,
        ..rig.config.clone()
    };
    create(&rig.config.path, size as u64, backing);
    rig
}

fn refusal(config: &DiskConfig) -> String {
    Disk::open(config).expect_err("it must be refused").to_string()
}

/// Returns the contents as `qemu-img` reads them from a consistent image; `None` where it is not installed.
pub fn qemu_reads(path: &Path, raw: &Path) -> Option<Vec<u8>> {
    await_unlocked(path);
    let check = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(path)
        .status();
    let Ok(check) = check else {
        eprintln!("no qemu-img here");
        return None;
    };
    // 3: leaked clusters, which are allowed after a kill.
    assert!(matches!(check.code(), Some(0 | 3)), "qemu-img check: {check}");
    let convert = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([path, raw])
        .status()
        .unwrap();
    assert!(convert.success());
    Some(std::fs::read(raw).unwrap())
}

fn transfer(rig: &mut Rig, kind: u32, sector: u64, len: usize) {
    let buf = match kind {
        VIRTIO_BLK_T_OUT => readable(DATA, len as u32),
        _ => writable(DATA, len as u32),
    };
    let used = if kind == VIRTIO_BLK_T_OUT {
        1
    } else {
        len as u32 + 1
    };
    assert_eq!(rig.request(0, kind, sector, Some(buf)), (OK, used));
}

fn range(rig: &mut Rig, kind: u32, sector: u64, sectors: u32, flags: u32) {
    let mut segment = sector.to_le_bytes().to_vec();
    segment.extend(sectors.to_le_bytes());
    segment.extend(flags.to_le_bytes());
    rig.fill(DATA, &segment);
    let done = rig.request(0, kind, 0, Some(readable(DATA, 16)));
    assert_eq!(done, (OK, 1), "{sectors} sectors at {sector}");
}

fn expect(rig: &mut Rig, expected: &[u8]) {
    for (number, chunk) in expected.chunks(MIB).enumerate() {
        rig.fill(DATA, &vec![0xee; chunk.len()]);
        transfer(rig, VIRTIO_BLK_T_IN, (number * MIB / 512) as u64, chunk.len());
        assert!(rig.bytes(DATA, chunk.len()) == chunk, "MiB {number}");
    }
}

// Writes, zeroes, discards and flushes at random over a raw file and an image on it; reopened; read by
// qemu-img (torture j1).
#[test]
fn against_a_model() {
    for kind in ENGINES {
        let mut rig = rig_over(kind, 4 * MIB, Some(("mid.qcow2", "qcow2")));
        let dir = rig.dir.path().to_owned();
        create(&dir.join("mid.qcow2"), 4 * MIB as u64, Some(("base.img", "raw")));
        let base: Vec<u8> = (0..3 * MIB as u64).map(pattern).collect();
        std::fs::write(dir.join("base.img"), &base).unwrap();
        let mid = std::fs::read(dir.join("mid.qcow2")).unwrap();
        let mut model = base.clone();
        model.resize(4 * MIB, 0);
        rig.open();
        assert_eq!(rig.queue().disk().capacity(), 8192);
        expect(&mut rig, &model);
        let mut seed = 11_u32;
        for round in 0..60_u32 {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            let sector = u64::from(seed >> 19) % 7000;
            let sectors = [1, 8, 128, 700][(seed >> 8) as usize % 4];
            let place = sector as usize * 512..(sector as usize + sectors) * 512;
            match (seed >> 4) % 8 {
                0 => {
                    range(
                        &mut rig,
                        VIRTIO_BLK_T_WRITE_ZEROES,
                        sector,
                        sectors as u32,
                        round % 2,
                    );
                    model[place].fill(0);
                }
                1 => assert_eq!(rig.request(0, VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1)),
                _ => {
                    let bytes: Vec<u8> = (0..sectors * 512)
                        .map(|at| (at as u32 * 7 + round) as u8)
                        .collect();
                    rig.fill(DATA, &bytes);
                    transfer(&mut rig, VIRTIO_BLK_T_OUT, sector, bytes.len());
                    model[place].copy_from_slice(&bytes);
                }
            }
            if round % 20 == 19 {
                rig.reopen();
            }
        }
        expect(&mut rig, &model);
        // Zero, or unchanged.
        range(&mut rig, VIRTIO_BLK_T_DISCARD, 1024, 1024, 0);
        transfer(&mut rig, VIRTIO_BLK_T_IN, 1024, 512 << 10);
        let bytes = rig.bytes(DATA, 512 << 10);
        model[512 << 10..1 << 20].copy_from_slice(&bytes);
        rig.kill();
        if let Some(read) = qemu_reads(&rig.config.path, &dir.join("converted")) {
            assert!(read == model, "{kind:?}: qemu-img reads something else");
        }
        // The backing file is unchanged.
        assert!(std::fs::read(dir.join("base.img")).unwrap() == base);
        assert!(std::fs::read(dir.join("mid.qcow2")).unwrap() == mid);
    }
}

// Many concurrent writes that allocate
#[test]
fn writes_at_once() {
    for kind in ENGINES {
        let mut rig = rig_over(kind, 4 * MIB, None);
        rig.open();
        let mut model = vec![0; 4 * MIB];
        for round in 0..3 {
            for number in 0..20_u16 {
                let addr = DATA + u64::from(number) * 0x1_0000;
                let byte = (number + round * 20 + 1) as u8;
                rig.fill(addr, &[byte; 8192]);
                let at = usize::from(number) * 200 * 1024 / 512 + usize::from(round) * 32;
                model[at * 512..][..8192].fill(byte);
                rig.offer_request(
                    number * 3,
                    VIRTIO_BLK_T_OUT,
                    at as u64,
                    Some(readable(addr, 8192)),
                );
            }
            rig.run();
            assert_eq!(rig.take_used().len(), 20);
        }
        assert_eq!(rig.queue().stats().errors.get(), 0);
        expect(&mut rig, &model);
    }
}

// Every file of a chain is locked; readers share the backing files.
#[test]
fn every_file_of_a_chain_is_locked() {
    let rig = rig_over(EngineKind::Threads, MIB, Some(("disk.img", "raw")));
    let base = DiskConfig {
        path: rig.dir.path().join("disk.img"),
        ..DiskConfig::default()
    };
    let disk = open_soon(&rig.config);
    assert!(refusal(&rig.config).contains("in use"));
    assert!(refusal(&base).contains("in use"));
    let second = DiskConfig {
        path: rig.dir.path().join("second.qcow2"),
        ..rig.config.clone()
    };
    create(&second.path, MIB as u64, Some(("disk.img", "raw")));
    let beside = Disk::open(&second).unwrap();
    drop(disk);
    assert!(refusal(&base).contains("in use"));
    drop(beside);
    let writer = open_soon(&base);
    let error = refusal(&rig.config);
    assert!(error.contains("disk.img: in use"), "{error}");
    drop(writer);
    open_soon(&rig.config);
}

// The format is configured or named by a header, never probed; chains are limited.
#[test]
fn what_is_refused() {
    let rig = rig_over(EngineKind::Threads, MIB, None);
    let path = |name: &str| rig.dir.path().join(name);
    let config = |name: &str| DiskConfig {
        path: path(name),
        format: Format::Qcow2,
        ..DiskConfig::default()
    };
    let error = refusal(&config("disk.img"));
    assert!(error.contains("disk.img: cannot be used as qcow2"), "{error}");
    create(&path("unsaid.qcow2"), MIB as u64, Some(("disk.img", "")));
    let error = refusal(&config("unsaid.qcow2"));
    assert!(error.contains("is missing, expected qcow2 or raw"), "{error}");
    create(&path("odd.qcow2"), MIB as u64, Some(("disk.img", "vmdk")));
    assert!(refusal(&config("odd.qcow2")).contains("is vmdk, expected"));
    create(&path("nothing.qcow2"), MIB as u64, Some(("gone.img", "raw")));
    let error = refusal(&config("nothing.qcow2"));
    assert!(error.contains("gone.img: cannot open it"), "{error}");
    create(&path("loop.qcow2"), MIB as u64, Some(("loop.qcow2", "qcow2")));
    assert!(refusal(&config("loop.qcow2")).contains("in use"));
    let reader = DiskConfig {
        readonly: true,
        ..config("loop.qcow2")
    };
    assert!(refusal(&reader).contains("more than 64 backing files"));
    let odd = |at: usize, byte: u8| {
        create(&path("bad.qcow2"), MIB as u64, None);
        let mut bytes = std::fs::read(path("bad.qcow2")).unwrap();
        bytes[at] = byte;
        std::fs::write(path("bad.qcow2"), bytes).unwrap();
        refusal(&config("bad.qcow2"))
    };
    assert!(odd(79, 4).contains("external file"), "an external data file");
    assert!(odd(78, 1).contains("cannot be used"), "an unknown feature");
    assert!(odd(31, 1).contains("multiple of 512"), "half a sector");
}

// Damaged tables are refused, or are errors of requests; they never end the daemon.
#[test]
fn damaged_tables() {
    for kind in ENGINES {
        let mut rig = rig_over(kind, MIB, None);
        let whole = std::fs::read(&rig.config.path).unwrap();
        let nowhere = 0x8000_0000_1234_5600_u64.to_be_bytes();
        let mut bytes = whole.clone();
        bytes[3 << 16..][..8].copy_from_slice(&nowhere);
        std::fs::write(&rig.config.path, bytes).unwrap();
        assert!(refusal(&rig.config).contains("cannot be used as qcow2: Invalid L1 entry"));
        std::fs::write(&rig.config.path, whole).unwrap();
        rig.open();
        transfer(&mut rig, VIRTIO_BLK_T_OUT, 0, 512);
        rig.kill();
        // The first entry of L2: where L1 says.
        let mut bytes = std::fs::read(&rig.config.path).unwrap();
        let l2 = u64::from_be_bytes(bytes[3 << 16..][..8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
        bytes[l2 as usize..][..8].copy_from_slice(&nowhere);
        std::fs::write(&rig.config.path, bytes).unwrap();
        rig.engine = TestEngine::new(kind);
        rig.open();
        let done = rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
        assert_eq!(done.0, 1);
        let done = rig.request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
        assert_eq!(done.0, 1);
    }
}

#[test]
fn readonly_images() {
    let mut rig = rig_over(EngineKind::IoUring, MIB, Some(("disk.img", "raw")));
    rig.config.readonly = true;
    rig.features = ALL_FEATURES;
    let before = std::fs::read(&rig.config.path).unwrap();
    rig.open();
    let image: Vec<u8> = (0..SECTORS * 512).map(pattern).collect();
    transfer(&mut rig, VIRTIO_BLK_T_IN, 0, image.len());
    assert!(rig.bytes(DATA, image.len()) == image);
    let done = rig.request(0, VIRTIO_BLK_T_OUT, 0, Some(readable(DATA, 512)));
    assert_eq!(done.0, 1);
    rig.kill();
    let path: PathBuf = rig.config.path.clone();
    assert!(std::fs::read(path).unwrap() == before);
}

// `ringctl disk resize`: an image grows, also beyond its backing file; it does not shrink.
#[test]
fn a_disk_that_grows() {
    let mut rig = rig_over(EngineKind::Threads, MIB, Some(("disk.img", "raw")));
    std::fs::write(rig.dir.path().join("disk.img"), vec![7; 4 * MIB]).unwrap();
    rig.open();
    let disk = rig.queue().disk().clone();
    disk.set_size(2 * MIB as u64).unwrap();
    assert_eq!(disk.capacity(), 4096);
    transfer(&mut rig, VIRTIO_BLK_T_OUT, 4088, 4096);
    let written = rig.bytes(DATA, 4096);
    drop(disk);
    rig.reopen();
    let mut expected = vec![7; MIB];
    expected.resize(2 * MIB - 4096, 0);
    expected.extend(written);
    expect(&mut rig, &expected);
    let error = rig.queue().disk().set_size(MIB as u64).unwrap_err().to_string();
    assert!(error.contains("cannot change its size"), "{error}");
}
