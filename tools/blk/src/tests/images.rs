//! Opening images: refusals and their messages, and locks.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::rig::{ALL_FEATURES, BUFFERS, ENGINES, Rig, SECTORS, open_soon, readable, writable};
use crate::disk::{Disk, DiskConfig, EngineKind, HostCache, OpenContext, OpenOptions};
use crate::image::BlockingIo;
use crate::virtio::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

fn config(rig: &Rig, name: &str) -> DiskConfig {
    DiskConfig {
        path: rig.dir.path().join(name),
        ..DiskConfig::default()
    }
}

fn refusal(config: &DiskConfig) -> String {
    let error = Disk::open(config).expect_err("it must be refused").to_string();
    assert!(
        error.contains(config.path.to_str().unwrap()),
        "{error} does not name the file"
    );
    error
}

#[test]
fn messages_name_file_value_and_expectation() {
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    let dir = rig.dir.path();
    std::fs::write(dir.join("empty"), []).unwrap();
    std::fs::write(dir.join("good"), [0; 512]).unwrap();
    std::fs::create_dir(dir.join("dir")).unwrap();
    // SAFETY: the string ends in NUL and outlives the call.
    unsafe {
        libc::mkfifo(
            std::ffi::CString::new(dir.join("fifo").to_str().unwrap())
                .unwrap()
                .as_ptr(),
            0o600,
        )
    };
    assert!(refusal(&config(&rig, "missing")).contains("No such file"));
    assert!(refusal(&config(&rig, "empty")).contains("size 0 bytes"));
    assert!(
        refusal(&config(&rig, "dir")).contains("is a directory, expected a raw image file or a block device")
    );
    assert!(refusal(&config(&rig, "fifo")).contains("is a pipe, expected"));
    assert!(
        refusal(&DiskConfig {
            path: "/dev/null".into(),
            ..DiskConfig::default()
        })
        .contains("character device")
    );
    let long = DiskConfig {
        serial: "123456789012345678901".into(),
        ..config(&rig, "good")
    };
    assert!(refusal(&long).contains("has 21 bytes, expected up to 20"));
    assert!(Disk::open(&config(&rig, "good")).is_ok());
}

#[test]
fn a_file_without_permission() {
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    let config = config(&rig, "disk.img");
    std::fs::set_permissions(&config.path, std::fs::Permissions::from_mode(0o444)).unwrap();
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } == 0 {
        // Root may write in any case.
        assert!(Disk::open(&config).is_ok());
    } else {
        assert!(refusal(&config).contains("Permission denied"));
    }
    assert!(
        Disk::open(&DiskConfig {
            readonly: true,
            ..config
        })
        .is_ok()
    );
}

// Two writers, or a writer and a reader, cannot have one image; readers can.
#[test]
fn locks() {
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    let writer = config(&rig, "disk.img");
    let reader = DiskConfig {
        readonly: true,
        ..writer.clone()
    };
    let open = open_soon(&writer);
    assert!(
        refusal(&writer)
            .contains("in use by another zone or program, expected no other user beside a writer")
    );
    assert!(
        refusal(&reader).contains("in use by another zone or program, expected no writer beside a reader")
    );
    drop(open);
    let readers = [open_soon(&reader), Disk::open(&reader).unwrap()];
    assert!(refusal(&writer).contains("in use"));
    drop(readers);
    open_soon(&writer);
}

// torture c7: a take-over waits for the old owner, also of a read-only image that others read
#[test]
fn a_takeover_waits_for_the_same_owner() {
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    for readonly in [false, true] {
        let config = DiskConfig {
            readonly,
            ..config(&rig, "disk.img")
        };
        let options = OpenOptions {
            known: None,
            format_unstated: false,
            owner: Some(0x1234_5678_9abc_def0),
            wait: Duration::ZERO,
        };
        let old = Disk::open_with(&config, &OpenContext::default(), &options).unwrap();
        assert!(Disk::open_with(&config, &OpenContext::default(), &options).is_err());
        if readonly {
            let other = OpenOptions {
                known: None,
                format_unstated: false,
                owner: Some(1),
                ..options
            };
            assert!(Disk::open_with(&config, &OpenContext::default(), &other).is_ok());
        }
        let start = Instant::now();
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(old);
        });
        let patient = OpenOptions {
            wait: Duration::from_secs(60),
            ..options
        };
        assert!(Disk::open_with(&config, &OpenContext::default(), &patient).is_ok());
        assert!(start.elapsed() >= Duration::from_millis(50));
        closer.join().unwrap();
    }
}

#[test]
fn a_zone_file_s_disk() {
    let text = r#"{"path": "a.img", "readonly": true, "serial": "s", "engine": "threads"}"#;
    // Any self-describing format will do; the daemon's is TOML.
    let disk: DiskConfig = serde_json::from_str(text).unwrap();
    assert_eq!((disk.readonly, disk.engine), (true, EngineKind::Threads));
    let short: DiskConfig = serde_json::from_str(r#"{"path": "a.img"}"#).unwrap();
    assert_eq!(
        (short.readonly, short.engine, short.serial.as_str()),
        (false, EngineKind::IoUring, "")
    );
    for bad in [
        r#"{"path": "a", "engine": "aio"}"#,
        r#"{"path": "a", "ro": true}"#,
        r#"{"serial": "a"}"#,
    ] {
        assert!(serde_json::from_str::<DiskConfig>(bad).is_err());
    }
}

// torture c7: requests that the kernel still runs for a dead daemon hold its lock. A pipe replaces the image,
// because a read from it can be made to wait.
#[test]
fn requests_in_flight_hold_the_lock() {
    use std::io::Write;
    let rig = Rig::closed(EngineKind::Threads, 16, 0, false);
    let path = rig.dir.path().join("fifo");
    // SAFETY: the string ends in NUL and outlives the call.
    unsafe {
        libc::mkfifo(
            std::ffi::CString::new(path.to_str().unwrap()).unwrap().as_ptr(),
            0o600,
        )
    };
    let open = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap()
    };
    let Ok(mut ring) = io_uring::IoUring::new(8) else {
        eprintln!("skipped: no io_uring here");
        return;
    };
    let old = open();
    crate::image::lock::lock(&old, false, None).unwrap();
    let mut buffer = [0_u8; 8];
    let read = io_uring::opcode::Read::new(io_uring::types::Fd(old.as_raw_fd()), buffer.as_mut_ptr(), 8)
        .offset(u64::MAX);
    // SAFETY: the buffer lives until the read has completed, below.
    unsafe { ring.submission().push(&read.build()) }.unwrap();
    ring.submit().unwrap();
    drop(old);
    let mut new = open();
    for _ in 0..10 {
        assert!(
            crate::image::lock::lock(&new, false, None).is_err(),
            "the request holds the lock"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    new.write_all(&[7; 8]).unwrap();
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().result(), 8);
    assert_eq!(buffer, [7; 8]);
    // The ring releases the file a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while crate::image::lock::lock(&new, false, None).is_err() {
        assert!(Instant::now() < deadline, "the lock outlives the request");
        std::thread::sleep(Duration::from_millis(1));
    }
}

// torture b14 (CVE-2026-27211): nothing that the guest writes changes the image's format
#[test]
fn a_raw_image_with_a_qcow2_header_stays_raw() {
    let mut rig = Rig::new(EngineKind::Threads);
    let data = BUFFERS + 0x1_0000;
    let mut header = vec![0_u8; 512];
    header[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3]);
    // As qcow2 it would have a backing file and a size of 1 TiB.
    header[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 11]);
    header[24..32].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    header[104..115].copy_from_slice(b"/etc/passwd");
    rig.fill(data, &header);
    assert_eq!(
        rig.request(0, crate::virtio::VIRTIO_BLK_T_OUT, 0, Some(readable(data, 512)))
            .0,
        0
    );
    rig.reopen();
    assert_eq!(rig.queue().disk().capacity(), SECTORS);
    rig.fill(data, &[0; 512]);
    assert_eq!(
        rig.request(0, crate::virtio::VIRTIO_BLK_T_IN, 0, Some(writable(data, 512)))
            .0,
        0
    );
    assert_eq!(rig.bytes(data, 512), header);
}

// A raw file that ends inside of a sector counts up to the end of it, as in QEMU: the missing bytes read
// zero. One that is only read stays as it is.
#[test]
fn a_file_that_ends_inside_of_a_sector() {
    for kind in ENGINES {
        for cache in [HostCache::None, HostCache::Writeback] {
            for readonly in [true, false] {
                let mut rig = Rig::closed(kind, 16, ALL_FEATURES, readonly);
                std::fs::write(&rig.config.path, [7; 1000]).unwrap();
                rig.config.cache = cache;
                rig.open();
                let disk = rig.queue().disk().clone();
                assert_eq!(disk.capacity(), 2);
                rig.fill(BUFFERS + 0x1000, &[1; 1024]);
                let read = rig.request(0, VIRTIO_BLK_T_IN, 0, Some(writable(BUFFERS + 0x1000, 1024)));
                assert_eq!(read, (0, 1025), "{kind:?} {cache:?} {readonly}");
                let expected = [&[7; 1000][..], &[0; 24]].concat();
                assert_eq!(rig.bytes(BUFFERS + 0x1000, 1024), expected);
                let read = rig.request(0, VIRTIO_BLK_T_IN, 1, Some(writable(BUFFERS + 0x1000, 512)));
                assert_eq!(read, (0, 513));
                let mut bytes = [1; 512];
                disk.run_blocking(BlockingIo::Read(&mut bytes), 512).unwrap();
                assert_eq!(bytes[..], expected[512..]);
                assert_eq!(rig.image().len(), if readonly { 1000 } else { 1024 });
                if !readonly {
                    rig.fill(BUFFERS + 0x1000, &[9; 512]);
                    let written = rig.request(0, VIRTIO_BLK_T_OUT, 1, Some(readable(BUFFERS + 0x1000, 512)));
                    assert_eq!(written, (0, 1));
                    assert_eq!(rig.image()[512..], [9; 512]);
                }
            }
        }
    }
}

// A raw disk whose format nobody has stated is refused if it looks like another one, untouched.
#[test]
fn another_formats_magic() {
    let rig = Rig::closed(EngineKind::Threads, 16, ALL_FEATURES, false);
    let unstated = OpenOptions {
        format_unstated: true,
        ..OpenOptions::default()
    };
    for format in ["qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"] {
        let path = rig.dir.path().join(format);
        super::qcow2_power::qemu_img(&["create", "-q", "-f", format, path.to_str().unwrap(), "1M"]);
        let before = std::fs::read(&path).unwrap();
        let config = DiskConfig {
            path,
            ..DiskConfig::default()
        };
        let error = Disk::open_with(&config, &OpenContext::default(), &unstated)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("begins like a {format} image")),
            "{error}"
        );
        assert!(error.contains("format = \"raw\""), "{error}");
        assert!(std::fs::read(&config.path).unwrap() == before);
        drop(Disk::open(&config).unwrap());
    }
    let plain = Disk::open_with(&rig.config, &OpenContext::default(), &unstated);
    drop(plain.unwrap());
}

/// A QEMU that has an image open.
struct Qemu(std::process::Child);

impl Qemu {
    fn open(path: &std::path::Path, readonly: bool) -> Self {
        let mut command = std::process::Command::new("qemu-io");
        command
            .args(["-f", "raw"])
            .args(readonly.then_some("-r"))
            .arg(path);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("qemu-io, which tools/setup.sh installs");
        // Answers when the image is open.
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"length\n").unwrap();
        let mut answer = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        Self(child)
    }

    /// Returns whether it can open the image.
    fn opens(path: &std::path::Path, readonly: bool) -> bool {
        let mut command = std::process::Command::new("qemu-io");
        command
            .args(["-f", "raw", "-c", "length"])
            .args(readonly.then_some("-r"))
            .arg(path);
        let output = command.output().expect("qemu-io, which tools/setup.sh installs");
        let lock = String::from_utf8_lossy(&output.stderr).contains("lock");
        assert!(output.status.success() != lock, "{output:?}");
        output.status.success()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

// Readers and writers here and in QEMU exclude each other as those of one program do.
#[test]
fn locks_hold_for_qemu() {
    let rig = Rig::closed(EngineKind::Threads, 16, ALL_FEATURES, false);
    let writer = rig.config.clone();
    let reader = DiskConfig {
        readonly: true,
        ..writer.clone()
    };
    let path = &writer.path;
    let disk = open_soon(&writer);
    assert!(!Qemu::opens(path, true) && !Qemu::opens(path, false));
    drop(disk);
    let disks = [open_soon(&reader), open_soon(&reader)];
    assert!(Qemu::opens(path, true));
    assert!(!Qemu::opens(path, false), "a QEMU writes beside a reader");
    drop(disks);
    let qemu = Qemu::open(path, true);
    drop(open_soon(&reader));
    assert!(refusal(&writer).contains("in use"));
    drop(qemu);
    let qemu = Qemu::open(path, false);
    assert!(
        refusal(&reader).contains("in use"),
        "a reader beside a QEMU that writes"
    );
    assert!(refusal(&writer).contains("in use"));
    drop(qemu);
    drop(open_soon(&writer));
}
