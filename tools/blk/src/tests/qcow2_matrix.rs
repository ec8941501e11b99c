//! What `qemu-img` makes is served, and survives writers, a full file system, kills and power cuts; or it is
//! refused, unchanged, with a message that says what to do.
//!
//! `RINGBLK_POWER_CUTS` is how many points of each run are replayed (3 by default), `RINGBLK_SEED` chooses
//! others.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::qcow2_power::{Random, Run, config, count, damage, qemu_img};
use crate::disk::{Disk, DiskConfig};
use crate::image::BlockingIo;

const MIB: usize = 1 << 20;
/// Parts of the disk that do not begin at a cluster, so that writers share clusters.
const WINDOWS: [(u64, usize); 3] = [(0, 2560 << 10), (2560 << 10, 2561 << 10), (5121 << 10, 1 << 20)];

/// A directory with images.
struct Shelf(TempDir);

impl Shelf {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// Makes a raw file of 8 MiB of which some parts are zero.
    fn raw(&self, name: &str) {
        let byte = |at: usize| {
            if at / (96 << 10) % 3 == 1 {
                0
            } else {
                (at / 512 % 250 + 1) as u8
            }
        };
        let bytes: Vec<u8> = (0..8 * MIB).map(byte).collect();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Makes an image with contents.
    fn convert(&self, name: &str, options: &str, more: &[&str]) -> DiskConfig {
        self.raw("source.img");
        let (source, target) = (self.name("source.img"), self.name(name));
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        arguments.extend(more);
        arguments.extend([&*source, &*target]);
        qemu_img(&arguments);
        config(self.path(name))
    }

    /// Makes an image of 4 KiB clusters that are compressed to about half of that, so that clusters of the
    /// file are free once a few are written.
    fn halved(&self, name: &str) -> DiskConfig {
        let mut random = Random(3);
        let bytes: Vec<u8> = (0..MIB).map(|_| random.below(16) as u8 + 1).collect();
        std::fs::write(self.path("source.img"), bytes).unwrap();
        let (source, target) = (self.name("source.img"), self.name(name));
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "-c",
            &source,
            &target,
        ]);
        config(self.path(name))
    }

    /// Makes an empty image.
    fn create(&self, name: &str, options: &str, size: &str) -> DiskConfig {
        let target = self.name(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &target, size]);
        config(self.path(name))
    }

    /// Makes an image over another.
    fn over(&self, name: &str, options: &str, backing: &str, format: &str, size: &str) -> DiskConfig {
        let target = self.name(name);
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-o", options, "-b", backing, "-F", format, &target, size,
        ]);
        config(self.path(name))
    }
}

/// Runs writers on an image; then looks at it, and at the record with cuts.
fn survives(name: &str, config: &DiskConfig, windows: &[(u64, usize)], room: Option<u64>) {
    let seed = count("RINGBLK_SEED", 1);
    let cuts = count("RINGBLK_POWER_CUTS", 3);
    let run = Run::new(config, windows, 40, seed, room);
    run.check_end();
    let mut random = Random(seed + 77);
    for number in 0..cuts {
        let found = run.replay(&mut random, number % 4 != 3, true);
        assert_eq!(found, None, "{name}, seed {seed}, cut {number}");
    }
}

#[test]
fn every_version_and_cluster_size() {
    for version in ["0.10", "1.1"] {
        for cluster in ["512", "4k", "64k", "2M"] {
            let shelf = Shelf::new();
            let options = format!("compat={version},cluster_size={cluster}");
            let config = shelf.convert("disk.qcow2", &options, &[]);
            survives(&options, &config, &WINDOWS, None);
            let config = shelf.create("empty.qcow2", &options, "8M");
            survives(&format!("empty, {options}"), &config, &WINDOWS, None);
        }
    }
}

/// Calls `act` with the offset of cluster 60 of a disk whose cluster 64 is allocated, and checks the image
/// after cuts at any point. The clusters before and after are in different sectors of their L2 table.
fn frees_and_allocates(prepare: &str, config: &DiskConfig, act: impl Fn(&Disk, u64)) {
    const CLUSTER: u64 = 4096;
    let write = |disk: &Disk, cluster: u64| {
        let bytes = [cluster as u8; CLUSTER as usize];
        disk.run_blocking(BlockingIo::Write(&bytes, false), cluster * CLUSTER)
            .unwrap();
    };
    let disk = super::rig::open_soon(config);
    write(&disk, 64);
    if prepare == "zeroed" {
        // In reverse, so that none lies behind the one before; the first has room behind it.
        (60..64).rev().for_each(|cluster| write(&disk, cluster));
        let zero = BlockingIo::Zero {
            len: 4 * CLUSTER,
            unmap: false,
        };
        disk.run_blocking(zero, 60 * CLUSTER).unwrap();
    }
    drop(disk);
    let run = Run::of(config, |disk| act(disk, 60 * CLUSTER));
    run.check_end();
    let mut random = Random(count("RINGBLK_SEED", 1) + 5);
    for number in 0..60 {
        assert_eq!(
            run.replay(&mut random, true, true),
            None,
            "{prepare}, cut {number}"
        );
    }
}

// What an operation frees, it does not allocate: a power cut would leave both references.
#[test]
fn freed_clusters_are_not_allocated_in_the_same_operation() {
    let shelf = Shelf::new();
    let write = |disk: &Disk, offset: u64| {
        let bytes = vec![7; 10 << 12];
        disk.run_blocking(BlockingIo::Write(&bytes, false), offset)
            .unwrap();
    };
    let config = shelf.create("zeroed.qcow2", "cluster_size=4k", "8M");
    frees_and_allocates("zeroed", &config, write);
    let config = shelf.halved("compressed.qcow2");
    frees_and_allocates("compressed", &config, write);
    // From the middle of a cluster to the middle of another.
    for unmap in [false, true] {
        let config = shelf.halved("compressed.qcow2");
        frees_and_allocates("compressed, zeroes", &config, |disk, offset| {
            let len = 9 << 12;
            disk.run_blocking(BlockingIo::Zero { len, unmap }, offset + 512)
                .unwrap();
        });
    }
    let config = shelf.halved("compressed.qcow2");
    frees_and_allocates("compressed, discarded", &config, |disk, offset| {
        disk.run_blocking(BlockingIo::Discard { len: 9 << 12 }, offset + 512)
            .unwrap();
    });
}

#[test]
fn every_width_of_refcounts_and_lazy_ones() {
    for bits in ["1", "2", "4", "8", "32", "64"] {
        let shelf = Shelf::new();
        let options = format!("refcount_bits={bits},cluster_size=4k");
        let config = shelf.convert("disk.qcow2", &options, &[]);
        survives(&options, &config, &WINDOWS, None);
    }
    let shelf = Shelf::new();
    let config = shelf.convert("disk.qcow2", "lazy_refcounts=on", &[]);
    survives("lazy", &config, &WINDOWS, None);
}

// Narrow tables of small clusters: the refcount table grows.
#[test]
fn a_refcount_table_that_grows() {
    let shelf = Shelf::new();
    let options = "cluster_size=512,refcount_bits=64";
    let config = shelf.create("disk.qcow2", options, "8M");
    survives(options, &config, &WINDOWS, None);
}

#[test]
fn every_preallocation() {
    for mode in ["metadata", "falloc", "full"] {
        let shelf = Shelf::new();
        let options = format!("preallocation={mode}");
        let config = shelf.create("disk.qcow2", &options, "8M");
        survives(&options, &config, &WINDOWS, None);
    }
}

#[test]
fn compressed_clusters() {
    for (version, cluster) in [("0.10", "64k"), ("1.1", "64k"), ("1.1", "4k"), ("1.1", "2M")] {
        let shelf = Shelf::new();
        let options = format!("compat={version},cluster_size={cluster}");
        let config = shelf.convert("disk.qcow2", &options, &["-c"]);
        survives(&format!("compressed, {options}"), &config, &WINDOWS, None);
    }
}

#[test]
fn internal_snapshots() {
    for (version, compress) in [("0.10", false), ("1.1", false), ("1.1", true)] {
        let shelf = Shelf::new();
        let options = format!("compat={version},cluster_size=16k");
        let config = shelf.convert("disk.qcow2", &options, if compress { &["-c"] } else { &[] });
        let path = shelf.name("disk.qcow2");
        qemu_img(&["snapshot", "-c", "first", &path]);
        survives(&format!("snapshot, {options}"), &config, &WINDOWS, None);
        // The snapshot is what it was.
        qemu_img(&["snapshot", "-a", "first", &path]);
        assert_eq!(damage(Path::new(&path)), None);
        qemu_img(&[
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            &shelf.name("source.img"),
            &path,
        ]);
    }
}

#[test]
fn backing_files() {
    for (version, cluster) in [("0.10", "64k"), ("1.1", "64k"), ("1.1", "4k"), ("1.1", "2M")] {
        let shelf = Shelf::new();
        let options = format!("compat={version},cluster_size={cluster}");
        shelf.raw("base.img");
        let config = shelf.over("disk.qcow2", &options, "base.img", "raw", "8M");
        survives(&format!("over raw, {options}"), &config, &WINDOWS, None);
        shelf.convert("base.qcow2", "cluster_size=16k", &["-c"]);
        // Smaller, and larger, than what is below.
        let config = shelf.over("over.qcow2", &options, &shelf.name("base.qcow2"), "qcow2", "7M");
        survives(&format!("over compressed, {options}"), &config, &WINDOWS, None);
        let config = shelf.over("top.qcow2", &options, "over.qcow2", "qcow2", "9M");
        survives(
            &format!("a chain, {options}"),
            &config,
            &[WINDOWS[0], (6 << 20, 3 << 20)],
            None,
        );
    }
}

#[test]
fn large_disks() {
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,cluster_size=4k",
    ] {
        let shelf = Shelf::new();
        let config = shelf.create("disk.qcow2", options, "1T");
        let windows = [(0, MIB), ((512 << 30) - 512, MIB), ((1 << 40) - MIB as u64, MIB)];
        survives(&format!("1 TiB, {options}"), &config, &windows, None);
    }
}

#[test]
fn a_full_file_system() {
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=4k",
        "compat=1.1,cluster_size=512",
    ] {
        for room in [0, 512, 70_000, 600_000] {
            let shelf = Shelf::new();
            let config = shelf.create("disk.qcow2", options, "8M");
            survives(
                &format!("room for {room}, {options}"),
                &config,
                &WINDOWS,
                Some(room),
            );
        }
    }
}

// The control: were the syncs between data, refcounts and tables missing, replays would show it.
#[test]
fn without_barriers_power_cuts_do_harm() {
    let shelf = Shelf::new();
    shelf.raw("base.img");
    let config = shelf.over("disk.qcow2", "cluster_size=4k", "base.img", "raw", "8M");
    let run = Run::new(&config, &WINDOWS, 40, 1, None);
    let mut random = Random(1);
    let harm = (0..200).find_map(|_| run.replay(&mut random, true, false));
    assert!(harm.is_some(), "200 replays without syncs found nothing");
}

/// Returns the message with which an image is refused, unchanged, for writing.
fn refusal(config: &DiskConfig) -> String {
    let before = std::fs::read(&config.path).unwrap();
    let error = Disk::open(config).expect_err("it must be refused").to_string();
    assert!(
        std::fs::read(&config.path).unwrap() == before,
        "changed, and refused: {error}"
    );
    error
}

#[test]
fn what_cannot_be_served_is_refused_unchanged() {
    let shelf = Shelf::new();
    for format in ["luks,encrypt.iter-time=10", "aes"] {
        let secret = "secret,id=key,data=key";
        let options = format!("encrypt.format={format},encrypt.key-secret=key");
        let path = shelf.name("secret.qcow2");
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "--object", secret, "-o", &options, &path, "1M",
        ]);
        let error = refusal(&config(shelf.path("secret.qcow2")));
        assert!(error.contains("is encrypted"), "{error}");
        assert!(error.contains("qemu-img convert"), "{error}");
    }
    let data = format!("data_file={}", shelf.name("data.raw"));
    for (options, expected) in [
        (&*data, "external file"),
        ("compression_type=zstd", "zstd"),
        ("extended_l2=on", "extended L2 entries"),
    ] {
        let error = refusal(&shelf.create("new.qcow2", options, "1M"));
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("qemu-img convert"), "{error}");
        std::fs::remove_file(shelf.path("new.qcow2")).unwrap();
    }
    // Bitmaps stay valid.
    let marked = shelf.create("marked.qcow2", "compat=1.1", "1M");
    qemu_img(&["bitmap", "--add", &shelf.name("marked.qcow2"), "changes"]);
    let error = refusal(&marked);
    assert!(error.contains("qemu-img bitmap --remove"), "{error}");
    let reader = DiskConfig {
        readonly: true,
        ..marked.clone()
    };
    let before = std::fs::read(&marked.path).unwrap();
    drop(Disk::open(&reader).unwrap());
    assert!(std::fs::read(&marked.path).unwrap() == before);
    qemu_img(&["bitmap", "--remove", &shelf.name("marked.qcow2"), "changes"]);
    survives("bitmaps removed", &marked, &[(0, MIB)], None);
}

// Bits of the header: dirty, corrupt, unknown ones, and all lengths and offsets that lead nowhere.
#[test]
fn damaged_headers_are_refused_unchanged() {
    let shelf = Shelf::new();
    let config = shelf.create("disk.qcow2", "compat=1.1", "1M");
    let whole = std::fs::read(&config.path).unwrap();
    let damaged = |at: usize, bytes: &[u8]| {
        let mut image = whole.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&config.path, image).unwrap();
        refusal(&config)
    };
    for (at, bytes, expected) in [
        (0, &b"QFI "[..], "no qcow2 header"),
        (7, &[4], "version 4"),
        (23, &[8], "clusters of 2^8"),
        (23, &[22], "clusters of 2^22"),
        (35, &[3], "is encrypted"),
        (79, &[1], "qemu-img check -r all"),
        (79, &[2], "marked corrupt"),
        (79, &[0x20], "incompatible features 0x20"),
        (95, &[2], "autoclear features 0x2"),
        (99, &[7], "refcounts of 2^7"),
        (103, &[96], "a header of 96 bytes"),
        (8, &[1], "name of its backing file"),
        (42, &[0xff], "expected inside of the file"),
        (36, &[0xff], "a table of"),
        (56, &[0xff], "a table of"),
    ] {
        // A backing file's name has a length.
        let bytes: Vec<u8> = if at == 8 {
            [vec![1; 8], vec![0, 0, 0, 9]].concat()
        } else {
            bytes.into()
        };
        let error = damaged(at, &bytes);
        assert!(error.contains(expected), "{at}: {error}");
    }
}

// A version 2 image with the format of its backing file named opens; without, it is refused whatever its
// version.
#[test]
fn the_format_of_a_backing_file_is_named() {
    for version in ["0.10", "1.1"] {
        let shelf = Shelf::new();
        shelf.raw("base.img");
        let config = shelf.over(
            "disk.qcow2",
            &format!("compat={version}"),
            "base.img",
            "raw",
            "8M",
        );
        let mut image = std::fs::read(&config.path).unwrap();
        let extension = 0xe279_2aca_u32.to_be_bytes();
        let at = image.windows(4).position(|bytes| bytes == extension).unwrap();
        image[at] = 0;
        std::fs::write(&config.path, image).unwrap();
        let error = refusal(&config);
        assert!(
            error.contains("base.img is missing, expected qcow2 or raw"),
            "{error}"
        );
        assert!(error.contains("qemu-img rebase -u -b base.img -F"), "{error}");
    }
}

// Images of both versions grow, also those whose backing file is longer than the disk was.
#[test]
fn images_grow() {
    for version in ["0.10", "1.1"] {
        let shelf = Shelf::new();
        let options = format!("compat={version},cluster_size=4k");
        shelf.raw("base.img");
        let config = shelf.over("disk.qcow2", &options, "base.img", "raw", "1000k");
        let disk = Disk::open(&config).unwrap();
        disk.set_size(1 << 30).unwrap();
        let mut bytes = vec![1; 8 << 20];
        let read = crate::image::BlockingIo::Read(&mut bytes);
        disk.run_blocking(read, 0).unwrap();
        let base = std::fs::read(shelf.path("base.img")).unwrap();
        assert!(bytes[..1000 << 10] == base[..1000 << 10]);
        assert!(
            bytes[1000 << 10..].iter().all(|byte| *byte == 0),
            "{version}: the backing file shows"
        );
        drop(disk);
        assert_eq!(damage(&config.path), None);
        survives(
            &format!("grown, {options}"),
            &config,
            &[(0, 8 * MIB), ((1 << 30) - MIB as u64, MIB)],
            None,
        );
    }
    // It does not keep the sizes of snapshots.
    let shelf = Shelf::new();
    let config = shelf.create("disk.qcow2", "compat=0.10", "1M");
    qemu_img(&["snapshot", "-c", "first", &shelf.name("disk.qcow2")]);
    let before = std::fs::read(&config.path).unwrap();
    let disk = Disk::open(&config).unwrap();
    disk.set_size(2 << 20).unwrap_err();
    assert!(std::fs::read(&config.path).unwrap() == before);
}

// A discard of 1 TiB of a sparse disk changes nothing; of one with data it frees these. Reads pass meanwhile.
#[test]
fn a_large_discard() {
    let shelf = Shelf::new();
    let config = shelf.create("disk.qcow2", "compat=1.1", "1T");
    let disk = Disk::open(&config).unwrap();
    let discard = || {
        let len = 1 << 40;
        disk.run_blocking(crate::image::BlockingIo::Discard { len }, 0)
            .unwrap();
    };
    let size = || std::fs::metadata(&config.path).unwrap().len();
    let empty = size();
    let start = std::time::Instant::now();
    discard();
    assert_eq!(size(), empty);
    for number in 0..64 {
        let write = crate::image::BlockingIo::Write(&[1; MIB], false);
        disk.run_blocking(write, number << 33).unwrap();
    }
    let full = size();
    discard();
    assert_eq!(size(), full);
    for number in 0..64 {
        let write = crate::image::BlockingIo::Write(&[2; MIB], false);
        disk.run_blocking(write, (number << 33) + (1 << 20)).unwrap();
    }
    assert_eq!(size(), full, "the freed clusters are used again");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    drop(disk);
    assert_eq!(damage(&config.path), None);
}
