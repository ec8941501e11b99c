//! [`Grants`]: what users have asked for, so that the worker gets nothing else opened or made.
//!
//! `ringctl` sends every request that names a file, a server or a program to the broker before it sends it to
//! the worker ([`Asked`]); only the socket's owner may connect. The worker can neither connect nor write the
//! file in which grants outlive the broker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::custody::Custody;
use crate::config::ZoneConfig;
use crate::config::zone::Cpus;
use crate::control::protocol::{MAX_LINE, Reply, Request, Response};
use crate::control::server;
use crate::device::console::opener::ConsoleRequest;
use crate::device::disk::change::Change as DiskChange;
use crate::device::disk::config::{DiskConfig, names_no_file};
use crate::device::net::change::Change as NetChange;
use crate::device::net::config::PortConfig;
use crate::device::net::open::default_mac;
use crate::device::net::opener::PortRequest;
use crate::device::{self, api};
use crate::regular;
use crate::zone::record::replace;

/// Flags of `open` that change nothing.
const FLAGS: i32 = libc::O_PATH
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_CLOEXEC
    | libc::O_NOFOLLOW;
/// Flags with which log files are opened beside those: they are made, and appended to.
const LOG_FLAGS: i32 = libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
/// Longest file of grants.
const SIZE_MAX: u64 = 16 << 20;
/// How long a user's program may take to send a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many zones that have ended can be started again. The worker lists 16 of them by their starts; before
/// these, all zones that EL2 can have may have ended since.
const ENDED: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Returns the path of the socket beside the daemon's.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("grants.sock")
}

/// Returns the error that nothing like this was asked for.
pub fn refusal(what: &str) -> String {
    format!("{what}: no user has asked the broker for it; are ringctl and ringd of one version?")
}

/// Makes the socket; only its owner may connect.
///
/// # Errors
/// The system refused.
pub fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let reserved = server::reserve(&socket(run_dir))?;
    rustix::net::listen(&reserved, BACKLOG)?;
    Ok(reserved.into())
}

/// Adds what users ask for, one connection after the other.
pub fn serve(listener: &UnixListener, grants: &Mutex<Grants>, custody: &Mutex<Custody>) {
    for stream in listener.incoming() {
        let answered = stream.and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            answer(&stream, grants, custody)
        });
        if let Err(error) = answered {
            tracing::warn!(%error, "a user's program did not send what it asks for");
        }
    }
}

fn answer(stream: &UnixStream, grants: &Mutex<Grants>, custody: &Mutex<Custody>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    let exists = |zone: &str| custody.lock().has_zone(zone);
    let added = serde_json::from_str::<Asked>(&line)
        .map_err(io::Error::from)
        .and_then(|asked| grants.lock().add(asked, exists));
    let response = match added {
        Ok(()) => Response::Ok(Reply::Done),
        Err(error) => Response::Error(format!("the broker cannot take the request: {error}")),
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    let mut stream = stream;
    stream.write_all(&line)
}

/// A request of a user, as `ringctl` sends it to the broker: a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Backing files of the images that it names.
    #[serde(default)]
    pub backing: BTreeSet<PathBuf>,
}

impl Asked {
    /// Returns what the broker is to be told of a request; `None` if it names nothing.
    pub fn of(request: &Request) -> Option<Self> {
        let disks: &[DiskConfig] = match request {
            Request::Start { config } => &config.devices.disk,
            Request::Device(api::Request::Change(change)) => match named(&change.change)? {
                Named::Disk(disk) => std::slice::from_ref(disk),
                Named::Port(..) => &[],
            },
            Request::StartAgain { .. } | Request::Upgrade { .. } => &[],
            _ => return None,
        };
        let images = disks
            .iter()
            .filter(|disk| disk.format == Some(ringblk::Format::Qcow2));
        Some(Self {
            request: request.clone(),
            backing: images
                .flat_map(|disk| ringblk::backing_files(&disk.path))
                .collect(),
        })
    }
}

/// What a change of a device names.
enum Named<'a> {
    Disk(&'a DiskConfig),
    /// What is to be behind the network device with this number.
    Port(usize, &'a PortConfig),
}

fn named(change: &device::Change) -> Option<Named<'_>> {
    match change {
        device::Change::Disk(DiskChange::Attach { disk }) => Some(Named::Disk(disk)),
        device::Change::Disk(DiskChange::Migrate { target, .. }) => Some(Named::Disk(target)),
        device::Change::Net(NetChange::Attach { index, port }) => Some(Named::Port(*index, port)),
        device::Change::Disk(_) | device::Change::Net(_) => None,
    }
}

/// Returns the files that a zone's memory is filled with.
fn loaded(zone: &ZoneConfig) -> impl Iterator<Item = &Path> {
    [Some(&*zone.kernel), zone.initrd.as_deref()]
        .into_iter()
        .flatten()
}

/// What users have asked for a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    /// Descriptions of the zone: one, or more if it was to be started while it was there.
    zones: Vec<ZoneConfig>,
    /// Disks that came later.
    disks: Vec<DiskConfig>,
    /// What was put behind network devices later, with their numbers.
    #[serde(default)]
    ports: Vec<(usize, PortConfig)>,
    /// Backing files of all these.
    backing: BTreeSet<PathBuf>,
    /// Whether a start was asked for that has not been begun.
    asked: bool,
}

impl Grant {
    fn disks(&self) -> impl Iterator<Item = &DiskConfig> {
        self.zones
            .iter()
            .flat_map(|zone| &zone.devices.disk)
            .chain(&self.disks)
    }
}

/// What is recorded of all zones.
#[derive(Default, Serialize, Deserialize)]
struct Recorded {
    /// Grants of zones that exist or were asked for.
    zones: BTreeMap<String, Grant>,
    /// Grants of zones that have ended, the last one at the end: none of them holds before a user asks for
    /// the zone again.
    ended: VecDeque<(String, Grant)>,
    /// CPUs that were taken from root and have not been returned.
    #[serde(default)]
    cpus: BTreeSet<u32>,
}

/// Grants of all zones. By default there are none.
#[derive(Default)]
pub struct Grants {
    file: PathBuf,
    recorded: Recorded,
    /// The program of an upgrade, `None` inside for that which runs.
    upgrade: Option<Option<PathBuf>>,
}

impl Grants {
    /// Returns the grants that an earlier broker of the run directory recorded.
    ///
    /// # Errors
    /// They cannot be read, or are damaged.
    pub fn load(run_dir: &Path) -> io::Result<Self> {
        let file = run_dir.join("grants.json");
        let recorded = match regular::read_to_string(&file, SIZE_MAX) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Recorded::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            file,
            recorded,
            upgrade: None,
        })
    }

    /// Adds what a user asks for. `exists`: whether EL2 has a zone of this name, which keeps what it was
    /// granted.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn add(&mut self, asked: Asked, exists: impl Fn(&str) -> bool) -> io::Result<()> {
        let Asked { request, backing } = asked;
        let grant = match request {
            Request::Start { config } => {
                if !exists(&config.name) {
                    self.forget(&config.name);
                }
                let grant = self.recorded.zones.entry(config.name.clone()).or_default();
                grant.asked = true;
                if !grant.zones.contains(&config) {
                    grant.zones.push(*config);
                }
                grant
            }
            Request::StartAgain { name } => {
                // If there is none, the worker says so.
                if exists(&name) {
                    return Ok(());
                }
                let Some(last) = self.forget(&name) else {
                    return Ok(());
                };
                let grant = self.recorded.zones.entry(name).insert_entry(last).into_mut();
                grant.asked = true;
                grant
            }
            Request::Device(api::Request::Change(change)) => {
                let Some(named) = named(&change.change) else {
                    return Ok(());
                };
                let grant = self.recorded.zones.entry(change.name).or_default();
                match named {
                    Named::Disk(disk) if !grant.disks.contains(disk) => grant.disks.push(disk.clone()),
                    Named::Disk(_) => {}
                    // Others stay: the worker may refuse this one, with another behind the device.
                    Named::Port(index, port) => {
                        let port = (index, port.clone());
                        if !grant.ports.contains(&port) {
                            grant.ports.push(port);
                        }
                    }
                }
                grant
            }
            Request::Upgrade { program } => {
                self.upgrade = Some(program);
                return Ok(());
            }
            _ => return Ok(()),
        };
        grant.backing.extend(backing);
        replace(&self.file, &self.recorded)
    }

    /// Records that a zone of this name is being made.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn made(&mut self, zone: &str) -> io::Result<()> {
        if let Some(grant) = self.recorded.zones.get_mut(zone) {
            grant.asked = false;
        }
        replace(&self.file, &self.recorded)
    }

    /// Takes back what a zone that has ended was granted, unless another of that name was asked for since.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn ended(&mut self, zone: &str) -> io::Result<()> {
        if self.recorded.zones.get(zone).is_some_and(|grant| !grant.asked)
            && let Some(mut grant) = self.forget(zone)
        {
            // Where it starts again it has the devices that it was described with.
            grant.disks.clear();
            grant.ports.clear();
            let ended = &mut self.recorded.ended;
            ended.push_back((zone.into(), grant));
            let excess = ended.len().saturating_sub(ENDED);
            ended.drain(..excess);
        }
        replace(&self.file, &self.recorded)
    }

    /// Removes all that a zone was granted, and returns it.
    fn forget(&mut self, zone: &str) -> Option<Grant> {
        let Recorded { zones, ended, .. } = &mut self.recorded;
        let last = ended.iter().position(|(name, _)| name == zone);
        let last = last.and_then(|index| ended.remove(index)).map(|(_, grant)| grant);
        zones.remove(zone).or(last)
    }

    /// Whether a file may be opened, and written.
    pub fn may_open(&self, path: &Path, write: bool, flags: i32) -> bool {
        let is_image =
            |disk: &DiskConfig| disk.path == path && !names_no_file(&disk.path) && !(write && disk.readonly);
        let is_loaded = |zone: &ZoneConfig| loaded(zone).any(|file| file == path);
        let is_log = |zone: &ZoneConfig| zone.devices.logs().any(|log| log == path);
        let mut zones = self.recorded.zones.values().flat_map(|grant| &grant.zones);
        if flags & !(FLAGS | LOG_FLAGS) == 0 && flags & LOG_FLAGS == LOG_FLAGS {
            return zones.any(is_log);
        }
        let is_variables = |zone: &ZoneConfig| zone.variables() == Some(path);
        flags & !FLAGS == 0
            && self.recorded.zones.values().any(|grant| {
                grant.disks().any(is_image)
                    || grant.zones.iter().any(is_variables)
                    || !write && (grant.backing.contains(path) || grant.zones.iter().any(is_loaded))
            })
    }

    /// Whether a device's server at this socket may be connected to.
    pub fn may_connect(&self, socket: &Path) -> bool {
        let serves = |disk: &DiskConfig| ringblk::remote::socket(&disk.path) == Some(socket);
        self.recorded
            .zones
            .values()
            .any(|grant| grant.disks().any(serves))
    }

    /// Whether a zone of this name with so much memory may be made.
    pub fn may_make(&self, zone: &str, bytes: u64) -> bool {
        let is = |config: &ZoneConfig| config.donated() == bytes;
        self.recorded
            .zones
            .get(zone)
            .is_some_and(|grant| grant.zones.iter().any(is))
    }

    /// Takes a CPU for a zone that names it, or has a number of CPUs of which one is left. Returns whether
    /// there is such a zone.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn take_cpu(&mut self, cpu: u32) -> io::Result<bool> {
        let Recorded { zones, cpus, .. } = &mut self.recorded;
        let names = |cpu: &u32| {
            let is_in = |zone: &ZoneConfig| matches!(&zone.cpus, Cpus::List(list) if list.contains(cpu));
            zones.values().flat_map(|grant| &grant.zones).any(is_in)
        };
        if cpus.contains(&cpu) {
            return Ok(true);
        }
        if !names(&cpu) {
            let count = |zone: &ZoneConfig| match zone.cpus {
                Cpus::Count(_) => zone.cpus.count(),
                Cpus::List(_) => 0,
            };
            let counts = zones
                .values()
                .filter_map(|grant| grant.zones.iter().map(count).max());
            if counts.sum::<usize>() <= cpus.iter().filter(|cpu| !names(cpu)).count() {
                return Ok(false);
            }
        }
        cpus.insert(cpu);
        replace(&self.file, &self.recorded)?;
        Ok(true)
    }

    /// Records that root has a CPU again.
    ///
    /// # Errors
    /// It cannot be recorded.
    pub fn return_cpu(&mut self, cpu: u32) -> io::Result<()> {
        match self.recorded.cpus.remove(&cpu) {
            true => replace(&self.file, &self.recorded),
            false => Ok(()),
        }
    }

    /// Whether a network port may be opened: it is what the zone's device was described with, or what was put
    /// behind it later, and address and size are the device's.
    pub fn may_open_port(&self, port: &PortRequest) -> bool {
        let Some(grant) = self.recorded.zones.get(&port.zone) else {
            return false;
        };
        let later = grant
            .ports
            .iter()
            .any(|(index, later)| *index == port.index && *later == port.port);
        grant.zones.iter().any(|zone| {
            zone.devices.net.get(port.index).is_some_and(|net| {
                let mac = net.mac.unwrap_or_else(|| default_mac(&zone.name, port.index));
                let named = later || net.port == port.port;
                let size = (net.mtu, net.pairs(zone.cpus.count()));
                named && mac == port.mac && size == (port.mtu, port.pairs)
            })
        })
    }

    /// Whether the pty or socket of a console may be made.
    pub fn may_open_console(&self, console: &ConsoleRequest) -> bool {
        let zones = self
            .recorded
            .zones
            .get(&console.zone)
            .into_iter()
            .flat_map(|grant| &grant.zones);
        let mut consoles = zones.filter_map(|zone| zone.devices.console.get(console.index));
        consoles.any(|named| named.end.as_ref() == Some(&console.end))
    }

    /// Takes the grant of an upgrade to this program, if there is one.
    pub fn take_upgrade(&mut self, program: &Option<PathBuf>) -> bool {
        self.upgrade.take().is_some_and(|granted| granted == *program)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Asked, ENDED, Grants, NetChange, default_mac};
    use crate::config::ZoneConfig;
    use crate::config::zone::{Cpus, FlashConfig, OnCrash, OnReboot};
    use crate::control::protocol::Request;
    use crate::device::config::Configs;
    use crate::device::console::config::{ConsoleConfig, End};
    use crate::device::console::opener::ConsoleRequest;
    use crate::device::disk::change::Change;
    use crate::device::disk::config::DiskConfig;
    use crate::device::net::config::{NetConfig, NetLimits, Source};
    use crate::device::net::opener::PortRequest;
    use crate::device::{self, api};

    fn config(disks: Vec<DiskConfig>) -> Box<ZoneConfig> {
        let net = NetConfig {
            port: Source::Tap("tap7".into()).into(),
            mac: None,
            mtu: 1500,
            queue_pairs: None,
            limits: NetLimits::default(),
        };
        Box::new(ZoneConfig {
            origin: "z.toml".into(),
            name: "z".into(),
            cpus: Cpus::List(vec![2]),
            memory: 64 << 20,
            kernel: "/k".into(),
            flash: None,
            load: None,
            initrd: Some("/i".into()),
            cmdline: String::new(),
            on_reboot: OnReboot::Restart,
            on_crash: OnCrash::Stop,
            devices: Configs {
                disk: disks,
                net: vec![net],
                ..Configs::default()
            },
        })
    }

    fn port(zone: &str, tap: &str) -> PortRequest {
        PortRequest {
            zone: zone.into(),
            index: 0,
            port: Source::Tap(tap.into()).into(),
            mac: default_mac(zone, 0),
            mtu: 1500,
            pairs: 1,
        }
    }

    fn start(disks: Vec<DiskConfig>) -> Asked {
        Asked::of(&Request::Start {
            config: config(disks),
        })
        .unwrap()
    }

    fn grants() -> (tempfile::TempDir, Grants) {
        let directory = tempfile::tempdir().unwrap();
        let grants = Grants::load(directory.path()).unwrap();
        (directory, grants)
    }

    // torture i2
    #[test]
    fn only_what_users_named_is_granted() {
        let (directory, mut grants) = grants();
        let [path, socket] = ["/d", "/s"].map(Path::new);
        assert!(!grants.may_open(path, false, 0) && !grants.may_make("z", 64 << 20));
        let readonly = DiskConfig {
            readonly: true,
            ..DiskConfig::new("/r".into())
        };
        let remote = DiskConfig::new(ringblk::remote::path(socket));
        let asked = start(vec![DiskConfig::new(path.into()), readonly, remote]);
        grants.add(asked, |_| false).unwrap();
        for mut grants in [grants, Grants::load(directory.path()).unwrap()] {
            let may = |path: &str, write| grants.may_open(Path::new(path), write, 0);
            assert!(
                may("/d", true)
                    && may("/d", false)
                    && may("/r", false)
                    && may("/k", false)
                    && may("/i", false)
            );
            assert!(!may("/r", true) && !may("/k", true) && !may("/e", false) && !may("/s", false));
            assert!(grants.may_open(path, true, libc::O_EXCL) && grants.may_open(path, false, libc::O_PATH));
            let kernel = Path::new("/k");
            assert!(grants.may_open(kernel, false, libc::O_NONBLOCK | libc::O_NOCTTY));
            for flag in [libc::O_TRUNC, libc::O_CREAT, libc::O_APPEND, libc::O_TMPFILE] {
                assert!(!grants.may_open(path, true, flag), "{flag:#x}");
            }
            assert!(grants.may_connect(socket) && !grants.may_connect(path));
            assert!(grants.may_make("z", 64 << 20) && !grants.may_make("z", 66 << 20));
            assert!(!grants.may_make("y", 64 << 20));
            assert!(grants.take_cpu(2).unwrap() && !grants.take_cpu(1).unwrap());
            assert!(grants.may_open_port(&port("z", "tap7")));
            assert!(!grants.may_open_port(&port("z", "tap8")) && !grants.may_open_port(&port("y", "tap7")));
            let but = |change: fn(&mut PortRequest)| {
                let mut request = port("z", "tap7");
                change(&mut request);
                grants.may_open_port(&request)
            };
            assert!(
                !but(|port| port.index = 1) && !but(|port| port.mac = "52:54:00:00:00:01".parse().unwrap())
            );
            assert!(!but(|port| port.mtu = 9000) && !but(|port| port.pairs = 2));
            assert!(!but(|port| port.port.forward = vec!["2222:22".parse().unwrap()]));
            assert!(!but(|port| port.port.isolated = true));
        }
    }

    // torture i2
    #[test]
    fn firmware_is_read_and_its_variables_are_written() {
        let (_directory, mut grants) = grants();
        let config = ZoneConfig {
            flash: Some(FlashConfig {
                variables: Some("/v".into()),
            }),
            ..*config(Vec::new())
        };
        let request = Request::Start {
            config: Box::new(config),
        };
        grants.add(Asked::of(&request).unwrap(), |_| false).unwrap();
        let may = |path: &str, write| grants.may_open(Path::new(path), write, 0);
        assert!(may("/k", false) && may("/v", false) && may("/v", true));
        assert!(!may("/k", true) && !may("/w", true));
        // RAM, and the blocks of both banks of flash.
        assert!(grants.may_make("z", 70 << 20) && !grants.may_make("z", 64 << 20));
    }

    // torture i2
    #[test]
    fn a_number_of_cpus_grants_no_more_of_them() {
        let (directory, mut grants) = grants();
        let named = config(Vec::new());
        let counted = ZoneConfig {
            name: "y".into(),
            cpus: Cpus::Count(2),
            ..*config(Vec::new())
        };
        for config in [named, Box::new(counted)] {
            let asked = Asked::of(&Request::Start { config }).unwrap();
            grants.add(asked, |_| false).unwrap();
        }
        // CPU 2 is named: it counts for no zone that has a number of CPUs.
        assert!([3, 2, 1].into_iter().all(|cpu| grants.take_cpu(cpu).unwrap()));
        let mut grants = Grants::load(directory.path()).unwrap();
        assert!(grants.take_cpu(3).unwrap() && !grants.take_cpu(0).unwrap());
        grants.return_cpu(2).unwrap();
        assert!(!grants.take_cpu(0).unwrap());
        grants.return_cpu(1).unwrap();
        assert!(grants.take_cpu(0).unwrap() && !grants.take_cpu(1).unwrap());
    }

    #[test]
    fn what_was_put_behind_a_network_device_is_granted() {
        let (directory, mut grants) = grants();
        grants.add(start(Vec::new()), |_| false).unwrap();
        for name in ["tap8", "tap9"] {
            let attach = Request::Device(api::Request::Change(api::ChangeRequest {
                name: "z".into(),
                change: device::Change::Net(NetChange::Attach {
                    index: 0,
                    port: Source::Tap(name.into()).into(),
                }),
            }));
            grants.add(Asked::of(&attach).unwrap(), |_| true).unwrap();
        }
        for grants in [&grants, &Grants::load(directory.path()).unwrap()] {
            let may = |tap, index| {
                grants.may_open_port(&PortRequest {
                    index,
                    ..port("z", tap)
                })
            };
            assert!(may("tap7", 0) && may("tap8", 0) && may("tap9", 0) && !may("tap9", 1));
        }
        grants.made("z").unwrap();
        grants.ended("z").unwrap();
        let again = Request::StartAgain { name: "z".into() };
        grants.add(Asked::of(&again).unwrap(), |_| false).unwrap();
        assert!(grants.may_open_port(&port("z", "tap7")) && !grants.may_open_port(&port("z", "tap9")));
    }

    #[test]
    fn a_zone_that_exists_keeps_what_it_was_granted() {
        let (_directory, mut grants) = grants();
        let may = |grants: &Grants, path: &str| grants.may_open(Path::new(path), true, 0);
        grants
            .add(start(vec![DiskConfig::new("/a".into())]), |_| false)
            .unwrap();
        let disk = Box::new(DiskConfig::new("/b".into()));
        let attach = Request::Device(api::Request::Change(api::ChangeRequest {
            name: "z".into(),
            change: device::Change::Disk(Change::Attach { disk }),
        }));
        grants.add(Asked::of(&attach).unwrap(), |_| true).unwrap();
        grants
            .add(start(vec![DiskConfig::new("/c".into())]), |_| true)
            .unwrap();
        assert!(["/a", "/b", "/c"].iter().all(|path| may(&grants, path)));
        // It has ended.
        grants
            .add(start(vec![DiskConfig::new("/c".into())]), |_| false)
            .unwrap();
        assert!(!may(&grants, "/a") && !may(&grants, "/b") && may(&grants, "/c"));
    }

    #[test]
    fn the_end_of_a_zone_is_that_of_its_grants() {
        let (directory, mut grants) = grants();
        let ask = |grants: &mut Grants, exists| {
            let disks = vec![DiskConfig::new("/d".into())];
            grants.add(start(disks), |_| exists).unwrap();
        };
        ask(&mut grants, false);
        grants.made("z").unwrap();
        // Another start is asked for before the end.
        ask(&mut grants, true);
        grants.ended("z").unwrap();
        assert!(grants.may_make("z", 64 << 20));
        grants.made("z").unwrap();
        grants.ended("z").unwrap();
        for grants in [grants, Grants::load(directory.path()).unwrap()] {
            assert!(!grants.may_make("z", 64 << 20) && !grants.may_open(Path::new("/d"), false, 0));
        }
    }

    #[test]
    fn a_zone_that_has_ended_is_started_again_for_a_user_only() {
        let (directory, mut grants) = grants();
        let again = || Asked::of(&Request::StartAgain { name: "z".into() }).unwrap();
        // None is known.
        grants.add(again(), |_| false).unwrap();
        assert!(!grants.may_make("z", 64 << 20));
        grants
            .add(start(vec![DiskConfig::new("/d".into())]), |_| false)
            .unwrap();
        for _ in 0..2 {
            grants.made("z").unwrap();
            grants.ended("z").unwrap();
            grants = Grants::load(directory.path()).unwrap();
            assert!(!grants.may_make("z", 64 << 20) && !grants.may_open(Path::new("/k"), false, 0));
            grants.add(again(), |_| false).unwrap();
            assert!(grants.may_make("z", 64 << 20) && grants.may_open(Path::new("/d"), true, 0));
        }
        // Another of its name has taken its place.
        grants.made("z").unwrap();
        grants.ended("z").unwrap();
        grants
            .add(start(vec![DiskConfig::new("/e".into())]), |_| false)
            .unwrap();
        grants.made("z").unwrap();
        grants.ended("z").unwrap();
        grants.add(again(), |_| false).unwrap();
        assert!(!grants.may_open(Path::new("/d"), true, 0) && grants.may_open(Path::new("/e"), true, 0));
    }

    #[test]
    fn zones_that_have_ended_are_forgotten_one_day() {
        let (_directory, mut grants) = grants();
        for number in 0..ENDED + 3 {
            let config = ZoneConfig {
                name: format!("z{number}"),
                ..*config(Vec::new())
            };
            let name = config.name.clone();
            let request = Request::Start {
                config: Box::new(config),
            };
            grants.add(Asked::of(&request).unwrap(), |_| false).unwrap();
            grants.made(&name).unwrap();
            grants.ended(&name).unwrap();
        }
        assert!(grants.recorded.zones.is_empty() && grants.recorded.ended.len() == ENDED);
        for (name, known) in [("z2", false), ("z3", true)] {
            let again = Request::StartAgain { name: name.into() };
            grants.add(Asked::of(&again).unwrap(), |_| false).unwrap();
            assert_eq!(grants.may_make(name, 64 << 20), known, "{name}");
        }
    }

    #[test]
    fn an_upgrade_is_granted_once() {
        let (_directory, mut grants) = grants();
        let program = |path: &str| Some(PathBuf::from(path));
        let ask = |grants: &mut Grants, program: &Option<PathBuf>| {
            let request = Request::Upgrade {
                program: program.clone(),
            };
            grants.add(Asked::of(&request).unwrap(), |_| true).unwrap();
        };
        assert!(!grants.take_upgrade(&None));
        ask(&mut grants, &program("/a"));
        assert!(!grants.take_upgrade(&program("/b")) && !grants.take_upgrade(&program("/a")));
        ask(&mut grants, &program("/a"));
        assert!(grants.take_upgrade(&program("/a")) && !grants.take_upgrade(&program("/a")));
    }

    #[test]
    fn consoles_and_logs_are_those_of_the_zone() {
        let (_directory, mut grants) = grants();
        let mut zone = config(Vec::new());
        zone.devices.console_log = Some("/uart".into());
        zone.devices.console = vec![ConsoleConfig {
            end: Some(End::Pty),
            log: Some("/log".into()),
        }];
        let asked = Asked::of(&Request::Start { config: zone }).unwrap();
        let request = |zone: &str, index, end| ConsoleRequest {
            zone: zone.into(),
            index,
            end,
        };
        let flags = libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
        assert!(!grants.may_open_console(&request("z", 0, End::Pty)));
        assert!(!grants.may_open(Path::new("/log"), true, flags));
        grants.add(asked, |_| false).unwrap();
        assert!(grants.may_open_console(&request("z", 0, End::Pty)));
        for (zone, index, end) in [
            ("y", 0, End::Pty),
            ("z", 1, End::Pty),
            ("z", 0, End::Socket("/s".into())),
        ] {
            assert!(!grants.may_open_console(&request(zone, index, end)));
        }
        for log in ["/log", "/uart"].map(Path::new) {
            assert!(grants.may_open(log, true, flags | libc::O_NONBLOCK));
            // Nothing that is there is read, or written over.
            for flags in [
                0,
                libc::O_CREAT,
                libc::O_CREAT | libc::O_APPEND,
                flags | libc::O_TRUNC,
            ] {
                assert!(!grants.may_open(log, true, flags), "{flags:#o}");
            }
        }
        // A kernel is not appended to.
        assert!(!grants.may_open(Path::new("/k"), true, flags));
    }

    #[test]
    fn requests_that_name_nothing_are_not_asked_for() {
        let detach = device::Change::Disk(Change::Detach { slot: 0 });
        let change = api::ChangeRequest {
            name: "z".into(),
            change: detach,
        };
        assert!(Asked::of(&Request::Device(api::Request::Change(change))).is_none());
        assert!(Asked::of(&Request::List {}).is_none());
    }
}
