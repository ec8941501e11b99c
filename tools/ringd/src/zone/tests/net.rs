//! A zone's network device: served, changed, taken over with the port that outlives the daemon, closed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Machine, daemon, until};
use crate::config::ZoneConfig;
use crate::device::net::change::Change;
use crate::device::net::config::{NetConfig, NetLimits, Source};
use crate::device::net::open::default_mac;
use crate::device::net::opener::{PortOpener, PortRequest};
use crate::device::net::report::NetReport;
use crate::device::{self, Configs};
use crate::zone::actor::Command;
use crate::zone::observe;

/// A port: the daemon's end and the other one.
type Ends = (UnixStream, UnixStream);

/// The ports of all machines, by their records' directory, zone and number: they outlive daemons.
static PORTS: Mutex<BTreeMap<(PathBuf, String, usize), Ends>> = Mutex::new(BTreeMap::new());

/// Opens socket pairs.
pub struct FakePorts(PathBuf);

impl FakePorts {
    pub fn new(records: &Path) -> Self {
        Self(records.to_owned())
    }
}

impl PortOpener for FakePorts {
    fn open(&self, request: &PortRequest, pair: u16) -> io::Result<OwnedFd> {
        assert_eq!(pair, 0);
        if let Source::Bridge(name) = &request.port.source {
            return Err(io::Error::other(format!("there is no bridge {name}")));
        }
        let key = (self.0.clone(), request.zone.clone(), request.index);
        let mut ports = PORTS.lock();
        let ends = ports.entry(key).or_insert_with(|| UnixStream::pair().unwrap());
        Ok(ends.0.try_clone()?.into())
    }

    fn close(&self, zone: &str, index: Option<usize>) -> io::Result<()> {
        PORTS.lock().retain(|(records, name, of), _| {
            *records != self.0 || name != zone || index.is_some_and(|index| index != *of)
        });
        Ok(())
    }
}

impl Machine {
    /// Returns a zone with these network devices.
    fn with_nets(&self, sources: &[Source]) -> ZoneConfig {
        let net = |source: &Source| NetConfig {
            port: source.clone().into(),
            mac: None,
            mtu: 1500,
            queue_pairs: Some(1),
            limits: NetLimits::default(),
        };
        ZoneConfig {
            devices: Configs {
                net: sources.iter().map(net).collect(),
                ..Configs::default()
            },
            ..self.config("a")
        }
    }

    fn ports(&self) -> usize {
        let records = self.path("records");
        PORTS.lock().keys().filter(|(of, _, _)| *of == records).count()
    }

    /// Returns the other end of the first device's port.
    fn peer(&self) -> UnixStream {
        let key = (self.path("records"), "a".to_owned(), 0);
        PORTS.lock()[&key].1.try_clone().unwrap()
    }

    /// The link's status, as the guest sees it.
    fn status(&self) -> u8 {
        self.el2.device(1, 0).unwrap().config[6]
    }
}

fn change(change: Change) -> Command {
    Command::Change(device::Change::Net(change))
}

#[test]
fn a_network_device_is_served_changed_and_taken_over() {
    let machine = Machine::new();
    let sources = [Source::User, Source::User];
    machine.registry.start(machine.with_nets(&sources)).unwrap();
    let shown = machine.el2.device(1, 0).unwrap();
    assert_eq!(
        (shown.queues, &shown.config[..6]),
        (3, &default_mac("a", 0).0[..])
    );
    assert_eq!((machine.status(), machine.ports()), (1, 2));
    // A driver sets up the transmit queue, with a packet in it.
    machine.el2.guest_changes_device(1, 0, |device| {
        (device.status, device.features) = (15, 1 << 32);
        let queue = &mut device.queue[1];
        (queue.size, queue.ready) = (16, 1);
        (queue.desc, queue.driver, queue.device) = (0x4040_0000, 0x4040_1000, 0x4040_2000);
    });
    let active = |registry: &crate::zone::registry::Registry| {
        let nets = NetReport::all(&observe::devices(registry));
        nets.iter()
            .any(|net| net.index == 0 && net.queues.iter().any(|queue| queue.active))
    };
    until("queue", || active(&machine.registry));

    let down = change(Change::Link { index: 0, up: false });
    assert_eq!(machine.registry.execute("a", down).unwrap(), Some(0));
    assert_eq!(machine.status(), 0);
    let limits = NetLimits {
        rate: Some(1_000_000),
        pps: None,
    };
    machine
        .registry
        .execute("a", change(Change::Limit { index: 1, limits }))
        .unwrap();
    let error = machine
        .registry
        .execute("a", change(Change::Link { index: 2, up: true }));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no network device eth2: it has 2"), "{error}");

    machine.registry.context().io.stop();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    until("queue", || active(&next));
    let nets = NetReport::all(&observe::devices(&next));
    let shown: Vec<_> = nets.iter().map(|net| (net.slot, net.link, net.limits)).collect();
    assert_eq!(shown, [(0, false, NetLimits::default()), (1, true, limits)]);
    assert_eq!((machine.status(), machine.ports()), (0, 2));
    next.execute("a", change(Change::Link { index: 0, up: true }))
        .unwrap();
    // The link is up, and the driver shall announce itself.
    assert_eq!(machine.status(), 3);

    // The port is the one that the first daemon had.
    let mut peer = machine.peer();
    peer.set_nonblocking(true).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    peer.write_all(&[0, 0, 0, 1, 7]).unwrap();
    next.execute("a", Command::Stop).unwrap();
    assert_eq!(machine.ports(), 0);
    machine.assert_clean();
}

/// A port that cannot be opened is an error that names key and value, and leaves nothing behind.
#[test]
fn a_port_that_cannot_be_opened() {
    let machine = Machine::new();
    let sources = [Source::User, Source::Bridge("br9".into())];
    let error = machine
        .registry
        .start(machine.with_nets(&sources))
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "z.toml: net[1].bridge = \"br9\": there is no bridge br9"
    );
    assert_eq!(machine.ports(), 0);
    machine.assert_clean();
}

/// What is behind a device is exchanged while it is served; the next daemon finds it as it was left.
#[test]
fn a_port_is_detached_and_another_attached() {
    let machine = Machine::new();
    machine
        .registry
        .start(machine.with_nets(&[Source::User, Source::User]))
        .unwrap();
    let attach = |source: Source| {
        let (index, port) = (0, source.into());
        change(Change::Attach { index, port })
    };
    let refused = |command, text: &str| {
        let error = machine.registry.execute("a", command).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    refused(attach(Source::User), "user is behind eth0 of zone a");
    let first = machine.peer();
    first.set_nonblocking(true).unwrap();
    machine
        .registry
        .execute("a", change(Change::Detach { index: 0 }))
        .unwrap();
    assert_eq!((machine.status(), machine.ports()), (0, 1));
    // The daemon has let go of it.
    assert_eq!((&first).read(&mut [0]).unwrap(), 0);
    refused(
        change(Change::Detach { index: 0 }),
        "nothing is behind eth0 of zone a",
    );
    refused(
        attach(Source::VhostUser("/run/net.sock".into())),
        "net[0].vhost_user = \"/run/net.sock\": expected bridge, tap or user",
    );
    refused(
        attach(Source::Bridge("br9".into())),
        "net[0].bridge = \"br9\": there is no bridge br9",
    );
    assert_eq!((machine.status(), machine.ports()), (0, 1));

    // A daemon takes a device over that nothing is behind.
    machine.registry.context().io.stop();
    let next = daemon(&machine.el2, &machine.host, machine.path("records"));
    let reports = NetReport::all(&observe::devices(&next));
    let shown: Vec<_> = reports.iter().map(|net| (net.link, net.port.is_some())).collect();
    assert_eq!(shown, [(false, false), (true, true)]);
    next.execute("a", attach(Source::User)).unwrap();
    assert_eq!((machine.status() & 1, machine.ports()), (1, 2));
    next.execute("a", Command::Stop).unwrap();
    assert_eq!(machine.ports(), 0);
    machine.assert_clean();
}
