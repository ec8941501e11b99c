//! [`Network`]: the bridge [`OWN_BRIDGE`], made by the keeper, with root as its router: DHCP, router
//! advertisements and names by dnsmasq. What it translates and forwards is in [`super::rules`].

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringnet::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::{interface, program};
use crate::device::net::config::OWN_BRIDGE;

/// Root's address on the bridge, and the network's prefix.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 72, 76, 1);
/// Length of the IPv4 prefix.
pub const PREFIX: u32 = 24;
/// Hosts are given these numbers.
const HOSTS: std::ops::RangeInclusive<u8> = 2..=254;

/// How long dnsmasq may take until it has its sockets.
const TIMEOUT: Duration = Duration::from_secs(20);
/// One that ends sooner after its start is not started anew: it would end again.
const STEADY: Duration = Duration::from_secs(1);

/// A guest on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its address on the wire.
    pub mac: MacAddress,
    /// What DHCP gives it.
    pub ipv4: Ipv4Addr,
    /// What it makes of the router's advertisement and its MAC address.
    pub ipv6: Ipv6Addr,
    /// Its name, that of its zone.
    pub name: String,
}

/// The network. Dropped, it is gone: dnsmasq, bridge, settings of the kernel.
pub struct Network {
    run_dir: PathBuf,
    /// The prefix of IPv6 (RFC 4193), of 64 bits.
    prefix6: Ipv6Addr,
    /// Root's address.
    router: MacAddress,
    hosts: Vec<Host>,
    server: Option<Server>,
    settings: Settings,
}

/// dnsmasq.
struct Server {
    child: Child,
    started: Instant,
    /// Becomes readable when it ends.
    ended: OwnedFd,
}

impl Network {
    /// Makes the network, or takes over what a keeper that was killed has left. Returns `None` if there is a
    /// bridge of this name that an administrator made.
    ///
    /// # Errors
    /// It cannot be made; nothing is left of it.
    pub fn make(run_dir: &Path) -> anyhow::Result<Option<Self>> {
        program::find("dnsmasq", "dnsmasq-base", "the bridge ringvisor0")?;
        let machine = machine_id();
        let router = MacAddress::derived(&[&machine, OWN_BRIDGE]);
        let left_behind = interface::exists(OWN_BRIDGE);
        if left_behind && !interface::is_ours(OWN_BRIDGE) {
            return Ok(None);
        }
        if !left_behind {
            interface::make_bridge(OWN_BRIDGE, router)
                .with_context(|| format!("cannot make the bridge {OWN_BRIDGE}"))?;
        }
        let mut network = Self {
            run_dir: run_dir.to_owned(),
            prefix6: prefix6(&machine),
            router,
            hosts: Vec::new(),
            server: None,
            settings: Settings::default(),
        };
        network.end_left_behind();
        network
            .set_up()
            .with_context(|| format!("cannot set up the bridge {OWN_BRIDGE}"))?;
        tracing::info!(bridge = OWN_BRIDGE, address = %ROUTER, prefix = %network.prefix6, "made a network");
        Ok(Some(network))
    }

    fn set_up(&mut self) -> anyhow::Result<()> {
        interface::set_ipv4(OWN_BRIDGE, ROUTER, PREFIX).context("cannot give it its address")?;
        // A kernel without IPv6 has a network without it.
        let router6 = with_interface_id(self.prefix6, 1);
        if let Err(error) = interface::add_ipv6(OWN_BRIDGE, router6, 64) {
            tracing::warn!(%error, "the network has no IPv6");
        }
        self.settings
            .forward()
            .context("cannot make root forward packets")?;
        // Ports that are forwarded lead to a guest for root itself as well.
        self.settings
            .set(&format!("ipv4/conf/{OWN_BRIDGE}/route_localnet"), "1")?;
        self.start_server()
    }

    /// Returns the prefix of IPv6, of 64 bits.
    pub const fn prefix6(&self) -> Ipv6Addr {
        self.prefix6
    }

    /// Returns root's address on the wire.
    pub const fn router(&self) -> MacAddress {
        self.router
    }

    /// Returns what a guest with this address is on the network: the same number each time unless another
    /// guest has it.
    ///
    /// # Errors
    /// All numbers are given.
    pub fn host(&self, mac: MacAddress, zone: &str, index: usize) -> anyhow::Result<Host> {
        let count = HOSTS.count();
        let first = MacAddress::derived(&[&mac.to_string()])
            .0
            .iter()
            .fold(0_usize, |sum, byte| sum * 31 + usize::from(*byte));
        let number = HOSTS
            .cycle()
            .skip(first % count)
            .take(count)
            .find(|number| !self.hosts.iter().any(|host| host.ipv4.octets()[3] == *number));
        let Some(number) = number else {
            bail!("all {count} addresses of {OWN_BRIDGE} are in use");
        };
        let [a, b, c, _] = ROUTER.octets();
        Ok(Host {
            mac,
            ipv4: Ipv4Addr::new(a, b, c, number),
            ipv6: slaac(self.prefix6, mac),
            name: host_name(zone, index),
        })
    }

    /// Replaces the guests that dnsmasq knows.
    ///
    /// # Errors
    /// It cannot be started anew.
    pub fn set_hosts(&mut self, hosts: Vec<Host>) -> anyhow::Result<()> {
        if self.hosts == hosts {
            return Ok(());
        }
        self.hosts = hosts;
        self.start_server()
    }

    /// Returns what becomes readable when dnsmasq ends.
    pub fn server_ended(&self) -> Option<&OwnedFd> {
        self.server.as_ref().map(|server| &server.ended)
    }

    /// dnsmasq has ended by itself: starts it once more, unless it ended at once.
    pub fn restart_server(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let (status, lived) = (server.child.wait().ok(), server.started.elapsed());
        tracing::warn!(?status, ?lived, "dnsmasq has ended");
        let started = match lived < STEADY {
            true => Err(anyhow::anyhow!("dnsmasq ended soon after its start")),
            false => self.start_server(),
        };
        if let Err(error) = started {
            tracing::error!(%error, "guests have no DHCP and no names until a zone is started or ends");
        }
    }

    fn start_server(&mut self) -> anyhow::Result<()> {
        self.end_server();
        let program = program::find("dnsmasq", "dnsmasq-base", "the bridge ringvisor0")?;
        let said = File::from(memfd_create(c"dnsmasq", MemfdFlags::CLOEXEC)?);
        let mut child = program::command(&program)
            .args(["--conf-file=-", "--keep-in-foreground"])
            .arg(format!("--pid-file={}", self.pid_file().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(said.try_clone()?)
            .spawn()
            .context("cannot start dnsmasq")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(configuration(self.prefix6, &self.hosts).as_bytes())?;
        }
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch dnsmasq")?;
        self.server = Some(Server {
            child,
            started: Instant::now(),
            ended,
        });
        self.wait_for_server(said)
    }

    /// Waits until dnsmasq has its sockets: then it writes its process ID.
    fn wait_for_server(&mut self, said: File) -> anyhow::Result<()> {
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        let deadline = Instant::now() + TIMEOUT;
        while let Some(server) = &self.server
            && !self.pid_file().exists()
        {
            let mut descriptors = [PollFd::new(&server.ended, PollFlags::IN)];
            let ended = poll(&mut descriptors, Some(&interval)).is_ok_and(|ready| ready > 0);
            if ended || Instant::now() > deadline {
                self.end_server();
                bail!("dnsmasq does not start: {}", program::last_line(said));
            }
        }
        Ok(())
    }

    fn end_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
        let _ = fs::remove_file(self.pid_file());
    }

    fn pid_file(&self) -> PathBuf {
        self.run_dir.join("dnsmasq.pid")
    }

    /// Ends the dnsmasq of a keeper that was killed.
    fn end_left_behind(&self) {
        let path = self.pid_file();
        let Some(pid) = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
        else {
            return;
        };
        let ours = |text: Vec<u8>| String::from_utf8_lossy(&text).contains(&*path.to_string_lossy());
        if fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(ours)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end_server();
        interface::remove_bridge(OWN_BRIDGE);
        self.settings.restore();
        tracing::info!(bridge = OWN_BRIDGE, "the network is gone");
    }
}

/// Returns dnsmasq's configuration.
fn configuration(prefix6: Ipv6Addr, hosts: &[Host]) -> String {
    let [a, b, c, _] = ROUTER.octets();
    let mut text = format!(
        "user=nobody\n\
         group=nogroup\n\
         interface={OWN_BRIDGE}\n\
         except-interface=lo\n\
         bind-dynamic\n\
         no-hosts\n\
         domain-needed\n\
         leasefile-ro\n\
         dhcp-authoritative\n\
         no-ping\n\
         enable-ra\n\
         dhcp-range={a}.{b}.{c}.0,static,255.255.255.0,1h\n\
         dhcp-range={prefix6},ra-stateless,64,1h\n"
    );
    for Host {
        mac,
        ipv4,
        ipv6,
        name,
    } in hosts
    {
        // Names are there without a lease: leases are forgotten with the process.
        text += &format!("dhcp-host={mac},{ipv4},{name}\nhost-record={name},{ipv4},{ipv6}\n");
    }
    text
}

/// Returns the name of a zone's guest: letters, digits and hyphens of its zone's name, and a number for
/// devices after the first.
fn host_name(zone: &str, index: usize) -> String {
    let plain = zone.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    match index {
        0 => plain,
        _ => format!("{plain}-eth{index}"),
    }
}

fn machine_id() -> String {
    fs::read_to_string("/etc/machine-id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Returns this machine's prefix of local addresses (RFC 4193): always the same.
fn prefix6(machine: &str) -> Ipv6Addr {
    let [_, a, b, c, d, e] = MacAddress::derived(&[machine, "prefix"]).0;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(pair(0xfd, a), pair(b, c), pair(d, e), 0, 0, 0, 0, 0)
}

fn with_interface_id(prefix: Ipv6Addr, id: u64) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix) & !u128::from(u64::MAX) | u128::from(id))
}

/// Returns the address that a guest makes of a prefix and its MAC address (RFC 4291, appendix A).
pub fn slaac(prefix: Ipv6Addr, mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    with_interface_id(prefix, u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]))
}

/// Settings of the kernel below `/proc/sys/net` that were changed.
#[derive(Default)]
struct Settings(Vec<(PathBuf, String)>);

impl Settings {
    /// Makes root forward packets of both versions of IP.
    fn forward(&mut self) -> anyhow::Result<()> {
        // A router ignores advertisements, by which root may have its own address: it goes on with them.
        let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf")
            .into_iter()
            .flatten()
            .flatten();
        for interface in interfaces {
            let path = interface.path().join("accept_ra");
            if fs::read_to_string(&path).is_ok_and(|set| set.trim() == "1") {
                self.write(path, "2")?;
            }
        }
        self.set("ipv4/ip_forward", "1")?;
        if Path::new("/proc/sys/net/ipv6").exists() {
            self.set("ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        self.write(Path::new("/proc/sys/net").join(name), value)
    }

    fn write(&mut self, path: PathBuf, value: &str) -> anyhow::Result<()> {
        let failed = |path: &Path| format!("cannot set {} to {value}", path.display());
        let before = fs::read_to_string(&path).with_context(|| failed(&path))?;
        if before.trim() != value {
            fs::write(&path, value).with_context(|| failed(&path))?;
            self.0.push((path, before.trim().to_owned()));
        }
        Ok(())
    }

    /// Restores what they were, the last one first.
    fn restore(&mut self) {
        for (path, before) in self.0.drain(..).rev() {
            // That of an interface that is gone.
            if let Err(error) = fs::write(&path, &before)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), before, %error, "cannot restore a setting");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Host, configuration, host_name, prefix6, slaac};

    #[test]
    fn addresses_of_guests() {
        let mac = "52:54:00:12:34:56".parse().unwrap();
        let made = slaac("fd00:1:2:3::".parse().unwrap(), mac);
        assert_eq!(made.to_string(), "fd00:1:2:3:5054:ff:fe12:3456");
        let prefix = prefix6("0123");
        assert_eq!(prefix, prefix6("0123"));
        assert!(prefix != prefix6("0124") && prefix.octets()[0] == 0xfd && prefix.octets()[6..] == [0; 10]);
        assert_eq!(
            (host_name("web_1.x", 0), host_name("db", 2)),
            ("web-1-x".into(), "db-eth2".into())
        );
    }

    #[test]
    fn what_dnsmasq_is_told() {
        let host = Host {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            ipv4: [10, 72, 76, 5].into(),
            ipv6: "fd00::5".parse().unwrap(),
            name: "guest1".into(),
        };
        let text = configuration("fd00::".parse().unwrap(), &[host]);
        for line in [
            "dhcp-host=52:54:00:12:34:56,10.72.76.5,guest1",
            "host-record=guest1,10.72.76.5,fd00::5",
            "dhcp-range=10.72.76.0,static,255.255.255.0,1h",
            "dhcp-range=fd00::,ra-stateless,64,1h",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
