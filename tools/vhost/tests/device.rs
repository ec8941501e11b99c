//! A network device whose queues a vhost-user server serves: `virtio-drivers` as the guest, the front end
//! that hands the rings over, and this project's server or one by hand behind it.
#![cfg(test)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringnet::{MacAddress, Net, NetConfig, Port, QUEUE_SIZE_MAX, Stream};
use ringvhost::device::{Descriptors, Front, FrontOptions, NetServer, State, state};
use ringvhost::server::{Server, ServerOptions};
use ringvirtio::fake::{FakeDevice, FakeTransport, Ram, with_reactor};
use ringvirtio::memory::Slots;
use ringvirtio::{Callback, QueueHandler, QueueSetup, ReactorHandle};
use rustix::event::{EventfdFlags, eventfd};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;
use vm_memory::MmapRegion;

/// What outlives a daemon: the connection, the event descriptors, the state.
struct Keeper {
    socket: PathBuf,
    stream: Mutex<Option<UnixStream>>,
    events: Mutex<BTreeMap<(u16, bool), OwnedFd>>,
    connections: AtomicUsize,
    words: Arc<MmapRegion>,
    /// The device of the current daemon.
    device: Mutex<Option<Arc<Net>>>,
}

impl Keeper {
    fn new(socket: &Path) -> Arc<Self> {
        Arc::new(Self {
            socket: socket.to_owned(),
            stream: Mutex::default(),
            events: Mutex::default(),
            connections: AtomicUsize::new(0),
            words: Arc::new(MmapRegion::new(4096).unwrap()),
            device: Mutex::default(),
        })
    }

    fn state(&self) -> State {
        let words = Slots::in_mapping(&self.words, 0, state::WORDS).unwrap();
        State::new(Arc::new(words), 0)
    }

    fn event(&self, queue: u16, kick: bool) -> io::Result<OwnedFd> {
        let mut events = self.events.lock().unwrap();
        let event = events
            .entry((queue, kick))
            .or_insert_with(|| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        event.as_fd().try_clone_to_owned()
    }

    /// A daemon opens the device; the last one is gone.
    fn open(self: &Arc<Self>) -> io::Result<Served> {
        drop(self.device.lock().unwrap().take());
        let options = FrontOptions {
            name: "net".into(),
            timeout: Duration::from_secs(20),
            io_uring: true,
        };
        let front = Front::open(self.clone(), self.state(), options)?;
        let server = Arc::new(NetServer::new(front));
        *self.device.lock().unwrap() = Some(Net::served(config(), server, None));
        Ok(Served(self.clone()))
    }

    /// Daemon and connection end.
    fn close(&self) {
        drop(self.device.lock().unwrap().take());
        let stream = self.stream.lock().unwrap().take().unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn device(&self) -> Arc<Net> {
        self.device.lock().unwrap().clone().unwrap()
    }
}

fn has_ended(stream: &UnixStream) -> bool {
    let mut fds = [rustix::event::PollFd::new(
        stream,
        rustix::event::PollFlags::RDHUP,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() > 0
}

impl Descriptors for Keeper {
    fn socket(&self) -> io::Result<UnixStream> {
        let mut stream = self.stream.lock().unwrap();
        if let Some(stream) = stream.as_ref().filter(|stream| !has_ended(stream)) {
            return stream.try_clone();
        }
        let new = UnixStream::connect(&self.socket)?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        stream.insert(new).try_clone()
    }

    fn kick(&self, queue: u16) -> io::Result<OwnedFd> {
        self.event(queue, true)
    }

    fn call(&self, queue: u16) -> io::Result<OwnedFd> {
        self.event(queue, false)
    }
}

fn config() -> NetConfig {
    NetConfig {
        name: "net".into(),
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        pairs: 1,
    }
}

/// The daemon's device.
struct Served(Arc<Keeper>);

impl FakeDevice for Served {
    const TYPE: DeviceType = DeviceType::Network;
    const QUEUE_SIZE_MAX: u16 = QUEUE_SIZE_MAX;

    fn features(&self) -> u64 {
        self.0.device().features()
    }

    fn config(&self) -> Vec<u8> {
        self.0.device().space().to_vec()
    }

    fn queue(&self, number: u16, setup: QueueSetup) -> Box<dyn QueueHandler> {
        self.0.device().queue(number, setup).unwrap().0
    }

    fn release(&self, number: u16, then: Callback) {
        self.0.device().release(Some(number), then);
    }
}

type Driver = VirtIONetRaw<Ram, FakeTransport<Served>, 16>;

/// Starts this project's server, with an echo behind it: what the guest sends comes back.
fn serve(socket: &Path) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = theirs.read(&mut bytes) {
            if theirs.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
    });
    let port = Arc::new(Stream::new(ours.into()).unwrap());
    let net = Net::new(config(), port.offloads(), None);
    net.attach(port).unwrap();
    let options = ServerOptions {
        queues: 2,
        ..ServerOptions::default()
    };
    let server = Server::bind(socket, net, options).unwrap();
    std::thread::spawn(move || server.run());
}

fn soon(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends frames and awaits each one's echo.
fn exchange(driver: &mut Driver, seed: usize) {
    for round in 0..20 {
        let frame: Vec<u8> = (0..60 + round * 67)
            .map(|byte| (byte ^ round ^ seed) as u8)
            .collect();
        driver.send(&frame).unwrap();
        let mut buffer = vec![0; 2048];
        let (header, len) = driver.receive_wait(&mut buffer).unwrap();
        assert!(buffer[header..header + len] == frame, "frame {round} of {seed}");
    }
}

/// Runs `test` with a keeper, and a driver whose first daemon has this reactor.
fn with_driver(test: impl FnOnce(&Arc<Keeper>, &FakeTransport<Served>, &mut Driver, &ReactorHandle)) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    serve(&socket);
    let keeper = Keeper::new(&socket);
    with_reactor(true, |handle| {
        let transport = FakeTransport::new(keeper.open().unwrap(), handle);
        // Its queues end with the reactor, which a test may have replaced.
        let mut driver = ManuallyDrop::new(Driver::new(transport.clone()).unwrap());
        exchange(&mut driver, 1);
        test(&keeper, &transport, &mut driver, handle);
    });
}

#[test]
fn a_driver_and_a_server() {
    with_driver(|keeper, _, driver, _| {
        exchange(driver, 2);
        assert_eq!(keeper.connections.load(Ordering::Relaxed), 1);
    });
}

// The driver of a rebooted guest sets its queues up anew.
#[test]
fn a_reset_and_another_driver() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    serve(&socket);
    let keeper = Keeper::new(&socket);
    with_reactor(true, |handle| {
        let transport = FakeTransport::new(keeper.open().unwrap(), handle);
        for round in 0..5 {
            let mut driver = Driver::new(transport.clone()).unwrap();
            exchange(&mut driver, round);
            // Its queues are taken from the server before their memory is used again.
            drop(driver);
            assert_eq!(keeper.state().running(), 0);
        }
        assert_eq!(keeper.connections.load(Ordering::Relaxed), 1);
    });
}

// torture k2: the server notices nothing of a daemon that is killed
#[test]
fn a_successor_goes_on_with_the_connection() {
    with_driver(|keeper, transport, driver, first| {
        first.stop();
        for round in 0..5 {
            with_reactor(round % 2 == 0, |handle| {
                transport.take_over(keeper.open().unwrap(), handle);
                exchange(driver, round);
            });
        }
        assert_eq!(keeper.connections.load(Ordering::Relaxed), 1);
        with_reactor(true, |handle| {
            // Killed between a message and its answer: nothing is known of the connection.
            keeper.state().unsettle();
            transport.take_over(keeper.open().unwrap(), handle);
            soon("queues", || keeper.state().running() == 3);
            exchange(driver, 6);
            assert_eq!(keeper.connections.load(Ordering::Relaxed), 2);
        });
    });
}

#[test]
fn a_server_that_comes_back() {
    with_driver(|keeper, _, driver, _| {
        for round in 2..5 {
            let stream = keeper.stream.lock().unwrap().take().unwrap();
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            soon("another connection", || {
                keeper.connections.load(Ordering::Relaxed) == round && keeper.state().running() == 3
            });
            exchange(driver, round);
        }
    });
}

/// A server by hand without protocol features: returns the requests that it got.
fn bare_server(listener: &UnixListener, features: u64, answers: usize) -> Vec<u32> {
    let (mut stream, _) = listener.accept().unwrap();
    let mut requests = Vec::new();
    loop {
        let mut header = [0; 12];
        if stream.read_exact(&mut header).is_err() || requests.len() == answers {
            return requests;
        }
        let words: Vec<u32> = header
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let mut payload = vec![0; words[2] as usize];
        stream.read_exact(&mut payload).unwrap();
        requests.push(words[0]);
        let reply = match words[0] {
            1 => features,
            11 => u64::from_le_bytes(payload.try_into().unwrap()),
            _ => continue,
        };
        let header = [words[0], 5, 8].map(u32::to_le_bytes).concat();
        stream
            .write_all(&[&header[..], &reply.to_le_bytes()].concat())
            .unwrap();
    }
}

#[test]
fn a_server_without_any_extension() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let keeper = Keeper::new(&socket);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| bare_server(&listener, 1 << 32 | 1 << 15, usize::MAX));
        with_reactor(true, |handle| {
            let device = keeper.open().unwrap();
            // Its own MRG_RXBUF; the rest is the daemon's.
            assert_eq!(
                device.features() & (1 << 15 | 1 << 22 | 1 << 28 | 1 << 29),
                1 << 15
            );
            let transport = FakeTransport::new(device, handle);
            let driver = Driver::new(transport).unwrap();
            soon("queues", || keeper.state().running() == 3);
            drop(driver);
        });
        keeper.close();
        let requests = server.join().unwrap();
        // Owner, features offered; features, memory; each queue: size, base, addresses, call, kick; stopped.
        let queue = [8, 10, 9, 13, 12];
        let expected = [&[3, 1, 2, 5][..], &queue, &queue, &[11, 11]].concat();
        assert_eq!(requests, expected);
    });
}

// A server that is none, closes the connection at any message, or does not answer.
#[test]
fn servers_that_break_the_protocol() {
    for reply in [
        &[][..],
        &[0xff; 20],
        &[1, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let keeper = Keeper::new(&socket);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(reply).unwrap();
                // SET_OWNER and GET_FEATURES.
                let _ = stream.read_exact(&mut [0; 24]);
            });
            assert!(keeper.open().is_err());
        });
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sock");
    let gone = Keeper::new(&socket).open().map(drop).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    // One that ends after any number of messages; the next one serves.
    for answers in [3, 4, 6, 9, 13] {
        std::fs::remove_file(&socket).ok();
        let listener = UnixListener::bind(&socket).unwrap();
        let keeper = Keeper::new(&socket);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bare_server(&listener, 1 << 32, answers);
                drop(bare_server(&listener, 1 << 32, usize::MAX));
            });
            with_reactor(true, |handle| {
                let transport = FakeTransport::new(keeper.open().unwrap(), handle);
                let driver = Driver::new(transport).unwrap();
                soon("queues", || {
                    keeper.connections.load(Ordering::Relaxed) == 2 && keeper.state().running() == 3
                });
                drop(driver);
            });
            keeper.close();
        });
    }
}
