//! A disk is migrated from a file to a server and back while a guest writes, across the death of the server.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use ringblk::migrate::{Migration, Progress, Step};
use ringblk::remote::{BlockingIo, RemoteImage};
use ringblk::{Disk, DiskConfig};
use ringvirtio::memory::Slots;
use vm_memory::MmapRegion;

use crate::guest::{ANSWER, Guest};
use crate::{BLOCK, BLOCKS, Server, alone, image, open_soon, stamped, verify, writes_under_kills};

fn progress() -> Progress {
    let mapping = Arc::new(MmapRegion::new(4096).unwrap());
    Progress::new(
        Arc::new(Slots::<AtomicU64>::in_mapping(&mapping, 0, 1).unwrap()),
        0,
    )
}

/// Migrates `guest`'s disk while it writes; returns what was written last.
fn migrate_to(
    guest: &mut Guest,
    source: Arc<Disk>,
    target: Arc<Disk>,
    again: impl FnMut(),
) -> HashMap<u64, u64> {
    let mirror = Migration::new(source, target.clone(), progress()).unwrap();
    guest.use_disk(mirror.disk());
    let worker = std::thread::spawn({
        let mirror = mirror.clone();
        move || {
            while mirror.copy().unwrap() == Step::More {}
            mirror.sync().unwrap();
            compare(&mirror);
        }
    });
    let written = writes_under_kills(guest, 2, again);
    worker.join().unwrap();
    guest.remove();
    while mirror.seal().unwrap() == Step::More {
        compare(&mirror);
    }
    guest.use_disk(target);
    written
}

fn compare(mirror: &Migration) {
    let mut at = 0;
    while mirror.verify(&mut at).unwrap() == Step::More {}
}

#[test]
fn to_a_server_that_is_killed_and_back_to_a_file() {
    let _alone = alone();
    for io_uring in [true, false] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let socket = directory.path().join("sock");
        let served = image(directory.path());
        let files = ["first.img", "last.img"].map(|name| {
            let path = directory.path().join(name);
            std::fs::copy(&served, &path).unwrap();
            path
        });
        let open = |path: &std::path::Path| {
            Disk::open(&DiskConfig {
                path: path.to_owned(),
                ..DiskConfig::default()
            })
            .unwrap()
        };
        let mut server = Some(Server::ringd(&socket, &served));
        let mut again = || {
            server.take().unwrap().kill();
            server = Some(Server::ringd(&socket, &served));
        };
        let mut guest = Guest::new(io_uring);
        let remote = open_soon(&socket);
        let written = migrate_to(&mut guest, open(&files[0]), remote.clone(), &mut again);
        verify(&mut guest, &written);
        guest.remove();
        let written = migrate_to(&mut guest, remote, open(&files[1]), &mut again);
        verify(&mut guest, &written);
        guest.remove();
        assert!(std::fs::read(&files[1]).unwrap() == std::fs::read(&served).unwrap());
    }
}

/// A server that keeps qcow2's tables in its own memory until a flush loses what was written to new clusters.
#[test]
fn what_a_killed_server_had_in_memory_is_copied_again() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (socket, served) = (directory.path().join("sock"), directory.path().join("disk.qcow2"));
    let size = BLOCK * BLOCKS;
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&served)
        .arg(size.to_string())
        .status();
    if !made.is_ok_and(|made| made.success()) {
        eprintln!("skipped: no qemu-img here");
        return;
    }
    let Some(server) = Server::qemu(&socket, &served, "qcow2") else {
        eprintln!("skipped: no qemu-storage-daemon here");
        return;
    };
    let source = Disk::open(&DiskConfig {
        path: image(directory.path()),
        ..DiskConfig::default()
    });
    let target = open_soon(&socket);
    let mirror = Migration::new(source.unwrap(), target.clone(), progress()).unwrap();
    while mirror.copy().unwrap() == Step::More {}
    mirror.sync().unwrap();
    compare(&mirror);
    let bytes = stamped(5);
    mirror
        .run_blocking(BlockingIo::Write(&bytes, false), 3 * BLOCK)
        .unwrap();
    server.kill();
    let _server = Server::qemu(&socket, &served, "qcow2").unwrap();
    // The flush that the new server answers says nothing of what the old one had.
    assert_eq!(mirror.seal().unwrap(), Step::More);
    let mut read = vec![0; bytes.len()];
    target
        .run_blocking(BlockingIo::Read(&mut read), 3 * BLOCK)
        .unwrap();
    assert_ne!(read, bytes, "expected a server that loses something");
    compare(&mirror);
    assert_eq!(mirror.seal().unwrap(), Step::End);
    target
        .run_blocking(BlockingIo::Read(&mut read), 3 * BLOCK)
        .unwrap();
    assert_eq!(read, bytes);
}

/// Another disk in the place of the one that was there is not written to.
#[test]
fn a_server_that_comes_back_as_another_is_refused() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (socket, served) = (directory.path().join("sock"), image(directory.path()));
    let server = Server::ringd(&socket, &served);
    let disk = open_soon(&socket);
    disk.run_blocking(BlockingIo::Write(&stamped(1), false), 0)
        .unwrap();
    assert_eq!(disk.write_losses(), 0);
    server.kill();
    let other = directory.path().join("other.img");
    std::fs::write(&other, vec![0; BLOCK as usize]).unwrap();
    let server = Server::ringd(&socket, &other);
    let error = disk
        .run_blocking(BlockingIo::Write(&stamped(2), false), 0)
        .unwrap_err();
    assert!(
        error.to_string().contains("the server says the size is 4096"),
        "{error}"
    );
    assert_eq!(disk.write_losses(), 1);
    assert_eq!(std::fs::read(&other).unwrap(), vec![0; BLOCK as usize]);
    server.kill();
    let server = Server::ringd(&socket, &served);
    disk.run_blocking(BlockingIo::Write(&stamped(3), true), 0)
        .unwrap();
    server.kill();
    // What is durable is not lost.
    let _server = Server::ringd(&socket, &served);
    disk.run_blocking(BlockingIo::Read(&mut [0; 512]), 0).unwrap();
    assert_eq!(disk.write_losses(), 1);
}

/// All that wait for a server that hangs wait for it once.
#[test]
fn a_server_that_hangs_has_its_time_once() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (socket, served) = (directory.path().join("sock"), image(directory.path()));
    let server = Server::ringd(&socket, &served);
    let disk = open_soon(&socket);
    disk.run_blocking(BlockingIo::Sync, 0).unwrap();
    let signal = |name: &str| {
        let pid = server.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    };
    signal("-STOP");
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..9 {
            let disk = &disk;
            scope.spawn(move || {
                std::thread::sleep(ANSWER * number / 10);
                disk.run_blocking(BlockingIo::Write(&[1; 512], false), 0)
                    .unwrap_err();
            });
        }
    });
    let took = begin.elapsed();
    assert!(took < ANSWER * 3 / 2, "{took:?}");
    signal("-CONT");
    disk.run_blocking(BlockingIo::Write(&[2; 512], true), 0).unwrap();
}
