//! [`Ports`]: the ports that are kept, the network behind [`OWN_BRIDGE`], and the rules for both.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use ringnet::MacAddress;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::interface;
use super::network::{self, Host, Network};
use super::passt::Passt;
use super::rules::{self, Filter, Rules};
use super::server;
use crate::config::error::quoted;
use crate::device::net::config::{Forward, OWN_BRIDGE, Protocol, Source};
use crate::device::net::opener::{PortError, PortRequest, SOCKET};

/// A process behind a port that ends sooner after its start is not started anew: it would end again.
const STEADY: Duration = Duration::from_secs(1);

/// By zone and number.
type Key = (String, usize);

/// A port that is kept.
struct Kept {
    request: PortRequest,
    queues: Vec<OwnedFd>,
    /// When it was opened.
    opened: Instant,
    /// Its tap.
    tap: Option<String>,
    /// Ends with the port.
    passt: Option<Passt>,
    /// What the guest is on [`OWN_BRIDGE`].
    host: Option<Host>,
    /// Sockets that keep others from ports of root that lead to the guest.
    _reserved: Vec<OwnedFd>,
}

/// All ports.
pub struct Ports {
    run_dir: PathBuf,
    ports: BTreeMap<Key, Kept>,
    network: Option<Network>,
    /// The rules that the kernel has.
    rules: String,
}

impl Ports {
    /// Returns no ports.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            ports: BTreeMap::new(),
            network: None,
            rules: Rules::default().text(),
        }
    }

    /// Returns whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Returns the network behind [`OWN_BRIDGE`], if there is one.
    pub fn network(&mut self) -> Option<&mut Network> {
        self.network.as_mut()
    }

    /// Returns a descriptor of a port: a pair of queues' by its number, or one of a vhost-user server's
    /// ([`SOCKET`]). The port is opened unless it is kept.
    ///
    /// # Errors
    /// It cannot be opened; nothing is left of it.
    pub fn open(&mut self, request: PortRequest, number: u16) -> Result<OwnedFd, PortError> {
        let key = (request.zone.clone(), request.index);
        // Another zone of that name, whose end was not reported, or a passt that has ended.
        let outdated =
            |kept: &Kept| kept.request != request || kept.passt.as_ref().is_some_and(Passt::has_ended);
        if let Some(kept) = self.ports.get(&key).filter(|kept| outdated(kept)) {
            let lived = kept
                .passt
                .as_ref()
                .filter(|_| kept.request == request)
                .map(|_| kept.opened.elapsed());
            self.close(|other| *other == key);
            if let Some(lived) = lived.filter(|lived| *lived < STEADY) {
                let (key, value) = request.port.source.key();
                let why = format!(
                    "passt ended {} ms after its start; `ringctl net attach` tries again",
                    lived.as_millis()
                );
                return Err(PortError::new(key, value, why));
            }
        }
        if !self.ports.contains_key(&key) {
            let opened = self.open_port(request);
            if opened.is_err() {
                self.tidy();
            }
            let kept = opened?;
            let (name, value) = kept.request.port.source.key();
            self.ports.insert(key.clone(), kept);
            if let Err(error) = self.update() {
                self.close(|other| *other == key);
                return Err(PortError::new(name, value, format!("{error:#}")));
            }
        }
        let kept = self
            .ports
            .get_mut(&key)
            .ok_or_else(|| PortError::other("it is not kept"))?;
        if let (Source::VhostUser(path), Some(connection), SOCKET) =
            (&kept.request.port.source, kept.queues.first_mut(), number)
        {
            server::renew(path, connection).map_err(|error| {
                let (key, value) = kept.request.port.source.key();
                PortError::new(key, value, format!("{error:#}"))
            })?;
        }
        let queue = kept
            .queues
            .get(usize::from(number))
            .ok_or_else(|| PortError::other("it has fewer queues"))?;
        queue
            .try_clone()
            .map_err(|error| PortError::other(error.to_string()))
    }

    /// Closes ports.
    pub fn close(&mut self, which: impl Fn(&Key) -> bool) {
        self.ports.retain(|key, _| !which(key));
        self.tidy();
    }

    /// Returns what a zone's guest is on [`OWN_BRIDGE`].
    #[cfg(test)]
    pub fn host(&self, zone: &str) -> Option<Host> {
        self.ports.get(&(zone.to_owned(), 0))?.host.clone()
    }

    /// Brings network and rules to what the ports need.
    fn tidy(&mut self) {
        if !self.ports.values().any(|kept| kept.host.is_some()) {
            self.network = None;
        }
        if let Err(error) = self.update() {
            tracing::error!(%error, "rules and names of network ports are not up to date");
        }
    }

    fn update(&mut self) -> anyhow::Result<()> {
        let hosts = self.ports.values().filter_map(|kept| kept.host.clone()).collect();
        if let Some(network) = &mut self.network {
            network.set_hosts(hosts)?;
        }
        let network = self
            .network
            .as_ref()
            .map(|network| (network.prefix6(), network.router()));
        let text = rules(network, &self.ports).text();
        if text != self.rules {
            rules::apply(&text)?;
            self.rules = text;
        }
        Ok(())
    }

    fn open_port(&mut self, request: PortRequest) -> Result<Kept, PortError> {
        let PortRequest { port, mac, .. } = &request;
        let (key, value) = port.source.key();
        let failed = |error: anyhow::Error| PortError::new(key, value.clone(), format!("{error:#}"));
        // The worker may have been taken over: what it asks for goes into rules and paths.
        if let Err((key, value, expected)) = port.check() {
            return Err(PortError::new(key, value, format!("expected {expected}")));
        }
        self.check_mac(*mac)?;
        self.check_forwards(&port.forward)?;
        let reserved = port
            .forward
            .iter()
            .map(|one| reserve(one).map_err(|error| explain_forward(one, &error)));
        let reserved: Vec<OwnedFd> = reserved.collect::<Result<_, _>>()?;
        let mut kept = Kept {
            queues: Vec::new(),
            opened: Instant::now(),
            tap: None,
            passt: None,
            host: None,
            _reserved: reserved,
            request,
        };
        match &kept.request.port.source {
            Source::Tap(name) => {
                if !interface::exists(name) {
                    return Err(failed(anyhow::anyhow!(
                        "there is no network interface {name}: `ip tuntap add dev {name} mode tap vnet_hdr` makes a tap"
                    )));
                }
                kept.queues = open_tap(name, kept.request.pairs).map_err(failed)?;
                kept.tap = Some(name.clone());
            }
            Source::Bridge(bridge) => {
                if bridge == OWN_BRIDGE {
                    kept.host = self.join_network(&kept.request).map_err(failed)?;
                }
                if kept.host.is_none()
                    && let Some(one) = kept.request.port.forward.first()
                {
                    return Err(PortError::new(
                        "forward",
                        quoted(&one.to_string()),
                        format!(
                            "{OWN_BRIDGE} is a bridge that the daemon did not make: it does not know the guest's address"
                        ),
                    ));
                }
                interface::check_bridge(bridge).map_err(failed)?;
                let name = tap_name(&kept.request.zone, kept.request.index);
                kept.queues = open_tap(&name, kept.request.pairs).map_err(failed)?;
                interface::set_mtu(&name, kept.request.mtu).map_err(|error| {
                    PortError::new(
                        "mtu",
                        kept.request.mtu.to_string(),
                        format!("{name} cannot have it: {error}"),
                    )
                })?;
                interface::add_port(bridge, &name).map_err(failed)?;
                kept.tap = Some(name);
            }
            Source::VhostUser(path) => {
                kept.queues = server::open(path, kept.request.pairs).map_err(failed)?;
            }
            Source::User => {
                // passt takes them.
                kept._reserved.clear();
                let started = Passt::start(kept.request.mtu, &kept.request.port.forward);
                let (process, socket) = started.map_err(failed)?;
                kept.passt = Some(process);
                kept.queues = vec![socket];
            }
        }
        Ok(kept)
    }

    /// Returns what a guest is on [`OWN_BRIDGE`], which is made if there is none; `None` on one that an
    /// administrator made.
    fn join_network(&mut self, request: &PortRequest) -> anyhow::Result<Option<Host>> {
        if self.network.is_none() {
            self.network = Network::make(&self.run_dir)?;
        }
        let host = |network: &Network| network.host(request.mac, &request.zone, request.index);
        self.network.as_ref().map(host).transpose()
    }

    fn check_mac(&self, mac: MacAddress) -> Result<(), PortError> {
        let taken = |by: String| {
            Err(PortError::new(
                "mac",
                quoted(&mac.to_string()),
                format!("{by} has this address"),
            ))
        };
        let other = self.ports.iter().find(|(_, kept)| kept.request.mac == mac);
        if let Some(((zone, index), _)) = other {
            return taken(format!("zone {zone}'s network device {index}"));
        }
        match interface::with_mac(mac) {
            Some(name) => taken(format!("root's interface {name}")),
            None => Ok(()),
        }
    }

    fn check_forwards(&self, forwards: &[Forward]) -> Result<(), PortError> {
        for one in forwards {
            let other = self
                .ports
                .iter()
                .find(|(_, kept)| kept.request.port.forward.iter().any(|other| other.overlaps(one)));
            if let Some(((zone, _), _)) = other {
                let why = format!("zone {zone} has this port of root; choose another");
                return Err(PortError::new("forward", quoted(&one.to_string()), why));
            }
        }
        Ok(())
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.close(|_| true);
    }
}

fn rules(network: Option<(Ipv6Addr, MacAddress)>, ports: &BTreeMap<Key, Kept>) -> Rules<'_> {
    let mut rules = Rules {
        network,
        ..Rules::default()
    };
    for kept in ports.values() {
        let port = &kept.request.port;
        if let Some(host) = &kept.host {
            rules.forwards.push((host, &port.forward));
        }
        let Some(tap) = &kept.tap else {
            continue;
        };
        if port.isolated {
            rules.isolated.push(tap);
        }
        if port.filter {
            let mut addresses = port.addresses.clone();
            if let Some(host) = &kept.host {
                addresses.extend([IpAddr::from(host.ipv4), host.ipv6.into()]);
            }
            if !addresses.is_empty() {
                let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
                addresses.push(network::slaac(link_local, kept.request.mac).into());
            }
            let mac = kept.request.mac;
            rules.filters.push(Filter { tap, mac, addresses });
        }
    }
    rules
}

/// Binds a socket to a port of root, so that no other program takes it. It takes no connections: packets to
/// it are led to the guest before.
fn reserve(forward: &Forward) -> io::Result<OwnedFd> {
    let bound = |address: IpAddr| -> io::Result<OwnedFd> {
        let address = SocketAddr::new(address, forward.port);
        match forward.protocol {
            Protocol::Udp => Ok(UdpSocket::bind(address)?.into()),
            Protocol::Tcp => {
                let family = if address.is_ipv4() {
                    AddressFamily::INET
                } else {
                    AddressFamily::INET6
                };
                let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                bind(&socket, &address)?;
                Ok(socket)
            }
        }
    };
    match forward.address {
        Some(address) => bound(address),
        // Of both versions of IP, where root has both.
        None => bound(Ipv6Addr::UNSPECIFIED.into()).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => bound(Ipv4Addr::UNSPECIFIED.into()),
        }),
    }
}

fn explain_forward(forward: &Forward, error: &io::Error) -> PortError {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "port {} of root is in use: `ss -lp` shows by whom; choose another",
                forward.port
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            "root has no such address: `ip address` shows those that it has".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!("{error}; the daemon must run as root, with CAP_NET_BIND_SERVICE")
        }
        _ => error.to_string(),
    };
    PortError::new("forward", quoted(&forward.to_string()), why)
}

fn open_tap(name: &str, pairs: u16) -> anyhow::Result<Vec<OwnedFd>> {
    let opened = ringnet::tap::open(name, pairs);
    let error = match opened {
        Ok(queues) => return Ok(queues),
        Err(error) => error,
    };
    let hint = match error.raw_os_error() {
        Some(libc::EBUSY) => "; another program uses it",
        Some(libc::EPERM | libc::EACCES) => "; the daemon must run as root, with CAP_NET_ADMIN",
        Some(libc::EINVAL) if pairs > 1 => "; it is no tap with several queues (`multi_queue`)",
        Some(libc::EINVAL) => {
            "; it is no tap, or one with `multi_queue`, which needs queue_pairs of 2 or more"
        }
        Some(libc::ENOENT | libc::ENODEV) => "; the kernel has no tap devices (`modprobe tun`)",
        _ => "",
    };
    bail!("cannot open the tap {name}: {error}{hint}")
}

/// Returns the name of a tap of the daemon's: zone and number, as far as they fit, and what tells long names
/// apart.
fn tap_name(zone: &str, index: usize) -> String {
    let name = format!("rv-{zone}-{index}");
    if name.len() <= ringnet::tap::NAME_MAX {
        return name;
    }
    let hash = zone.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("rv-{hash:08x}-{index}")
}

#[cfg(test)]
mod tests {
    use super::tap_name;

    #[test]
    fn names_of_taps() {
        assert_eq!(tap_name("web", 0), "rv-web-0");
        let long = [
            tap_name("a-zone-with-a-long-name-1", 12),
            tap_name("a-zone-with-a-long-name-2", 12),
        ];
        assert!(long[0] != long[1] && long.iter().all(|name| name.len() <= 15 && name.ends_with("-12")));
    }
}
