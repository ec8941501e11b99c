//! Servers that are wrong: what is said of them, and that a guest's requests, resets and other disks do not
//! suffer.

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

use crate::fake::{BACKEND_REQ, CONFIG, Fake, Manners, PROTOCOL_FEATURES, REPLY_ACK};
use crate::guest::{ANSWER, BUFFERS, Guest, PATIENCE, context, open, open_with};
use crate::support::BASE;
use crate::{Server, alone, image, open_soon};

/// The message about a server with these manners.
fn complaint(manners: Manners) -> String {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let _fake = Fake::new(&socket, manners);
    let error = open(&socket).unwrap_err();
    assert!(
        error.starts_with(&format!("disk served at {}: ", socket.display())),
        "{error}"
    );
    error
}

#[test]
fn what_a_server_lacks_is_named() {
    let _alone = alone();
    let good = Manners::default();
    for (name, lacking) in [
        ("VERSION_1", feature(VIRTIO_F_VERSION_1)),
        ("INDIRECT_DESC", feature(VIRTIO_RING_F_INDIRECT_DESC)),
        ("PROTOCOL_FEATURES", PROTOCOL_FEATURES),
    ] {
        let features = good.features & !lacking;
        let error = complaint(Manners {
            features,
            ..good.clone()
        });
        assert!(error.contains(&format!("does not offer {name},")), "{error}");
    }
    let error = complaint(Manners {
        protocol: REPLY_ACK | BACKEND_REQ,
        ..good.clone()
    });
    assert!(error.contains("does not offer CONFIG,"), "{error}");
    let error = complaint(Manners {
        sectors: 0,
        ..good.clone()
    });
    assert!(error.contains("the capacity is 0, expected 1 sector"), "{error}");
    let error = complaint(Manners {
        block_size: 3,
        ..good.clone()
    });
    assert!(
        error.contains("blk_size is 3, expected a power of two from 512"),
        "{error}"
    );
    let error = complaint(Manners {
        features: good.features | feature(VIRTIO_BLK_F_RO),
        ..good
    });
    assert!(error.contains("read-only, expected readonly = true"), "{error}");
}

/// At each of the messages of a negotiation.
#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let patience = Duration::from_millis(100);
    for mute in [1, 15, 24] {
        let _fake = Fake::new(
            &socket,
            Manners {
                mute_from: Some(mute),
                ..Manners::default()
            },
        );
        let driver = Driver::new(Arc::new(|path: &Path| UnixStream::connect(path))).with_timeout(patience);
        let begin = Instant::now();
        let error = driver.connect(&socket).unwrap_err();
        assert!(
            error.contains("no vhost-user server, or one that refuses"),
            "{error}"
        );
        assert!(begin.elapsed() >= patience, "{error}");
    }
}

/// A reset, a stop of the zone and an exchange of the disk all wait for queues to be removed.
#[test]
fn a_server_that_hangs_holds_nothing_up_for_ever() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    guest.use_disk(disk.clone());
    fake.given.recv_timeout(PATIENCE).unwrap();
    let at = BASE + BUFFERS;
    guest.put(at, &[5; 512]);
    guest.push(1, Request::Write { offset: 512 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    let begin = Instant::now();
    guest.remove();
    assert!(begin.elapsed() >= ANSWER);
    guest.use_disk(disk.clone());
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    drop(fake);
    // One that works takes its place, and does what the log has kept.
    let image = image(directory.path());
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(PATIENCE), Some((1, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[512..1024], [5; 512]);
}

/// A server that works, with a queue's time for other disks: nothing is cut off, however often queues go.
#[test]
fn a_server_that_works_is_never_cut_off() {
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
        assert_eq!(guest.next(PATIENCE), Some((7, 0)));
        guest.remove();
        assert_eq!(std::fs::read(&image).unwrap()[offset as usize], round);
    }
}

#[test]
fn a_server_that_writes_nonsense_is_sent_away() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(false);
    guest.use_disk(open_soon(&socket));
    let at = BASE + BUFFERS;
    guest.put(at, &[6; 512]);
    while fake.gone.try_recv().is_ok() {}
    guest.push(3, Request::Write { offset: 0 }, &[(at, 512)]);
    guest.publish();
    assert_eq!(guest.next(Duration::from_millis(200)), None);
    // More used than there was; a request that is not in flight; one in flight with a status that is none; a
    // message and a notification of an unknown type.
    for nonsense in 0..5 {
        let given = fake.given.recv_timeout(PATIENCE).unwrap();
        match nonsense {
            0 => given.write_used(1, 77),
            1 => {
                given.write_used(2, 99);
                given.write_used(1, 1);
            }
            2 => given.write_used(1, 1),
            3 => given.say(b"an unsolicited message"),
            _ => given.notices.as_ref().unwrap().write_all(&[9; 12]).unwrap(),
        }
        fake.gone.recv_timeout(PATIENCE).expect("it is sent away");
        assert_eq!(guest.next(Duration::from_millis(50)), None, "nonsense {nonsense}");
    }
    drop(fake);
    let image = image(directory.path());
    let _server = Server::ringd(&socket, &image);
    assert_eq!(guest.next(PATIENCE), Some((3, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[..512], [6; 512]);
}

#[test]
fn a_disk_that_grows_or_shrinks_is_heard_of() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    let (notify, notified) = channel();
    disk.remote()
        .unwrap()
        .on_resize(Box::new(move || notify.send(()).unwrap()));
    guest.use_disk(disk.clone());
    let given = fake.given.recv_timeout(PATIENCE).unwrap();
    let mut notices = given.notices.as_ref().unwrap();
    for sectors in [1024, 256] {
        fake.change(|manners| manners.sectors = sectors);
        notices
            .write_all(&[2_u32, 1, 0].map(u32::to_ne_bytes).concat())
            .unwrap();
        notified.recv_timeout(PATIENCE).unwrap();
        assert!(disk.reread_capacity().unwrap());
        assert_eq!(disk.capacity(), sectors);
    }
    // Nothing new, then no disk at all: the server is sent away, and comes back larger.
    while fake.gone.try_recv().is_ok() {}
    fake.change(|manners| manners.sectors = 0);
    notices
        .write_all(&[2_u32, 1, 0].map(u32::to_ne_bytes).concat())
        .unwrap();
    fake.gone.recv_timeout(PATIENCE).unwrap();
    // The last copy of its socket.
    drop(given);
    fake.change(|manners| manners.sectors = 2048);
    notified.recv_timeout(PATIENCE).unwrap();
    assert!(disk.reread_capacity().unwrap());
    assert_eq!(disk.capacity(), 2048);
    // A smaller one in its place is not the guest's disk.
    fake.given.recv_timeout(PATIENCE).unwrap();
    drop(fake);
    let small = Fake::new(
        &socket,
        Manners {
            sectors: 1024,
            protocol: CONFIG | REPLY_ACK,
            ..Manners::default()
        },
    );
    small.gone.recv_timeout(PATIENCE).expect("it is checked");
    assert!(small.given.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(notified.try_recv().is_err());
    // A server that cannot tell is as good as others.
    small.change(|manners| manners.sectors = 2048);
    assert!(small.given.recv_timeout(PATIENCE).unwrap().notices.is_none());
}

/// It has the same files as the daemon: the memory with the rings, the events.
#[test]
fn a_server_cannot_stop_the_reactor_with_what_it_was_given() {
    let _alone = alone();
    for io_uring in [true, false] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (socket, other) = (directory.path().join("sock"), directory.path().join("other"));
        let fake = Fake::new(&socket, Manners::default());
        let mut guest = Guest::new(io_uring);
        guest.use_disk(open_soon(&socket));
        let given = fake.given.recv_timeout(PATIENCE).unwrap();
        for len in [0, 1 << 30] {
            let error = given.file().set_len(len).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
        given.fill_events();
        let at = BASE + BUFFERS;
        guest.put(at, &[4; 512]);
        guest.push(1, Request::Write { offset: 0 }, &[(at, 512)]);
        guest.publish();
        assert_eq!(guest.next(Duration::from_millis(200)), None);
        assert_eq!(given.available(), 1);
        // The reactor has other disks, and the next server of this one events of its own.
        given.hang_up();
        drop(given);
        drop(fake);
        let image = image(directory.path());
        let server = Server::ringd(&socket, &image);
        assert_eq!(guest.next(PATIENCE), Some((1, 0)));
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
fn a_server_that_closes_at_once_is_not_asked_without_end() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    fake.change(|manners| manners.hasty = true);
    guest.use_disk(disk);
    fake.gone.recv_timeout(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let connections = fake.gone.try_iter().count();
    assert!((2..=11).contains(&connections), "{connections} in a second");
    fake.change(|manners| manners.hasty = false);
    fake.given.recv_timeout(PATIENCE).unwrap();
}

/// It continues to send, although it is to end.
#[test]
fn a_server_that_was_sent_away_is_asked_nothing_more() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(true);
    guest.use_disk(open_soon(&socket));
    let given = fake.given.recv_timeout(PATIENCE).unwrap();
    let at = BASE + BUFFERS;
    guest.put(at, &[8; 512]);
    guest.push(1, Request::Write { offset: 0 }, &[(at, 512)]);
    guest.publish();
    // What it says before it is asked something would be taken for an answer of the set-up's.
    let deadline = Instant::now() + PATIENCE;
    while given.available() < 1 {
        assert!(Instant::now() < deadline, "it is not asked");
        std::thread::sleep(Duration::from_millis(1));
    }
    while fake.gone.try_recv().is_ok() {}
    given.say(b"x");
    fake.gone.recv_timeout(PATIENCE).expect("it is sent away");
    for _ in 0..4 {
        given.say(&[b'x'; 1 << 16]);
        given.notice().unwrap_or_default();
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
    assert_eq!(guest.next(PATIENCE), Some((1, 0)));
    assert_eq!(guest.next(PATIENCE), Some((2, 0)));
}

#[test]
fn sizes_are_heeded_ten_times_a_second_and_the_last_one_counts() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let fake = Fake::new(&socket, Manners::default());
    let mut guest = Guest::new(true);
    let disk = open_soon(&socket);
    let (notify, notified) = channel();
    disk.remote()
        .unwrap()
        .on_resize(Box::new(move || notify.send(()).unwrap()));
    guest.use_disk(disk.clone());
    let given = fake.given.recv_timeout(PATIENCE).unwrap();
    fake.change(|manners| manners.wavers = true);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        given.notice().unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    fake.change(|manners| (manners.wavers, manners.sectors) = (false, 4096));
    given.notice().unwrap();
    while disk.remote().unwrap().size() != 4096 * 512 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let sizes = notified.try_iter().count();
    assert!(
        sizes >= 2 && sizes as f64 <= 10.0 * seconds + 2.0,
        "{sizes} in {seconds} s"
    );
}

/// A daemon that takes a zone over knows what the guest knows, and need not wait for a server.
#[test]
fn a_disk_that_is_known_can_be_waited_for() {
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
    assert_eq!(guest.next(PATIENCE), Some((1, 0)));
    assert_eq!(std::fs::read(&image).unwrap()[..512], [9; 512]);
    // Of a file nothing can be known beforehand.
    let missing = DiskConfig {
        path: directory.path().join("missing"),
        ..DiskConfig::default()
    };
    assert!(Disk::open_with(&missing, &context(), &options).is_err());
}
