//! The server, driven by our own front-end.
#![cfg(test)]

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ringblk::{Disk, DiskConfig, EngineKind, Format};
use ringvhost::front::{Connection, Request};
use ringvhost::server::{ServeError, Server, ServerOptions};
use support::{BASE, Client, connect};
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserInflight;

const SIZE: u64 = 1 << 20;

fn pattern(offset: u64) -> u8 {
    (offset / 512 * 7 + offset % 251) as u8
}

/// A server on a thread, which outlives the test.
struct Served {
    directory: TempDir,
}

impl Served {
    fn new(options: ServerOptions, change: impl FnOnce(&mut DiskConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        fs::write(&path, (0..SIZE).map(pattern).collect::<Vec<_>>()).unwrap();
        let mut config = DiskConfig {
            path,
            ..DiskConfig::default()
        };
        change(&mut config);
        let disk = Disk::open(&config).unwrap();
        let server = Server::bind(&directory.path().join("sock"), disk, options).unwrap();
        thread::spawn(move || server.run());
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    fn client(&self, queues: u16) -> Client {
        Client::new(connect(&self.socket()), queues).unwrap()
    }

    fn image(&self) -> File {
        File::open(self.directory.path().join("disk.img")).unwrap()
    }
}

#[test]
fn requests_of_every_kind() {
    for (io_uring, engine) in [(true, EngineKind::IoUring), (false, EngineKind::Threads)] {
        let mut options = ServerOptions::default();
        options.reactor.io_uring = io_uring;
        let served = Served::new(options, |config| config.engine = engine);
        let mut client = served.client(1);
        let info = client.info();
        assert_eq!((info.size, info.block_size), (SIZE, 512));
        assert!(info.flush && info.discard > 0 && info.write_zeroes > 0 && !info.readonly);

        // In two buffers, one of an odd size.
        let parts = [(BASE + 1, 1000), (BASE + 0x2000, 24)];
        assert_eq!(client.run(Request::Read { offset: 512 }, &parts), 0);
        let mut read = client.get(1, 1000);
        read.extend(client.get(0x2000, 24));
        assert_eq!(read, (512..1536).map(pattern).collect::<Vec<_>>());

        client.put(0x3000, &[0xab; 4096]);
        let parts = [(BASE + 0x3000, 4096)];
        assert_eq!(client.run(Request::Write { offset: 8192 }, &parts), 0);
        assert_eq!(client.run(Request::Flush, &[]), 0);
        let mut bytes = [0; 4097];
        served.image().read_exact_at(&mut bytes, 8192).unwrap();
        assert!(bytes[..4096].iter().all(|&byte| byte == 0xab));
        assert_eq!(bytes[4096], pattern(8192 + 4096));

        let zeroes = Request::WriteZeroes {
            offset: 8192,
            len: 1024,
            unmap: true,
        };
        assert_eq!(client.run(zeroes, &[]), 0);
        served.image().read_exact_at(&mut bytes, 8192).unwrap();
        assert!(bytes[..1024].iter().all(|&byte| byte == 0) && bytes[1024] == 0xab);
        let discard = Request::Discard {
            offset: 65536,
            len: 65536,
        };
        assert_eq!(client.run(discard, &[]), 0);
        // Past the end.
        assert_eq!(client.run(Request::Read { offset: SIZE }, &parts), 1);
    }
}

#[test]
fn many_queues_at_once_and_the_next_front_end() {
    let served = Served::new(ServerOptions::default(), |_| {});
    for round in 0..3_u64 {
        let mut client = served.client(4);
        assert_eq!(client.info().queues, 4);
        // More than a ring holds, so that indices wrap in the last of them.
        for batch in 0..4_u64 {
            for queue in 0..4_usize {
                for number in 0..100_u64 {
                    let at = (number + queue as u64 * 100) * 4096;
                    let offset = (number * 4 + queue as u64 + batch + round) % 256 * 4096;
                    let parts = [(BASE + at, 4096)];
                    assert!(client.rings.rings[queue].push(offset, Request::Read { offset }, &parts));
                }
                client.publish(queue);
            }
            for queue in 0..4_usize {
                let mut tokens = Vec::new();
                for _ in 0..100 {
                    let done = client.next(queue, Duration::from_secs(20)).expect("an answer");
                    assert_eq!(done.status, 0);
                    tokens.push(done.token);
                }
                let mut expected: Vec<u64> = (0..100)
                    .map(|number| (number * 4 + queue as u64 + batch + round) % 256 * 4096)
                    .collect();
                tokens.sort_unstable();
                expected.sort_unstable();
                assert_eq!(tokens, expected);
                for number in 0..100_u64 {
                    let at = (number + queue as u64 * 100) * 4096;
                    let offset = (number * 4 + queue as u64 + batch + round) % 256 * 4096;
                    assert_eq!(client.get(at, 1), [pattern(offset)]);
                }
            }
        }
        // Stopped by GET_VRING_BASE, or just disconnected.
        if round == 1 {
            client.connection.stop().unwrap();
        }
    }
}

#[test]
fn a_readonly_disk_and_one_of_qcow2() {
    let served = Served::new(ServerOptions::default(), |config| config.readonly = true);
    let mut client = served.client(1);
    assert!(client.info().readonly);
    client.put(0, &[1; 512]);
    assert_eq!(client.run(Request::Write { offset: 0 }, &[(BASE, 512)]), 1);
    let mut byte = [0];
    served.image().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [pattern(0)]);

    // A raw file is not qcow2, which is an error before a front end connects.
    let path = served.directory.path().join("disk.img");
    let config = DiskConfig {
        path,
        format: Format::Qcow2,
        ..DiskConfig::default()
    };
    assert!(Disk::open(&config).is_err());
}

#[test]
fn one_server_to_a_socket() {
    let served = Served::new(ServerOptions::default(), |_| {});
    let config = DiskConfig {
        path: "null:1M".into(),
        ..DiskConfig::default()
    };
    let bind = |path: &PathBuf| Server::bind(path, Disk::open(&config).unwrap(), ServerOptions::default());
    assert!(matches!(bind(&served.socket()), Err(ServeError::Taken(_))));
    // A dead server's socket is replaced.
    let stale = served.directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(bind(&stale).is_ok());
    // A file that is not a socket is not removed.
    let file = served.directory.path().join("disk.img");
    assert!(matches!(bind(&file), Err(ServeError::Listen { .. })));
    assert_eq!(fs::metadata(&file).unwrap().len(), SIZE);
}

/// The server disconnects such a front end and serves the next.
#[test]
fn invalid_front_ends() {
    use vhost::VhostBackend;
    use vhost::vhost_user::{Frontend, VhostUserFrontend};

    let served = Served::new(ServerOptions::default(), |_| {});
    type Wrong = fn(&mut Client);
    let wrongs: [(&str, Wrong); 5] = [
        ("rings outside of the memory", |client| {
            let other = SharedElsewhere::new();
            let _ = client
                .connection
                .start(&[], &other.rings, &client.kicks, &client.call);
            let _ = client
                .connection
                .start(&[], &client.rings, &client.kicks, &client.call);
        }),
        ("an available index that jumps", |client| {
            client.start().unwrap();
            for _ in 0..100 {
                let _ = client.rings.rings[0].push(1, Request::Flush, &[]);
            }
            client.publish(0);
        }),
        ("a buffer outside of the memory", |client| {
            client.start().unwrap();
            let _ = client.rings.rings[0].push(1, Request::Read { offset: 0 }, &[(0x10, 512)]);
            client.publish(0);
        }),
        ("it disconnects with requests in flight", |client| {
            client.start().unwrap();
            for number in 0..100_u64 {
                let parts = [(BASE + number * 4096, 4096)];
                let _ = client.rings.rings[0].push(1, Request::Read { offset: 0 }, &parts);
            }
            client.publish(0);
        }),
        ("no request at all", |_| {}),
    ];
    for (name, wrong) in wrongs {
        eprintln!("{name}");
        let mut client = Client::stopped(connect(&served.socket()), 1).unwrap();
        wrong(&mut client);
        drop(client);
        let mut next = served.client(1);
        assert_eq!(next.run(Request::Read { offset: 0 }, &[(BASE, 512)]), 0, "{name}");
    }

    // Invalid messages.
    type Message = fn(&mut Frontend) -> bool;
    let messages: [(&str, Message); 5] = [
        ("a queue that does not exist", |front| {
            front.set_vring_num(9, 128).is_ok()
        }),
        ("a size that is no power of two", |front| {
            front.set_vring_num(0, 100).is_ok()
        }),
        ("features that are not offered", |front| {
            front.set_features(1 << 60).is_ok()
        }),
        ("an in-flight region for too many queues", |front| {
            front
                .get_inflight_fd(&VhostUserInflight::new(0, 0, 99, 128))
                .is_ok()
        }),
        ("an in-flight region that is too small", |front| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4096).unwrap();
            front
                .set_inflight_fd(&VhostUserInflight::new(4096, 0, 8, 1024), file.as_raw_fd())
                .is_ok()
        }),
    ];
    for (name, message) in messages {
        eprintln!("{name}");
        let stream = connect(&served.socket());
        let mut front = Frontend::from_stream(stream, 64);
        negotiate(&mut front);
        assert!(!message(&mut front), "{name}");
        drop(front);
        let mut next = served.client(1);
        assert_eq!(next.run(Request::Read { offset: 0 }, &[(BASE, 512)]), 0, "{name}");
    }
    // Bytes that are not a message.
    let mut stream = connect(&served.socket());
    std::io::Write::write_all(&mut stream, &[0xff; 4096]).unwrap();
    drop(stream);
    let mut next = served.client(1);
    assert_eq!(next.run(Request::Read { offset: 0 }, &[(BASE, 512)]), 0);
}

/// Passes ring addresses that are not in shared memory.
struct SharedElsewhere {
    rings: ringvhost::front::SharedRings,
}

impl SharedElsewhere {
    fn new() -> Self {
        Self {
            rings: ringvhost::front::SharedRings::new(1, true).unwrap(),
        }
    }
}

fn negotiate(front: &mut vhost::vhost_user::Frontend) {
    use vhost::VhostBackend;
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserVirtioFeatures};

    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    front.set_features(features).unwrap();
    assert!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0);
    let protocol = front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
}

#[test]
fn a_peer_that_is_not_a_server() {
    // A peer that listens and sends nothing useful.
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = Connection::negotiate(ours, 1).err().unwrap().to_string();
    assert!(error.contains("no vhost-user server"), "{error}");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut theirs, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let error = Connection::negotiate(ours, 1).err().unwrap().to_string();
    assert!(error.contains("no vhost-user server"), "{error}");
}
