//! Rules of nft for ports: NAT and forwarding of [`OWN_BRIDGE`] in one table, filters of ports that have
//! `filter`, separation of zones that have `isolated`. All tables are replaced in one transaction.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use ringnet::MacAddress;

use super::network::{self, Host};
use super::program;
use crate::device::net::config::{Forward, OWN_BRIDGE, Protocol};

/// Tables of ours, with the families that they are of.
const TABLES: [(&str, &str); 3] = [
    ("inet", OWN_BRIDGE),
    ("netdev", "ringvisor"),
    ("bridge", "ringvisor"),
];

/// What the rules are about.
#[derive(Default)]
pub struct Rules<'a> {
    /// The prefix of IPv6 of [`OWN_BRIDGE`] and root's address there, if it is a network of ours.
    pub network: Option<(Ipv6Addr, MacAddress)>,
    /// Guests of [`OWN_BRIDGE`] and the ports of root that lead to them.
    pub forwards: Vec<(&'a Host, &'a [Forward])>,
    /// Ports that packets come from that are filtered.
    pub filters: Vec<Filter<'a>>,
    /// Taps of isolated zones.
    pub isolated: Vec<&'a str>,
}

/// A port whose packets are filtered.
pub struct Filter<'a> {
    /// Its tap.
    pub tap: &'a str,
    /// The device's address.
    pub mac: MacAddress,
    /// The guest's addresses; if there are none, they are not known, and all may be used.
    pub addresses: Vec<IpAddr>,
}

impl Rules<'_> {
    /// Returns the rules as nft reads them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (family, table) in TABLES {
            // A table is deleted whether it is there or not.
            let _ = writeln!(text, "table {family} {table}\ndelete table {family} {table}");
        }
        if let Some((prefix6, router)) = self.network {
            self.network(&mut text, prefix6, router);
        }
        if !self.filters.is_empty() {
            text += "table netdev ringvisor {\n";
            self.filters.iter().for_each(|filter| filter.chain(&mut text));
            text += "}\n";
        }
        if !self.isolated.is_empty() {
            text += "table bridge ringvisor {\nchain forward {\ntype filter hook forward priority filter; policy accept;\n";
            for tap in &self.isolated {
                let _ = writeln!(text, "iifname \"{tap}\" oifname \"rv-*\" drop");
                let _ = writeln!(text, "iifname \"rv-*\" oifname \"{tap}\" drop");
            }
            text += "}\n}\n";
        }
        text
    }

    fn network(&self, text: &mut String, prefix6: Ipv6Addr, router: MacAddress) {
        let (bridge, net4) = (OWN_BRIDGE, format!("{}/{}", network::ROUTER, network::PREFIX));
        let mut to_guests = String::new();
        for (host, forwards) in &self.forwards {
            forwards.iter().for_each(|one| forward(&mut to_guests, host, one));
        }
        // Loopback addresses are routed to the bridge for root's own connections to forwarded ports, and for
        // nothing else. Guests reach each other on the bridge, or not at all: packets to root are to be
        // routed, and not back to the bridge. Where the kernel has br_netfilter, others come here, too.
        let _ = write!(
            text,
            r#"table inet {bridge} {{
chain loopback {{
type filter hook prerouting priority raw; policy accept;
iifname "{bridge}" ip daddr 127.0.0.0/8 drop
}}
chain prerouting {{
type nat hook prerouting priority dstnat; policy accept;
iifname "{bridge}" accept
{to_guests}}}
chain output {{
type nat hook output priority -100; policy accept;
{to_guests}}}
chain postrouting {{
type nat hook postrouting priority srcnat; policy accept;
oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
oifname != "{bridge}" ip saddr {net4} masquerade
oifname != "{bridge}" ip6 saddr {prefix6}/64 masquerade
}}
chain forward {{
type filter hook forward priority filter; policy accept;
iifname "{bridge}" oifname "{bridge}" ether daddr {router} drop
iifname "{bridge}" oifname "{bridge}" accept
oifname "{bridge}" ct state established,related accept
oifname "{bridge}" ct status dnat accept
oifname "{bridge}" drop
}}
}}
"#
        );
    }
}

/// Adds the rules that lead a port of root to a guest.
fn forward(text: &mut String, host: &Host, one: &Forward) {
    let protocol = match one.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (port, guest) = (one.port, one.guest);
    let any = one.address.is_none_or(|address| address.is_unspecified());
    let of = |family: &str, address: IpAddr| match any {
        true => "fib daddr type local".to_owned(),
        false => format!("{family} daddr {address}"),
    };
    if let Some(address) = one
        .address
        .or(Some(Ipv4Addr::UNSPECIFIED.into()))
        .filter(IpAddr::is_ipv4)
    {
        let to = of("ip", address);
        let _ = writeln!(
            text,
            "{to} meta nfproto ipv4 {protocol} dport {port} dnat ip to {}:{guest}",
            host.ipv4
        );
    }
    if let Some(address) = one
        .address
        .or(Some(Ipv6Addr::UNSPECIFIED.into()))
        .filter(IpAddr::is_ipv6)
    {
        let to = of("ip6", address);
        let _ = writeln!(
            text,
            "{to} meta nfproto ipv6 {protocol} dport {port} dnat ip6 to [{}]:{guest}",
            host.ipv6
        );
    }
}

impl Filter<'_> {
    /// Adds the chain that packets from the port's guest pass.
    fn chain(&self, text: &mut String) {
        let Self { tap, mac, addresses } = self;
        let _ = write!(
            text,
            "chain {tap} {{\ntype filter hook ingress device \"{tap}\" priority filter; policy drop;\nether saddr != {mac} drop\n\
             meta protocol arp arp saddr ether != {mac} drop\n"
        );
        if addresses.is_empty() {
            text.push_str("accept\n}\n");
            return;
        }
        let list = |of: fn(&IpAddr) -> bool| {
            let matching: Vec<String> = addresses
                .iter()
                .filter(|one| of(one))
                .map(ToString::to_string)
                .collect();
            matching.join(", ")
        };
        let (four, six) = (list(IpAddr::is_ipv4), list(IpAddr::is_ipv6));
        // DHCP before there is an address; servers of DHCP and routers are not what a guest is.
        let _ = write!(
            text,
            "meta protocol ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept\n\
             udp sport {{ 67, 547 }} drop\n\
             icmpv6 type nd-router-advert drop\n\
             meta protocol ip6 ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report }} accept\n"
        );
        if four.is_empty() {
            text.push_str("meta protocol arp arp saddr ip 0.0.0.0 accept\n");
        } else {
            let _ = write!(
                text,
                "meta protocol arp arp saddr ip {{ 0.0.0.0, {four} }} accept\nmeta protocol ip ip saddr {{ {four} }} accept\n"
            );
        }
        if !six.is_empty() {
            // An advertisement's target, at the end of its header (RFC 4861, 4.4).
            let targets = addresses.iter().filter_map(|address| match address {
                IpAddr::V6(address) => Some(format!("{:#x}", u128::from(*address))),
                IpAddr::V4(_) => None,
            });
            let targets: Vec<String> = targets.collect();
            let _ = write!(
                text,
                "icmpv6 type nd-neighbor-advert @th,64,128 != {{ {} }} drop\nmeta protocol ip6 ip6 saddr {{ {six} }} accept\n",
                targets.join(", ")
            );
        }
        text.push_str("}\n");
    }
}

/// Gives rules to the kernel: all of them or none.
///
/// # Errors
/// There is no nft, or the kernel refuses.
pub fn apply(text: &str) -> anyhow::Result<()> {
    let nft = program::find(
        "nft",
        "nftables",
        "`filter`, `isolated` and the bridge ringvisor0",
    )?;
    let mut child = program::command(&nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start nft")?;
    if let Some(mut input) = child.stdin.take() {
        // What it makes of a part of them is its exit status.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let first = error.lines().next().unwrap_or("no reason given");
        tracing::debug!(rules = text, %error, "nft refuses the rules");
        bail!(
            "nft refuses its rules: {first} (the kernel's modules nf_tables, nft_chain_nat, nft_nat, nft_masq, nft_ct, nft_fib_inet)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Filter, Host, Rules};

    #[test]
    fn rules_name_what_they_are_about() {
        let nothing = Rules::default().text();
        assert_eq!(
            (nothing.matches("delete table").count(), nothing.contains('{')),
            (3, false)
        );
        let host = Host {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            ipv4: [10, 72, 76, 5].into(),
            ipv6: "fd00::5".parse().unwrap(),
            name: "guest1".into(),
        };
        let forward =
            ["2222:22", "udp:127.0.0.1:53:5353", "[fd01::1]:80:8080"].map(|text| text.parse().unwrap());
        let text = Rules {
            network: Some(("fd00::".parse().unwrap(), "02:00:00:00:00:01".parse().unwrap())),
            forwards: vec![(&host, &forward)],
            filters: vec![Filter {
                tap: "rv-guest1-0",
                mac: host.mac,
                addresses: vec![host.ipv4.into(), host.ipv6.into()],
            }],
            isolated: vec!["rv-guest1-0"],
        }
        .text();
        for line in [
            "fib daddr type local meta nfproto ipv4 tcp dport 2222 dnat ip to 10.72.76.5:22",
            "fib daddr type local meta nfproto ipv6 tcp dport 2222 dnat ip6 to [fd00::5]:22",
            "ip daddr 127.0.0.1 meta nfproto ipv4 udp dport 53 dnat ip to 10.72.76.5:5353",
            "ip6 daddr fd01::1 meta nfproto ipv6 tcp dport 80 dnat ip6 to [fd00::5]:8080",
            "iifname \"ringvisor0\" oifname \"ringvisor0\" ether daddr 02:00:00:00:00:01 drop",
            "ether saddr != 52:54:00:12:34:56 drop",
            "meta protocol ip ip saddr { 10.72.76.5 } accept",
            "icmpv6 type nd-neighbor-advert @th,64,128 != { 0xfd000000000000000000000000000005 } drop",
            "iifname \"rv-guest1-0\" oifname \"rv-*\" drop",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        // Nothing leads to [::1], which is not routed, or from IPv6 to a forward of IPv4.
        assert_eq!(text.matches("5353").count(), 2);
    }
}
