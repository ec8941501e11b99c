//! Faulty servers: they are reported, and they do not affect other disks, resets and the guest's requests.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use ringblk::remote::{Connector, KnownGeometry};
use ringblk::virtio::VIRTIO_BLK_F_RO;
use ringblk::{Disk, DiskConfig, OpenOptions};
use ringvhost::front::{Driver, Request};
use ringvirtio::virtio::feature;
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC};

use crate::fake::{BACKEND_REQ, Behavior, CONFIG, Fake, PROTOCOL_FEATURES, REPLY_ACK};
use crate::guest::{BUFFERS, Guest, SERVER_TIMEOUT, TEST_TIMEOUT, context, open, open_with};
use crate::support::BASE;
use crate::{Server, alone, image, open_soon};

/// Returns the error message for a server of this behavior.
fn connect_error(behavior: Behavior) -> String {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let _fake = Fake::new(&socket, behavior);
    let error = open(&socket).unwrap_err();
    assert!(
        error.starts_with(&format!("disk served at {}: ", socket.display())),
        "{error}"
    );
    error
}

#[test]
fn missing_features_are_named() {
    let _alone = alone();
    let good = Behavior::default();
    for (name, lacking) in [
        ("VERSION_1", feature(VIRTIO_F_VERSION_1)),
        ("INDIRECT_DESC", feature(VIRTIO_RING_F_INDIRECT_DESC)),
        ("PROTOCOL_FEATURES", PROTOCOL_FEATURES),
    ] {
        let features = good.features & !lacking;
        let error = connect_error(Behavior {
            features,
            ..good.clone()
        });
        assert!(error.contains(&format!("does not offer {name},")), "{error}");
    }
    let error = connect_error(Behavior {
        protocol: REPLY_ACK | BACKEND_REQ,
        ..good.clone()
    });
    assert!(error.contains("does not offer CONFIG,"), "{error}");
    let error = connect_error(Behavior {
        sectors: 0,
        ..good.clone()
    });
    assert!(error.contains("the capacity is 0, expected 1 sector"), "{error}");
    let error = connect_error(Behavior {
        block_size: 3,
        ..good.clone()
    });
    assert!(
        error.contains("blk_size is 3, expected a power of two from 512"),
        "{error}"
    );
    let error = connect_error(Behavior {
        features: good.features | feature(VIRTIO_BLK_F_RO),
        ..good
    });
    assert!(error.contains("read-only, expected readonly = true"), "{error}");
}

/// A server that stops replying at any message of the negotiation.
#[test]
fn a_silent_server_times_out() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let timeout = Duration::from_millis(100);
    for mute in [1, 15, 24] {
        let _fake = Fake::new(
            &socket,
            Behavior {
                silent_from: Some(mute),
                ..Behavior::default()
            },
        );
        let driver = Driver::new(Arc::new(|path: &Path| UnixStream::connect(path))).with_timeout(timeout);
        let begin = Instant::now();
        let error = driver.connect(&socket).err().unwrap();
        assert!(
            error.contains("no vhost-user server, or one that refuses"),
            "{error}"
        );
        assert!(begin.elapsed() >= timeout, "{error}");
    }
}

/// A reset, a stop of the zone and a change of the disk wait for the queue's removal, at most for the
/// timeout.
#[test]
fn a_hanging_server_delays_a_removal_by_its_timeout() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    guest.use_disk(disk.clone());
    fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
    let at = BASE + BUFFERS;
    guest.put(at, &[5; 512]);
    guest.push(1, Request::Write { offset: 512 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    let begin = Instant::now();
    guest.remove();
    assert!(begin.elapsed() >= SERVER_TIMEOUT);
    guest.use_disk(disk.clone());
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    drop(fake);
    // A working server in its place completes the request from the in-flight log.
    let image = image(directory.path());
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(TEST_TIMEOUT), Some((1, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[512..1024], [5; 512]);
}

/// A working server stays connected, however often its queue is removed.
#[test]
fn a_working_server_is_not_disconnected() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, socket) = (image(directory.path()), directory.path().join("sock"));
    let _server = Server::ringd(&socket, &image);
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    let at = BASE + BUFFERS;
    for round in 0..20_u8 {
        guest.use_disk(disk.clone());
        guest.put(at, &[round; 4096]);
        let offset = u64::from(round) * 4096;
        guest.push(7, Request::Write { offset }, &[(at, 4096)]);
        guest.publish();
        // The write is in flight, or done.
        guest.remove();
        guest.use_disk(disk.clone());
        assert_eq!(guest.next(TEST_TIMEOUT), Some((7, 0)));
        guest.remove();
        assert_eq!(std::fs::read(&image).unwrap()[offset as usize], round);
    }
}

#[test]
fn a_server_that_violates_the_protocol_is_disconnected() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(false);
    guest.use_disk(open_soon(&socket));
    let at = BASE + BUFFERS;
    guest.put(at, &[6; 512]);
    while fake.gone.try_recv().is_ok() {}
    guest.push(3, Request::Write { offset: 0 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    // used.idx past avail.idx; a head that is not in flight; one in flight with an invalid status; invalid
    // messages on both channels.
    for violation in 0..5 {
        let given = fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
        match violation {
            0 => given.write_used(1, 77),
            1 => {
                given.write_used(2, 99);
                given.write_used(1, 1);
            }
            2 => given.write_used(1, 1),
            3 => given.send_bytes(b"not a reply"),
            _ => given
                .backend_channel
                .as_ref()
                .unwrap()
                .write_all(&[9; 12])
                .unwrap(),
        }
        fake.gone.recv_timeout(TEST_TIMEOUT).expect("it is disconnected");
        assert_eq!(
            guest.next(Duration::from_millis(50)),
            None,
            "violation {violation}"
        );
    }
    drop(fake);
    let image = image(directory.path());
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(TEST_TIMEOUT), Some((3, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[..512], [6; 512]);
}

#[test]
fn capacity_changes_are_noticed() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    let (resized, resizes) = channel();
    disk.remote()
        .unwrap()
        .on_resize(Box::new(move || resized.send(()).unwrap()));
    guest.use_disk(disk.clone());
    let given = fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
    let mut backend_channel = given.backend_channel.as_ref().unwrap();
    for sectors in [1024, 256] {
        fake.change(|behavior| behavior.sectors = sectors);
        backend_channel
            .write_all(&[2_u32, 1, 0].map(u32::to_ne_bytes).concat())
            .unwrap();
        resizes.recv_timeout(TEST_TIMEOUT).unwrap();
        assert!(disk.reread_capacity().unwrap());
        assert_eq!(disk.capacity(), sectors);
    }
    // A capacity of 0 is invalid: the server is disconnected, and reconnected with a larger one.
    while fake.gone.try_recv().is_ok() {}
    fake.change(|behavior| behavior.sectors = 0);
    backend_channel
        .write_all(&[2_u32, 1, 0].map(u32::to_ne_bytes).concat())
        .unwrap();
    fake.gone.recv_timeout(TEST_TIMEOUT).unwrap();
    // Closes the last descriptor of the connection.
    drop(given);
    fake.change(|behavior| behavior.sectors = 2048);
    resizes.recv_timeout(TEST_TIMEOUT).unwrap();
    assert!(disk.reread_capacity().unwrap());
    assert_eq!(disk.capacity(), 2048);
    // A smaller disk in its place is refused.
    fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
    drop(fake);
    let small = Fake::new(
        &socket,
        Behavior {
            sectors: 1024,
            protocol: CONFIG | REPLY_ACK,
            ..Behavior::default()
        },
    );
    small.gone.recv_timeout(TEST_TIMEOUT).expect("it is connected to");
    assert!(small.given.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(resizes.try_recv().is_err());
    // A server without CONFIG_CHANGE messages is accepted.
    small.change(|behavior| behavior.sectors = 2048);
    assert!(
        small
            .given
            .recv_timeout(TEST_TIMEOUT)
            .unwrap()
            .backend_channel
            .is_none()
    );
}

/// A server shares files with the daemon: the memory with the rings, and the eventfds.
#[test]
fn a_server_cannot_stop_the_reactor_through_shared_files() {
    let _alone = alone();
    for io_uring in [true, false] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (socket, other) = (directory.path().join("sock"), directory.path().join("other"));
        let fake = Fake::new(&socket, Behavior::default());
        let mut guest = Guest::new(io_uring);
        guest.use_disk(open_soon(&socket));
        let given = fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
        for len in [0, 1 << 30] {
            let error = given.file().set_len(len).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
        given.fill_eventfds();
        let at = BASE + BUFFERS;
        guest.put(at, &[4; 512]);
        guest.push(1, Request::Write { offset: 0 }, &[(at, 512)]);
        guest.publish();
        assert_eq!(guest.next(Duration::from_millis(200)), None);
        assert_eq!(given.available(), 1);
        // The reactor serves other disks, and the next server of this one gets new eventfds.
        given.disconnect();
        drop(given);
        drop(fake);
        let image = image(directory.path());
        let server = Server::ringd(&socket, &image);
        assert_eq!(guest.next(TEST_TIMEOUT), Some((1, 0)));
        assert_eq!(std::fs::read(&image).unwrap()[..512], [4; 512]);
        guest.remove();
        drop(server);
        let _server = Server::ringd(&other, &image);
        guest.use_disk(open_soon(&other));
        assert_eq!(guest.run(Request::Read { offset: 0 }, &[(at + 512, 512)]), 0);
        assert_eq!(guest.get(at + 512, 512), [4; 512]);
    }
}

#[test]
fn reconnections_are_rate_limited() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    fake.change(|behavior| behavior.disconnects_at_once = true);
    guest.use_disk(disk);
    fake.gone.recv_timeout(TEST_TIMEOUT).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let connections = fake.gone.try_iter().count();
    assert!((2..=11).contains(&connections), "{connections} in a second");
    fake.change(|behavior| behavior.disconnects_at_once = false);
    fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
}

/// A server that continues to send after a protocol error.
#[test]
fn a_disconnected_server_gets_no_requests() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(true);
    guest.use_disk(open_soon(&socket));
    let given = fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
    let at = BASE + BUFFERS;
    guest.put(at, &[8; 512]);
    guest.push(1, Request::Write { offset: 0 }, &[(at, 512)]);
    guest.publish();
    // Bytes that it sends before the request is available would be taken for a reply of the negotiation.
    let deadline = Instant::now() + TEST_TIMEOUT;
    while given.available() < 1 {
        assert!(Instant::now() < deadline, "it gets no request");
        std::thread::sleep(Duration::from_millis(1));
    }
    while fake.gone.try_recv().is_ok() {}
    given.send_bytes(b"x");
    fake.gone.recv_timeout(TEST_TIMEOUT).expect("it is disconnected");
    for _ in 0..4 {
        given.send_bytes(&[b'x'; 1 << 16]);
        given.send_config_change().unwrap_or_default();
    }
    guest.push(2, Request::Write { offset: 512 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    assert_eq!(given.available(), 1);
    assert_eq!(fake.given.try_recv().err(), Some(TryRecvError::Empty));
    drop(given);
    drop(fake);
    let image = image(directory.path());
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(TEST_TIMEOUT), Some((1, 0)));
    assert_eq!(guest.next(TEST_TIMEOUT), Some((2, 0)));
}

#[test]
fn capacity_changes_are_rate_limited() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Behavior::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    let (resized, resizes) = channel();
    disk.remote()
        .unwrap()
        .on_resize(Box::new(move || resized.send(()).unwrap()));
    guest.use_disk(disk.clone());
    let given = fake.given.recv_timeout(TEST_TIMEOUT).unwrap();
    fake.change(|behavior| behavior.alternates_capacity = true);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        given.send_config_change().unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    fake.change(|behavior| (behavior.alternates_capacity, behavior.sectors) = (false, 4096));
    given.send_config_change().unwrap();
    while disk.remote().unwrap().size() != 4096 * 512 {
        assert!(begin.elapsed() < TEST_TIMEOUT);
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let sizes = resizes.try_iter().count();
    assert!(
        sizes >= 2 && sizes as f64 <= 10.0 * seconds + 2.0,
        "{sizes} in {seconds} s"
    );
}

/// A daemon that takes over knows the disk's geometry, and opens the disk without waiting for its server.
#[test]
fn a_known_disk_opens_without_its_server() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, socket) = (image(directory.path()), directory.path().join("sock"));
    let known = KnownGeometry {
        size: 64 * 4096,
        block_size: 512,
        readonly: false,
    };
    let options = OpenOptions {
        known: Some(known),
        ..OpenOptions::default()
    };
    let disk: Arc<Disk> = open_with(&socket, &options).unwrap();
    assert_eq!(disk.capacity(), 64 * 8);
    let mut guest = Guest::new(true);
    guest.use_disk(disk);
    let at = BASE + BUFFERS;
    guest.put(at, &[9; 512]);
    guest.push(1, Request::Write { offset: 0 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(TEST_TIMEOUT), Some((1, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[..512], [9; 512]);
    // An image file must exist, even with a known geometry.
    let missing = DiskConfig {
        path: directory.path().join("missing"),
        ..DiskConfig::default()
    };
    assert!(Disk::open_with(&missing, &context(), &options).is_err());
}
