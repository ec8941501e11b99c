//! Network interfaces of root: bridges, their ports, addresses.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ringnet::MacAddress;

use crate::device::net::config::OWN_BRIDGE;

/// What a bridge of ours has as its alias, by which a later keeper knows it.
const ALIAS: &str = "made by ringd";

/// Checks that there is a bridge of this name.
///
/// # Errors
/// There is none.
pub fn check_bridge(name: &str) -> anyhow::Result<()> {
    if !exists(name) {
        bail!(
            "there is no bridge {name}: `ip link add {name} type bridge` makes one, and {OWN_BRIDGE} is made by itself"
        );
    }
    if !path(name).join("bridge").exists() {
        bail!("the network interface {name} is no bridge");
    }
    Ok(())
}

/// Brings an interface up and makes it a port of a bridge.
///
/// # Errors
/// The system's.
pub fn add_port(bridge: &str, interface: &str) -> anyhow::Result<()> {
    let joined = join(bridge, interface).and_then(|()| set_up(interface));
    joined.with_context(|| format!("cannot put {interface} on the bridge {bridge}"))?;
    // Root has no address on the port itself.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
    Ok(())
}

fn path(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

/// Returns the interface of root that has this address; ports of ours are left out.
pub fn with_mac(mac: MacAddress) -> Option<String> {
    let wanted = mac.to_string();
    let entries = fs::read_dir("/sys/class/net").ok()?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| !name.starts_with("rv-"))
        .find(|name| fs::read_to_string(path(name).join("address")).is_ok_and(|mac| mac.trim() == wanted))
}

/// Whether there is a network interface of this name.
pub fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Whether a bridge was made by [`make_bridge`].
pub fn is_ours(name: &str) -> bool {
    fs::read_to_string(path(name).join("ifalias")).is_ok_and(|alias| alias.trim() == ALIAS)
}

/// Makes a bridge with an address that does not change with its ports, and brings it up.
///
/// # Errors
/// The system's; there is no bridge then.
pub fn make_bridge(name: &str, mac: MacAddress) -> anyhow::Result<()> {
    let socket = socket()?;
    let bytes = c_name(name);
    // SAFETY: a string that ends in zero and outlives the call.
    let made = checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR as _, bytes.as_ptr()) });
    made.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => anyhow::anyhow!("{error}; the daemon must run as root, with CAP_NET_ADMIN"),
        Some(libc::ENOPKG | libc::ENOTTY | libc::EOPNOTSUPP) => {
            anyhow::anyhow!("{error}; the kernel has no bridges (`modprobe bridge`)")
        }
        _ => error.into(),
    })?;
    let finish = || -> anyhow::Result<()> {
        fs::write(path(name).join("ifalias"), ALIAS).context("cannot set its alias")?;
        set_mac(name, mac).context("cannot set its address")?;
        // Its addresses can be used at once, without a port that is up.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
        set_up(name).context("cannot bring it up")
    };
    finish().inspect_err(|_| remove_bridge(name))
}

/// Removes a bridge, if there is one.
pub fn remove_bridge(name: &str) {
    let removed = set_flags(name, 0, libc::IFF_UP).and_then(|()| {
        let bytes = c_name(name);
        // SAFETY: a string that ends in zero and outlives the call.
        checked(unsafe { libc::ioctl(socket()?.as_raw_fd(), SIOCBRDELBR as _, bytes.as_ptr()) })
    });
    if let Err(error) = removed
        && exists(name)
    {
        tracing::warn!(bridge = name, %error, "cannot remove a bridge");
    }
}

/// Gives an interface an address of IPv4.
///
/// # Errors
/// The system's.
pub fn set_ipv4(name: &str, address: Ipv4Addr, prefix: u32) -> io::Result<()> {
    set_address(name, SIOCSIFADDR, address)?;
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
    set_address(name, SIOCSIFNETMASK, Ipv4Addr::from(mask))
}

/// Gives an interface an address of IPv6.
///
/// # Errors
/// The system's; that it has the address already is none.
pub fn add_ipv6(name: &str, address: Ipv6Addr, prefix: u32) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let index = rustix::net::netdevice::name_to_index(&socket, name)?;
    let request = Ipv6Request {
        address: address.octets(),
        prefix,
        index: index as libc::c_int,
    };
    // SAFETY: the request outlives the call.
    match checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFADDR as _, &raw const request) }) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// The kernel's `in6_ifreq`.
#[repr(C)]
struct Ipv6Request {
    address: [u8; 16],
    prefix: u32,
    index: libc::c_int,
}

fn set_mac(name: &str, mac: MacAddress) -> io::Result<()> {
    let mut request = request(name);
    // SAFETY: the union holds a sockaddr, whose fields are integers.
    let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = from as libc::c_char;
    }
    ioctl(SIOCSIFHWADDR, request).map(drop)
}

const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFMTU: u32 = 0x8922;
const SIOCSIFHWADDR: u32 = 0x8924;
const SIOCBRADDBR: u32 = 0x89a0;
const SIOCBRDELBR: u32 = 0x89a1;
const SIOCBRADDIF: u32 = 0x89a2;

fn socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn c_name(name: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    let room = bytes.iter_mut().take(libc::IFNAMSIZ - 1);
    room.zip(name.bytes())
        .for_each(|(to, from)| *to = from as libc::c_char);
    bytes
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is integers and arrays of them, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = c_name(name);
    request
}

/// One request about an interface. Returns what the kernel left in it.
fn ioctl(number: u32, mut request: libc::ifreq) -> io::Result<libc::ifreq> {
    let socket = socket()?;
    // SAFETY: the request outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw mut request) })?;
    Ok(request)
}

fn set_address(name: &str, number: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    let wanted = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the union has room for a sockaddr_in, and is aligned for any of its fields.
    unsafe {
        (&raw mut request.ifr_ifru)
            .cast::<libc::sockaddr_in>()
            .write_unaligned(wanted)
    };
    ioctl(number, request).map(drop)
}

/// Sets the MTU of an interface.
///
/// # Errors
/// The system's.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    ioctl(SIOCSIFMTU, request).map(drop)
}

fn set_up(name: &str) -> io::Result<()> {
    set_flags(name, libc::IFF_UP, 0)
}

fn set_flags(name: &str, set: libc::c_int, clear: libc::c_int) -> io::Result<()> {
    let mut request = ioctl(SIOCGIFFLAGS, request(name))?;
    // SAFETY: the kernel has stored the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags & !(clear as libc::c_short) | set as libc::c_short;
    ioctl(SIOCSIFFLAGS, request).map(drop)
}

fn join(bridge: &str, interface: &str) -> io::Result<()> {
    let index = rustix::net::netdevice::name_to_index(socket()?, interface)?;
    let mut request = request(bridge);
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    ioctl(SIOCBRADDIF, request).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{
        add_ipv6, check_bridge, exists, is_ours, make_bridge, remove_bridge, set_ipv4, set_mtu, with_mac,
    };
    use crate::ports::tests::in_namespace;

    #[test]
    fn a_bridge_is_made_and_removed() {
        in_namespace(|| {
            let error = check_bridge("br9").unwrap_err().to_string();
            assert!(
                error.contains("no bridge br9") && error.contains("ringvisor0"),
                "{error}"
            );
            assert!(
                check_bridge("lo")
                    .unwrap_err()
                    .to_string()
                    .contains("is no bridge")
            );
            assert!(exists("lo") && !exists("br9"));
            assert!(set_mtu("lo", 9000).is_ok() && set_mtu("br9", 9000).is_err());
            let mac = "02:00:00:00:00:09".parse().unwrap();
            assert!(with_mac(mac).is_none());
            make_bridge("br9", mac).unwrap();
            check_bridge("br9").unwrap();
            assert!(is_ours("br9") && !is_ours("lo"));
            assert_eq!(with_mac(mac).as_deref(), Some("br9"));
            set_ipv4("br9", [10, 1, 2, 3].into(), 24).unwrap();
            for _ in 0..2 {
                add_ipv6("br9", "fd00::1".parse().unwrap(), 64).unwrap();
            }
            assert!(make_bridge("br9", mac).is_err());
            remove_bridge("br9");
            assert!(!exists("br9"));
        });
    }
}
