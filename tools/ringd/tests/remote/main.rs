//! A disk that another process serves, as the daemon's reactor uses it: requests of a guest's queue go to a
//! server that is killed and started again, goes for good, is another one, or writes nonsense. The guest is
//! played by our own driver, in its own RAM.
#![cfg(test)]

mod fake;
mod faults;
mod guest;
mod migrating;
#[path = "../../../vhost/tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use guest::{BUFFERS, Guest, PATIENCE, open};
use ringblk::Disk;
use ringvhost::front::Request;
use support::BASE;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
const DEPTH: u64 = 32;

/// A process that may be killed.
struct Server(Child);

impl Server {
    fn ringd(socket: &Path, image: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_ringd"))
            .args(["--log-level", "warn", "serve", "--queues", "2", "--vhost-user"])
            .args([socket, Path::new("--disk"), image])
            .spawn();
        Self(child.unwrap())
    }

    /// Debian's; `None` where it is not installed.
    fn qemu(socket: &Path, image: &Path, format: &str) -> Option<Self> {
        // It waits for the lock no longer than it has to, and makes the socket anew.
        let _ = fs::remove_file(socket);
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={}", image.display()))
            .arg("--blockdev")
            .arg(format!("driver={format},node-name=disk,file=file,discard=unmap"))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=2",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        child.ok().map(Self)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One at a time: they measure no times, but a machine has few CPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn open_soon(socket: &Path) -> Arc<Disk> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open(socket) {
            Ok(disk) => return disk,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn image(directory: &Path) -> PathBuf {
    let path = directory.join("disk.img");
    fs::write(&path, vec![0; (BLOCK * BLOCKS) as usize]).unwrap();
    path
}

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Every kind of request, with buffers that no file would take.
fn all_kinds(guest: &mut Guest) {
    let at = BASE + BUFFERS;
    guest.put(at + 3, &[7; 1500]);
    let parts = [(at + 3, 1000), (at + 1003, 24)];
    assert_eq!(guest.run(Request::Write { offset: 1024 }, &parts), 0);
    assert_eq!(guest.run(Request::Flush, &[]), 0);
    guest.put(at, &[0xff; 4096]);
    assert_eq!(guest.run(Request::Read { offset: 512 }, &[(at, 2048)]), 0);
    let read = guest.get(at, 2049);
    assert!(read[..512].iter().all(|&byte| byte == 0) && read[512..1536].iter().all(|&byte| byte == 7));
    assert!(read[1536..2048].iter().all(|&byte| byte == 0) && read[2048] == 0xff);
    let zeroes = Request::WriteZeroes {
        offset: 1024,
        len: 512,
        unmap: false,
    };
    assert_eq!(guest.run(zeroes, &[]), 0);
    let discard = Request::Discard {
        offset: 8192,
        len: 8192,
    };
    assert_eq!(guest.run(discard, &[]), 0);
    assert_eq!(guest.run(Request::Read { offset: 1024 }, &[(at, 1024)]), 0);
    let read = guest.get(at, 1024);
    assert!(read[..512].iter().all(|&byte| byte == 0) && read[512..].iter().all(|&byte| byte == 7));
    assert_eq!(
        guest.run(
            Request::Read {
                offset: BLOCK * BLOCKS
            },
            &[(at, 512)]
        ),
        1
    );
}

/// Writes with stamps at depth 32; `again` kills and starts the server each time so many are answered. Gives
/// what was written last, by block.
fn writes_under_kills(guest: &mut Guest, kills: u64, mut again: impl FnMut()) -> HashMap<u64, u64> {
    let (mut stamp, mut answered, mut killed) = (1_u64, 0_u64, 0);
    let mut flying = HashMap::new();
    let mut written = HashMap::new();
    loop {
        let mut block = stamp;
        while killed < kills && (flying.len() as u64) < DEPTH {
            block = (block + 1) % BLOCKS;
            if flying.contains_key(&block) {
                continue;
            }
            stamp += 1;
            let at = BASE + BUFFERS + block * BLOCK;
            guest.put(at, &stamped(stamp));
            let request = Request::Write {
                offset: block * BLOCK,
            };
            guest.push(block, request, &[(at, BLOCK as u32)]);
            flying.insert(block, stamp);
        }
        guest.publish();
        if flying.is_empty() {
            return written;
        }
        let (block, status) = guest.next(PATIENCE).expect("an answer");
        assert_eq!(status, 0, "no request fails");
        written.insert(block, flying.remove(&block).unwrap());
        answered += 1;
        if killed < kills && answered > (killed + 1) * 300 {
            again();
            killed += 1;
        }
    }
}

fn verify(guest: &mut Guest, written: &HashMap<u64, u64>) {
    let at = BASE + BUFFERS;
    for (&block, &stamp) in written {
        let request = Request::Read {
            offset: block * BLOCK,
        };
        assert_eq!(guest.run(request, &[(at, BLOCK as u32)]), 0);
        assert_eq!(guest.get(at, BLOCK as usize), stamped(stamp), "block {block}");
    }
}

#[test]
fn ours_killed_and_started_again() {
    let _alone = alone();
    for io_uring in [true, false] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, socket) = (image(directory.path()), directory.path().join("sock"));
        let mut server = Some(Server::ringd(&socket, &image));
        let mut guest = Guest::new(io_uring);
        guest.use_disk(open_soon(&socket));
        all_kinds(&mut guest);
        let written = writes_under_kills(&mut guest, 6, || {
            server.take().unwrap().kill();
            server = Some(Server::ringd(&socket, &image));
        });
        verify(&mut guest, &written);
        guest.remove();
        drop(server);
        let file = File::open(&image).unwrap();
        for (block, stamp) in written {
            let mut bytes = vec![0; BLOCK as usize];
            file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
            assert_eq!(bytes, stamped(stamp), "block {block}");
        }
    }
}

#[test]
fn qemus_killed_and_started_again() {
    let _alone = alone();
    for format in ["raw", "qcow2"] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (image, socket) = (image(directory.path()), directory.path().join("sock"));
        if format == "qcow2" {
            // A server that is killed forgets tables that it has not written: there are none to be written.
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"])
                .arg(&image)
                .arg((BLOCK * BLOCKS).to_string())
                .status();
            if !made.is_ok_and(|made| made.success()) {
                eprintln!("skipped: no qemu-img here");
                return;
            }
        }
        let Some(server) = Server::qemu(&socket, &image, format) else {
            eprintln!("skipped: no qemu-storage-daemon here");
            return;
        };
        let mut server = Some(server);
        let mut guest = Guest::new(true);
        guest.use_disk(open_soon(&socket));
        let written = writes_under_kills(&mut guest, 3, || {
            server.take().unwrap().kill();
            server = Server::qemu(&socket, &image, format);
        });
        verify(&mut guest, &written);
        if format == "raw" {
            guest.run(
                Request::WriteZeroes {
                    offset: 0,
                    len: 4096,
                    unmap: true,
                },
                &[],
            );
            assert_eq!(
                guest.run(Request::Read { offset: 0 }, &[(BASE + BUFFERS, 512)]),
                0
            );
            assert_eq!(guest.get(BASE + BUFFERS, 512), vec![0; 512]);
        }
        guest.remove();
    }
}

/// Nothing waits for a server that does not come back, except requests; a queue set up again continues from
/// its log.
#[test]
fn a_server_that_is_gone_is_in_nobodys_way() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, socket) = (image(directory.path()), directory.path().join("sock"));
    let server = Server::ringd(&socket, &image);
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    guest.use_disk(disk.clone());
    assert_eq!(guest.run(Request::Flush, &[]), 0);
    server.kill();
    let at = BASE + BUFFERS;
    guest.put(at, &stamped(99));
    guest.push(1, Request::Write { offset: 0 }, &[(at, BLOCK as u32)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(300)), None);
    // At once, though a request is in flight.
    guest.remove();
    guest.use_disk(disk);
    assert_eq!(guest.next(Duration::from_millis(300)), None);
    let server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(PATIENCE), Some((1, 0)));
    let mut bytes = vec![0; BLOCK as usize];
    File::open(&image).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, stamped(99));
    // Another disk in its place: the guest's requests wait rather than go there.
    server.kill();
    let other = directory.path().join("other.img");
    fs::write(&other, vec![0; BLOCK as usize]).unwrap();
    let server = Server::ringd(&socket, &other);
    guest.push(2, Request::Write { offset: 0 }, &[(at, BLOCK as u32)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(700)), None);
    assert_eq!(fs::read(&other).unwrap(), vec![0; BLOCK as usize]);
    server.kill();
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(PATIENCE), Some((2, 0)));
}

#[test]
fn what_is_no_disk_is_said() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let missing = open(&directory.path().join("nobody")).unwrap_err();
    assert!(
        missing.contains("nobody") && missing.contains("cannot connect: No such file"),
        "{missing}"
    );
    let socket = directory.path().join("other");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || drop(listener.accept()));
    let other = open(&socket).unwrap_err();
    assert!(other.contains("no vhost-user server"), "{other}");
}
