//! [`NetConfig`]: a network device as a zone file describes it, and its checks.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ringnet::MacAddress;
use ringnet::config::{MTU_MAX, MTU_MIN, PAIRS_MAX};
use serde::{Deserialize, Serialize};

use crate::config::error::{bad, quoted};

/// The bridge that is made if there is none.
pub const OWN_BRIDGE: &str = "ringvisor0";
/// The MTU if none is given.
pub const MTU: u16 = 1500;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// What is behind it.
    pub port: PortConfig,
    /// Its address; made from machine, zone and number if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Largest packet without its Ethernet header.
    pub mtu: u16,
    /// Pairs of queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
    /// Limits of each direction.
    #[serde(default)]
    pub limits: NetLimits,
}

/// What is behind a network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Where packets go.
    pub source: Source,
    /// Ports of root that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<Forward>,
    /// Whether packets from other addresses than the device's are dropped.
    #[serde(default, skip_serializing_if = "is_false")]
    pub filter: bool,
    /// Addresses that the guest may use beside those that [`OWN_BRIDGE`] gives it; with `filter`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether the zone and others on the same bridge do not see each other.
    #[serde(default, skip_serializing_if = "is_false")]
    pub isolated: bool,
}

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A tap device of the daemon's, on this bridge.
    Bridge(String),
    /// A tap device that there is.
    Tap(String),
    /// passt: connections of the guest are those of a process in root.
    User,
    /// A vhost-user server's socket: that process transfers packets.
    VhostUser(PathBuf),
}

/// Limits of each direction; none if not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Packets per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps: Option<u64>,
}

/// A protocol that ports are forwarded of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of root that leads to one of the guest: `[tcp:|udp:][ADDRESS:]PORT:GUEST_PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Protocol.
    pub protocol: Protocol,
    /// Address of root; all if `None`.
    pub address: Option<IpAddr>,
    /// Port of root.
    pub port: u16,
    /// Port of the guest.
    pub guest: u16,
}

impl Forward {
    /// Returns whether a connection can be meant for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(one), Some(other)) => one == other || one.is_unspecified() || other.is_unspecified(),
            _ => true,
        };
        (self.protocol, self.port) == (other.protocol, other.port) && same_address
    }

    /// What one is to look like.
    pub const EXPECTED: &str =
        "[tcp:|udp:][ADDRESS:]PORT:GUEST_PORT, such as \"2222:22\" or \"udp:[::1]:53:53\"";
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected {}", Self::EXPECTED);
        let (protocol, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            _ => (Protocol::Tcp, text),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, port)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|inner| inner.strip_suffix(']'));
                let address: IpAddr = bare.unwrap_or(address).parse().map_err(|_| wrong())?;
                if address.is_ipv6() != bare.is_some() {
                    return Err(wrong());
                }
                (Some(address), port)
            }
        };
        let number = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
        Ok(Self {
            protocol,
            address,
            port: number(port)?,
            guest: number(guest)?,
        })
    }
}

impl TryFrom<String> for Forward {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol == Protocol::Udp {
            f.write_str("udp:")?;
        }
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.port, self.guest)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::User => f.write_str("user"),
            Self::VhostUser(path) => write!(f, "vhost-user {}", path.display()),
        }
    }
}

impl From<Source> for PortConfig {
    fn from(source: Source) -> Self {
        Self {
            source,
            forward: Vec::new(),
            filter: false,
            addresses: Vec::new(),
            isolated: false,
        }
    }
}

impl Source {
    /// Returns the key of a zone file that says this, and its value, for messages.
    pub fn key(&self) -> (&'static str, String) {
        match self {
            Self::Bridge(name) => ("bridge", quoted(name)),
            Self::Tap(name) => ("tap", quoted(name)),
            Self::User => ("user", "true".into()),
            Self::VhostUser(path) => ("vhost_user", quoted(&path.display().to_string())),
        }
    }

    /// Returns whether root gives the guest its addresses.
    fn gives_addresses(&self) -> bool {
        matches!(self, Self::User) || matches!(self, Self::Bridge(name) if name == OWN_BRIDGE)
    }
}

/// A value that cannot be used: its key, the value, and what was expected.
type Wrong = (&'static str, String, String);

impl PortConfig {
    /// Checks everything that can be checked without the machine.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong =
            |key, value: &dyn ToString, expected: &str| Err((key, value.to_string(), expected.to_owned()));
        let (key, value) = self.source.key();
        if let Source::Bridge(name) | Source::Tap(name) = &self.source
            && !is_interface_name(name)
        {
            let expected = "the name of a network interface: 1 to 15 characters, no space or any of /:%*\"\\";
            return wrong(key, &value, expected);
        }
        if let Source::VhostUser(path) = &self.source
            && !path.is_absolute()
        {
            return wrong(key, &value, "the absolute path of a vhost-user server's socket");
        }
        for (index, one) in self.forward.iter().enumerate() {
            let quoted = quoted(&one.to_string());
            if !self.source.gives_addresses() {
                let expected = format!(
                    "`user = true` or `bridge = \"{OWN_BRIDGE}\"` beside it: root does not know the guest's address"
                );
                return wrong("forward", &quoted, &expected);
            }
            let loopback = matches!(one.address, Some(IpAddr::V6(address)) if address.is_loopback());
            if loopback && self.source != Source::User {
                let expected = "with a bridge another address than ::1, which Linux does not route; `user = true` has it";
                return wrong("forward", &quoted, expected);
            }
            let any = one.address.is_none_or(|address| address.is_unspecified());
            if any && self.source != Source::User && [53, 67, 547].contains(&one.port) {
                let expected = format!(
                    "another port than 53, 67 and 547, which serve {OWN_BRIDGE}, or an address of root before it"
                );
                return wrong("forward", &quoted, &expected);
            }
            let before = self.forward.get(..index).unwrap_or_default();
            if before.iter().any(|other| other.overlaps(one)) {
                return wrong("forward", &quoted, "each port of root once");
            }
        }
        if self.filter {
            match self.source {
                Source::Bridge(_) | Source::Tap(_) => {}
                Source::User => {
                    let expected = "false with `user`: only passt's own packets leave";
                    return wrong("filter", &true, expected);
                }
                Source::VhostUser(_) => {
                    let expected = "false with `vhost_user`: the server transfers the packets";
                    return wrong("filter", &true, expected);
                }
            }
        }
        if !self.addresses.is_empty() && !self.filter {
            let list: Vec<String> = self
                .addresses
                .iter()
                .map(|address| quoted(&address.to_string()))
                .collect();
            return wrong(
                "addresses",
                &format!("[{}]", list.join(", ")),
                "`filter = true` beside it",
            );
        }
        if self.isolated && !matches!(self.source, Source::Bridge(_)) {
            return wrong(
                "isolated",
                &true,
                "false without a bridge: there are no other zones behind it",
            );
        }
        Ok(())
    }
}

impl NetConfig {
    /// Returns the number of pairs of queues in a zone with `vcpus` vCPUs.
    pub fn pairs(&self, vcpus: usize) -> u16 {
        let most = match self.port.source {
            Source::Bridge(_) => u16::try_from(vcpus).unwrap_or(PAIRS_MAX).clamp(1, PAIRS_MAX),
            Source::Tap(_) | Source::User | Source::VhostUser(_) => 1,
        };
        self.queue_pairs.unwrap_or(most)
    }

    /// Checks everything that can be checked without the machine. `key`: its name in messages.
    ///
    /// # Errors
    /// The first value that is wrong.
    fn check(&self, origin: &str, key: &str) -> anyhow::Result<()> {
        let wrong = |name: &str, value: &dyn fmt::Display, expected: &str| {
            Err(bad(origin, format!("{key}.{name}"), value, expected))
        };
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return wrong("mtu", &self.mtu, &format!("{MTU_MIN} to {MTU_MAX}"));
        }
        if let Some(pairs) = self.queue_pairs
            && !(1..=PAIRS_MAX).contains(&pairs)
        {
            return wrong("queue_pairs", &pairs, &format!("1 to {PAIRS_MAX}"));
        }
        if self.port.source == Source::User {
            if let Some(pairs) = self.queue_pairs.filter(|pairs| *pairs > 1) {
                return wrong("queue_pairs", &pairs, "1, with `user`");
            }
            let most = ringnet::port::stream::SEND_MAX;
            if usize::from(self.mtu) > most {
                return wrong("mtu", &self.mtu, &format!("at most {most}, with `user`"));
            }
        }
        if matches!(self.port.source, Source::VhostUser(_)) && self.limits != NetLimits::default() {
            let (key, limit) = match self.limits.rate {
                Some(rate) => ("rate", rate),
                None => ("pps", self.limits.pps.unwrap_or(0)),
            };
            let expected = "no limit with `vhost_user`: the server transfers the packets";
            return wrong(key, &limit, expected);
        }
        match self.port.check() {
            Ok(()) => Ok(()),
            Err((name, value, expected)) => wrong(name, &value, &expected),
        }
    }
}

/// Checks a zone's network devices.
///
/// # Errors
/// The first that is wrong, or has what another one has.
pub fn check_all(nets: &[NetConfig], origin: &str) -> anyhow::Result<()> {
    for (index, net) in nets.iter().enumerate() {
        net.check(origin, &format!("net[{index}]"))?;
        let before = nets.get(..index).unwrap_or_default();
        if let Some(mac) = net.mac
            && before.iter().any(|other| other.mac == Some(mac))
        {
            let value = quoted(&mac.to_string());
            return Err(bad(
                origin,
                format!("net[{index}].mac"),
                value,
                "an address that no other device of the zone has",
            ));
        }
        let taken = before.iter().any(|other| other.port.source == net.port.source);
        if let Source::Tap(tap) = &net.port.source
            && taken
        {
            return Err(bad(
                origin,
                format!("net[{index}].tap"),
                quoted(tap),
                "a tap that no other device of the zone has",
            ));
        }
        if let Source::VhostUser(path) = &net.port.source
            && taken
        {
            return Err(bad(
                origin,
                format!("net[{index}].vhost_user"),
                quoted(&path.display().to_string()),
                "a server that no other device of the zone has: it serves one device",
            ));
        }
        let forwarded = |one: &&Forward| {
            let others = before.iter().flat_map(|other| &other.port.forward);
            others.into_iter().any(|other| other.overlaps(one))
        };
        if let Some(one) = net.port.forward.iter().find(forwarded) {
            return Err(bad(
                origin,
                format!("net[{index}].forward"),
                quoted(&one.to_string()),
                "a port of root that no other device of the zone has",
            ));
        }
    }
    Ok(())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Whether an interface can have this name, and it is safe in a path and in a rule of nft.
fn is_interface_name(name: &str) -> bool {
    (1..=ringnet::port::tap::NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:%*\"\\".contains(&byte))
}

/// Returns bits per second from text such as `1Gbit`: decimal, as networks count.
pub fn parse_rate(text: &str) -> Option<u64> {
    let number = text.strip_suffix("bit")?;
    let (number, unit) = match number.strip_suffix(['k', 'K', 'M', 'G']) {
        Some(rest) => (rest, number.chars().next_back()?),
        None => (number, ' '),
    };
    let unit = match unit {
        'k' | 'K' => 1000,
        'M' => 1_000_000,
        'G' => 1_000_000_000,
        _ => 1,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|rate| *rate >= 8)
}

/// What a rate is to look like.
pub const RATE: &str = "bits per second in quotes, such as \"100Mbit\" or \"1Gbit\", at least 8";

#[cfg(test)]
mod tests {
    use super::{Forward, parse_rate};

    #[test]
    fn rates() {
        for (text, rate) in [
            ("1Gbit", Some(1_000_000_000)),
            ("100Mbit", Some(100_000_000)),
            ("64kbit", Some(64_000)),
            ("9600bit", Some(9600)),
            ("0bit", None),
            ("1G", None),
            ("-1Mbit", None),
            ("99999999999Gbit", None),
            ("bit", None),
        ] {
            assert_eq!(parse_rate(text), rate, "{text}");
        }
    }

    #[test]
    fn forwards() {
        for text in ["2222:22", "udp:53:5353", "127.0.0.1:2222:22", "udp:[::1]:5353:53"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:80:8080".parse::<Forward>().unwrap().to_string(), "80:8080");
        for text in [
            "",
            "22",
            "0:22",
            "22:0",
            "70000:22",
            "sctp:1:2",
            "::1:2:3",
            "[127.0.0.1]:1:2",
            "a:1:2",
            "1:2:3",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
