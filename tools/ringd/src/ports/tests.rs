//! Ports in a network namespace of their own, where that is permitted. The programs are those that
//! `tools/setup.sh` installs.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use ringnet::MacAddress;
use rustix::event::{PollFd, PollFlags, poll};

use super::interface;
use super::kept::Ports;
use super::program;
use crate::device::net::config::{OWN_BRIDGE, Source};
use crate::device::net::opener::{PortRequest, SOCKET, call, kick};

/// Runs a test in a network namespace of its own; elsewhere it is left out, with a message.
pub fn in_namespace(test: impl FnOnce()) {
    // SAFETY: it affects only this thread, which the test harness ends after the test.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        eprintln!("skipped: a network namespace needs root");
        return;
    }
    let mount = |source: &std::ffi::CStr, target: &std::ffi::CStr, kind: &std::ffi::CStr, flags| {
        // SAFETY: strings that end in zero; the thread has a mount namespace of its own.
        let mounted = unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags,
                std::ptr::null(),
            )
        };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
    };
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE);
    // What is there shows the interfaces of the namespace that mounted it.
    mount(c"sysfs", c"/sys", c"sysfs", 0);
    test();
}

/// Returns whether there are tap devices; elsewhere a test is left out, with a message.
fn has_tun() -> bool {
    let there = Path::new("/dev/net/tun").exists();
    if !there {
        eprintln!("skipped: there is no /dev/net/tun");
    }
    there
}

fn request(zone: &str, index: usize, source: Source) -> PortRequest {
    PortRequest {
        zone: zone.into(),
        index,
        port: source.into(),
        mac: MacAddress::derived(&[zone, &index.to_string()]),
        mtu: 1500,
        pairs: 2,
    }
}

fn own(zone: &str, forward: &[&str]) -> PortRequest {
    let mut request = request(zone, 0, Source::Bridge(OWN_BRIDGE.into()));
    request.port.forward = forward.iter().map(|one| one.parse().unwrap()).collect();
    request.port.filter = true;
    request.port.isolated = true;
    request
}

/// What can be seen of ports in root: interfaces, rules, settings, processes of this namespace.
fn traces() -> (Vec<String>, String, String) {
    let mut interfaces: Vec<String> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    interfaces.sort();
    let program = program::find("nft", "nftables", "a test").unwrap();
    let rules = Command::new(program).args(["list", "ruleset"]).output().unwrap();
    (
        interfaces,
        String::from_utf8(rules.stdout).unwrap(),
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
    )
}

#[test]
fn a_network_is_made_used_and_removed() {
    in_namespace(|| {
        if !has_tun() {
            return;
        }
        let before = traces();
        let directory = tempfile::tempdir().unwrap();
        let mut ports = Ports::new(directory.path());
        // The same request gives the same port.
        for pair in [0, 1, 0] {
            ports.open(own("a", &["2222:22", "udp:5353:53"]), pair).unwrap();
        }
        let (interfaces, rules, forwarding) = traces();
        assert!(
            interfaces.iter().any(|name| name == "rv-a-0")
                && interfaces.iter().any(|name| name == OWN_BRIDGE)
        );
        assert!(
            rules.contains("tcp dport 2222 dnat ip to 10.72.76.") && rules.contains("chain rv-a-0"),
            "{rules}"
        );
        assert_eq!(forwarding.trim(), "1");

        // What is taken, and what cannot be, leaves everything as it is.
        let mut key = |request: PortRequest, pair| ports.open(request, pair).unwrap_err();
        let same_port = key(own("b", &["127.0.0.1:2222:22"]), 0);
        assert!(
            same_port.to_string().contains("zone a has this port"),
            "{same_port}"
        );
        let mut same_mac = own("b", &[]);
        same_mac.mac = own("a", &[]).mac;
        let same_mac = key(same_mac, 0);
        assert!(
            same_mac
                .to_string()
                .contains("zone a's network device 0 has this address"),
            "{same_mac}"
        );
        let listener = std::net::TcpListener::bind("127.0.0.1:0").ok();
        if let Some(port) = listener.as_ref().and_then(|listener| listener.local_addr().ok()) {
            let in_use = key(own("b", &[&format!("{}:22", port.port())]), 0);
            assert!(in_use.to_string().contains("is in use"), "{in_use}");
        }
        let no_bridge = key(request("b", 1, Source::Bridge("br9".into())), 0);
        assert!(no_bridge.to_string().contains("no bridge br9"), "{no_bridge}");
        let no_tap = key(request("b", 1, Source::Tap("nosuch".into())), 0);
        assert!(
            no_tap.to_string().contains("no network interface nosuch"),
            "{no_tap}"
        );
        assert_eq!(traces().1, rules);

        ports.open(own("b", &["2223:22"]), 0).unwrap();
        assert!(traces().1.contains("dport 2223"));
        // A dnsmasq that ends at once is started anew with the next zone.
        let pid = || fs::read_to_string(directory.path().join("dnsmasq.pid")).unwrap();
        let first = pid();
        assert!(
            Command::new("kill")
                .args(["-KILL", first.trim()])
                .status()
                .unwrap()
                .success()
        );
        let network = ports.network().unwrap();
        let mut descriptors = [PollFd::new(network.server_ended().unwrap(), PollFlags::IN)];
        assert_eq!(poll(&mut descriptors, None), Ok(1));
        network.restart_server();
        assert!(network.server_ended().is_none());
        ports.open(own("c", &[]), 0).unwrap();
        assert_ne!(pid(), first);

        ports.close(|(zone, _)| zone == "a");
        let (_, rules, _) = traces();
        assert!(
            !rules.contains("dport 2222") && rules.contains("dport 2223"),
            "{rules}"
        );
        ports.close(|_| true);
        assert!(ports.is_empty());
        assert_eq!(traces(), before);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    });
}

/// What dnsmasq says is in the message, and nothing is left.
#[test]
fn a_network_whose_names_another_program_serves() {
    in_namespace(|| {
        if !has_tun() {
            return;
        }
        let before = traces();
        let _other = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut ports = Ports::new(directory.path());
        let error = ports.open(own("a", &[]), 0).unwrap_err().to_string();
        assert!(
            error.contains("dnsmasq does not start: ") && error.contains("in use"),
            "{error}"
        );
        assert!(ports.is_empty());
        assert_eq!(traces(), before);
    });
}

/// A bridge that an administrator made is used as it is: nothing is known of its addresses.
#[test]
fn a_bridge_of_that_name_which_an_administrator_made() {
    in_namespace(|| {
        if !has_tun() {
            return;
        }
        interface::make_bridge(OWN_BRIDGE, MacAddress::derived(&["bridge"])).unwrap();
        fs::write(format!("/sys/class/net/{OWN_BRIDGE}/ifalias"), "mine").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut ports = Ports::new(directory.path());
        let error = ports.open(own("a", &["2222:22"]), 0).unwrap_err();
        assert!(error.to_string().contains("did not make"), "{error}");
        ports.open(own("a", &[]), 0).unwrap();
        ports.close(|_| true);
        assert!(interface::exists(OWN_BRIDGE));
    });
}

#[test]
fn passt_is_started_and_says_what_it_lacks() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut ports = Ports::new(directory.path());
        let mut request = request("a", 0, Source::User);
        request.pairs = 1;
        let error = ports.open(request.clone(), 0).unwrap_err();
        assert!(error.to_string().contains("a default route"), "{error}");
        interface::make_bridge("up", MacAddress::derived(&["up"])).unwrap();
        interface::set_ipv4("up", [192, 168, 9, 2].into(), 24).unwrap();
        let route = Command::new("ip")
            .args(["route", "add", "default", "via", "192.168.9.1"])
            .status();
        assert!(route.unwrap().success());
        let descriptor = ports.open(request.clone(), 0).unwrap();
        drop(descriptor);
        request.port.forward = vec!["192.168.9.2:2222:22".parse().unwrap()];
        ports.open(request, 0).unwrap();
        ports.close(|_| true);
    });
}

/// A connection that has ended is replaced, event descriptors are the same as before.
#[test]
fn a_vhost_user_server_is_connected_to_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.sock");
    let mut ports = Ports::new(directory.path());
    let request = request("a", 0, Source::VhostUser(path.clone()));
    let error = ports.open(request.clone(), SOCKET).unwrap_err();
    assert_eq!(
        error.key.as_ref().map(|(key, _)| key.as_str()),
        Some("vhost_user")
    );
    assert!(
        ports.is_empty() && error.to_string().contains("does not run"),
        "{error}"
    );
    let listener = UnixListener::bind(&path).unwrap();
    let mut open = |number| ports.open(request.clone(), number);
    let first = UnixStream::from(open(SOCKET).unwrap());
    let peer = listener.accept().unwrap();
    // Two pairs.
    eventfd_write(&open(kick(3)).unwrap(), 7);
    assert!(open(call(3)).is_ok() && open(call(4)).is_err());
    let again = UnixStream::from(open(SOCKET).unwrap());
    drop(peer);
    assert_eq!(
        (&first).read(&mut [0]).unwrap() + (&again).read(&mut [0]).unwrap(),
        0
    );
    open(SOCKET).unwrap();
    listener.accept().unwrap();
    assert_eq!(eventfd_read(&open(kick(3)).unwrap()), 7);
    drop(listener);
    fs::remove_file(&path).unwrap();
    let error = open(SOCKET).unwrap_err();
    assert_eq!(
        error.key.as_ref().map(|(key, _)| key.as_str()),
        Some("vhost_user")
    );
}

fn eventfd_write(fd: &OwnedFd, value: u64) {
    assert_eq!(rustix::io::write(fd, &value.to_ne_bytes()), Ok(8));
}

fn eventfd_read(fd: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    assert_eq!(rustix::io::read(fd, &mut value), Ok(8));
    u64::from_ne_bytes(value)
}

/// A guest at the other end of a tap with one queue.
struct Guest {
    tap: File,
    mac: [u8; 6],
    ipv4: [u8; 4],
}

/// Bytes of the header before a frame, as a tap has it that no device has set up.
const TAP_HEADER: usize = 10;
const BROADCAST: [u8; 6] = [0xff; 6];
const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0, 0x66, 0x66, 0x66];

impl Guest {
    fn new(ports: &mut Ports, zone: &str, filter: bool, isolated: bool) -> Self {
        let mut request = own(zone, &[]);
        (request.pairs, request.port.filter, request.port.isolated) = (1, filter, isolated);
        let tap = File::from(ports.open(request, 0).unwrap());
        let host = ports.host(zone).unwrap();
        Self {
            tap,
            mac: host.mac.0,
            ipv4: host.ipv4.octets(),
        }
    }

    fn send(&self, source: [u8; 6], rest: &[&[u8]]) {
        let mut frame = vec![0; TAP_HEADER];
        frame.extend(BROADCAST);
        frame.extend(source);
        frame.extend(rest.concat());
        frame.resize(frame.len().max(TAP_HEADER + 60), 0);
        (&self.tap).write_all(&frame).unwrap();
    }

    /// Asks who has an address.
    fn ask(&self, sender: ([u8; 6], [u8; 4]), target: [u8; 4]) {
        let header: &[u8] = &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        self.send(self.mac, &[header, &sender.0, &sender.1, &[0; 6], &target]);
    }

    /// Sends an IPv4 packet of a protocol by which it is known.
    fn packet(&self, source: [u8; 4], protocol: u8) {
        let mut header = [
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255,
        ];
        header[12..16].copy_from_slice(&source);
        // Bridges may look at it, where the kernel has br_netfilter.
        let words = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        self.send(self.mac, &[&[8, 0], &header]);
    }

    /// Receives frames up to one that is `wanted`; returns those before it.
    fn receive_until(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut before = Vec::new();
        loop {
            let second = rustix::event::Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let mut descriptors = [PollFd::new(&self.tap, PollFlags::IN)];
            assert_eq!(
                poll(&mut descriptors, Some(&second)),
                Ok(1),
                "nothing came after {before:x?}"
            );
            let mut frame = [0; 2000];
            let read = (&self.tap).read(&mut frame).unwrap();
            let frame = &frame[TAP_HEADER..read];
            if wanted(frame) {
                return before;
            }
            before.push(frame.to_vec());
        }
    }
}

/// Returns whether a frame is an IPv4 packet of this protocol.
fn is_packet(protocol: u8) -> impl Fn(&[u8]) -> bool {
    move |frame| frame[12..14] == [8, 0] && frame[23] == protocol
}

/// What forged frames look like that no other rule knows: none may come through a filter.
fn is_forged(frame: &[u8]) -> bool {
    let arp = frame[12..14] == [8, 6] && (frame[31] == 99 || frame[22..28] == OTHER_MAC);
    frame[6..12] == OTHER_MAC || frame[12..14] == [0x88, 0xb5] || is_packet(201)(frame) || arp
}

#[test]
fn forged_packets_and_isolated_zones() {
    in_namespace(|| {
        if !has_tun() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut ports = Ports::new(directory.path());
        let isolated = Guest::new(&mut ports, "isolated", true, true);
        let filtered = Guest::new(&mut ports, "filtered", true, false);
        let open = Guest::new(&mut ports, "open", false, false);
        // Another MAC address, another protocol, another IP address, ARP in the name of another.
        let forge = |guest: &Guest| {
            guest.send(OTHER_MAC, &[&[0x88, 0xb6]]);
            guest.send(guest.mac, &[&[0x88, 0xb5]]);
            guest.packet([10, 72, 76, 99], 201);
            guest.ask((guest.mac, [10, 72, 76, 99]), [10, 72, 76, 98]);
            guest.ask((OTHER_MAC, guest.ipv4), [10, 72, 76, 99]);
            guest.packet(guest.ipv4, 200);
        };
        forge(&filtered);
        let before = open.receive_until(is_packet(200));
        assert!(!before.iter().any(|frame| is_forged(frame)), "{before:x?}");
        // Without a filter they arrive.
        forge(&open);
        let before = filtered.receive_until(is_packet(200));
        assert_eq!(
            before.iter().filter(|frame| is_forged(frame)).count(),
            5,
            "{before:x?}"
        );

        // An isolated zone reaches root alone, and is reached by no other.
        isolated.packet(isolated.ipv4, 202);
        isolated.ask((isolated.mac, isolated.ipv4), [10, 72, 76, 1]);
        let to_isolated =
            |frame: &[u8]| frame[12..14] == [8, 6] && frame[..6] == isolated.mac && frame[21] == 2;
        let before = isolated.receive_until(to_isolated);
        assert!(
            !before.iter().any(|frame| is_forged(frame)) && !before.iter().any(|frame| is_packet(200)(frame)),
            "{before:x?}"
        );
        filtered.packet(filtered.ipv4, 203);
        let before = open.receive_until(is_packet(203));
        assert!(
            !before.iter().any(|frame| frame[6..12] == isolated.mac),
            "{before:x?}"
        );
    });
}
