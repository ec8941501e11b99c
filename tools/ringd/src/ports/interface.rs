//! Network interfaces of root: bridges, their ports, addresses.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::device::net::config::OWN_BRIDGE;

/// Root's address on [`OWN_BRIDGE`], and its prefix.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 72, 76, 1);
const PREFIX: u32 = 24;

/// A bridge of root.
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Returns a bridge, made if it is [`OWN_BRIDGE`].
    ///
    /// # Errors
    /// There is none of this name.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        if !exists(name) {
            if name != OWN_BRIDGE {
                bail!(
                    "there is no bridge {name}: `ip link add {name} type bridge` makes one, and {OWN_BRIDGE} is made by \
                     itself"
                );
            }
            make().with_context(|| format!("cannot make the bridge {name}"))?;
        }
        if !Path::new("/sys/class/net").join(name).join("bridge").exists() {
            bail!("the network interface {name} is no bridge");
        }
        Ok(Self { name: name.into() })
    }

    /// Brings an interface up and makes it a port of the bridge.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, interface: &str) -> anyhow::Result<()> {
        let joined = join(&self.name, interface).and_then(|()| set_up(interface));
        joined.with_context(|| format!("cannot put {interface} on the bridge {}", self.name))?;
        // Root has no address on the port itself.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
        Ok(())
    }
}

/// Whether there is a network interface of this name.
pub fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Makes [`OWN_BRIDGE`] with an address, behind which root routes.
fn make() -> anyhow::Result<()> {
    let name = c_name(OWN_BRIDGE);
    let socket = socket()?;
    // SAFETY: a string that ends in zero and outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR as _, name.as_ptr()) })
        .context("the kernel refuses (`modprobe bridge`)")?;
    set_address(OWN_BRIDGE, SIOCSIFADDR, ADDRESS)?;
    set_address(
        OWN_BRIDGE,
        SIOCSIFNETMASK,
        Ipv4Addr::from(u32::MAX << (32 - PREFIX)),
    )?;
    set_up(OWN_BRIDGE)?;
    tracing::info!(bridge = OWN_BRIDGE, address = %ADDRESS, "made a bridge");
    Ok(())
}

const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFMTU: u32 = 0x8922;
const SIOCBRADDBR: u32 = 0x89a0;
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
    let mut request = ioctl(SIOCGIFFLAGS, request(name))?;
    // SAFETY: the kernel has stored the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
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
    use super::{Bridge, OWN_BRIDGE, exists, set_mtu};

    /// In a network namespace of its own, where that is permitted.
    #[test]
    fn a_bridge_and_its_ports() {
        // SAFETY: it affects only this thread, which the test harness ends after the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        let error = Bridge::find("br9").map(drop).unwrap_err().to_string();
        assert!(
            error.contains("no bridge br9") && error.contains(OWN_BRIDGE),
            "{error}"
        );
        let error = Bridge::find("lo").map(drop);
        // sysfs shows the interfaces of the namespace that mounted it, which have a `lo` as well.
        assert!(error.unwrap_err().to_string().contains("is no bridge"));
        assert!(exists("lo") && !exists("br9"));
        assert!(set_mtu("lo", 9000).is_ok() && set_mtu("br9", 9000).is_err());
    }
}
