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
    /// Where its packets go.
    pub source: Source,
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

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A tap device of the daemon's, on this bridge.
    Bridge(String),
    /// A tap device that there is.
    Tap(String),
    /// passt: connections of the guest are those of a process in root.
    User(Vec<Forward>),
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
            Self::User(_) => f.write_str("user"),
            Self::VhostUser(path) => write!(f, "vhost-user {}", path.display()),
        }
    }
}

impl NetConfig {
    /// Returns the number of pairs of queues in a zone with `vcpus` vCPUs.
    pub fn pairs(&self, vcpus: usize) -> u16 {
        let most = match self.source {
            Source::Bridge(_) => u16::try_from(vcpus).unwrap_or(PAIRS_MAX).clamp(1, PAIRS_MAX),
            Source::Tap(_) | Source::User(_) | Source::VhostUser(_) => 1,
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
        match &self.source {
            Source::User(_) if self.queue_pairs.is_some_and(|pairs| pairs > 1) => {
                wrong("queue_pairs", &self.queue_pairs.unwrap_or(1), "1, with `user`")
            }
            Source::User(_) if usize::from(self.mtu) > ringnet::port::stream::SEND_MAX => wrong(
                "mtu",
                &self.mtu,
                &format!("at most {}, with `user`", ringnet::port::stream::SEND_MAX),
            ),
            Source::Bridge(name) | Source::Tap(name) if !is_interface_name(name) => {
                let source = if matches!(self.source, Source::Tap(_)) {
                    "tap"
                } else {
                    "bridge"
                };
                wrong(
                    source,
                    &quoted(name),
                    "the name of a network interface: 1 to 15 characters, no / or space",
                )
            }
            Source::VhostUser(path) if !path.is_absolute() => wrong(
                "vhost_user",
                &quoted(&path.display().to_string()),
                "the absolute path of a vhost-user server's socket",
            ),
            Source::VhostUser(_) if self.limits != NetLimits::default() => {
                let (key, limit) = match self.limits.rate {
                    Some(rate) => ("rate", rate),
                    None => ("pps", self.limits.pps.unwrap_or(0)),
                };
                wrong(
                    key,
                    &limit,
                    "no limit with `vhost_user`: the server transfers the packets",
                )
            }
            _ => Ok(()),
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
        let taken = before.iter().any(|other| other.source == net.source);
        if let Source::Tap(tap) = &net.source
            && taken
        {
            return Err(bad(
                origin,
                format!("net[{index}].tap"),
                quoted(tap),
                "a tap that no other device of the zone has",
            ));
        }
        if let Source::VhostUser(path) = &net.source
            && taken
        {
            return Err(bad(
                origin,
                format!("net[{index}].vhost_user"),
                quoted(&path.display().to_string()),
                "a server that no other device of the zone has: it serves one device",
            ));
        }
    }
    Ok(())
}

/// Whether an interface can have this name, and it is safe in a path.
fn is_interface_name(name: &str) -> bool {
    (1..=ringnet::port::tap::NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte))
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
