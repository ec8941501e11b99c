//! [`Tap`]: a tap device of the host, a queue for each pair.
//!
//! Packets carry the header of virtio (`IFF_VNET_HDR`), so checksums and segmentation are left to the last
//! one that has the packet. The descriptors may have been opened by another process, or used by an earlier
//! one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ringvirtio::memory::IoVec;
use ringvirtio::virtio::feature;

use super::{HEADER, Port, sys};
use crate::offloads::{self, Offloads};
use crate::virtio::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

/// Longest name of a network interface (`IFNAMSIZ` without the terminating zero).
pub const NAME_MAX: usize = 15;

/// Feature bits and the flags of TUNSETOFFLOAD that let such packets come.
const FLAGS: [(u32, libc::c_uint); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];

/// A tap device.
pub struct Tap {
    queues: Vec<OwnedFd>,
    offloads: Offloads,
}

/// Opens the queues of the tap device `name`, which is created if there is none, for [`Tap::new`].
///
/// # Errors
/// The system's: no rights, a name that is taken by another kind of interface, a tap that is in use.
pub fn open(name: &str, pairs: u16) -> io::Result<Vec<OwnedFd>> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['\0', '/', '%']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    (0..pairs).map(|_| open_queue(name, pairs > 1)).collect()
}

fn open_queue(name: &str, several: bool) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an ifreq is integers and arrays of them, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(file.into())
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A request whose argument is a pointer to an int.
fn set(fd: RawFd, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int, which outlives the call.
    checked(unsafe { libc::ioctl(fd, request as _, &raw const value) })
}

fn set_offload(fd: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: no pointers: the argument is the value.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
}

impl Tap {
    /// Takes the descriptors of a tap's queues, one for each pair.
    ///
    /// # Errors
    /// They are none, or the kernel lacks what a tap has had since Linux 3.8.
    pub fn new(queues: Vec<OwnedFd>) -> io::Result<Self> {
        let Some(first) = queues.first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        for queue in &queues {
            sys::set_nonblocking(queue.as_raw_fd())?;
        }
        // Header and offloads are of the whole device.
        let first = first.as_raw_fd();
        set(first, libc::TUNSETVNETHDRSZ, HEADER as libc::c_int)?;
        set(first, libc::TUNSETVNETLE, 1)?;
        // Segmentation of UDP: since Linux 6.2. Nothing comes before the driver has negotiated.
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let udp = set_offload(first, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok();
        set_offload(first, 0)?;
        Ok(Self {
            queues,
            offloads: Offloads { tcp: true, udp },
        })
    }
}

impl Port for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.queues.get(usize::from(pair)).map(AsRawFd::as_raw_fd)
    }

    fn has_header(&self) -> bool {
        true
    }

    unsafe fn receive(&self, pair: u16, room: &[IoVec]) -> io::Result<usize> {
        let fd = self.fd(pair).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: by the contract of this function.
        unsafe { sys::read(fd, room) }
    }

    unsafe fn send(&self, pair: u16, packet: &[IoVec]) -> io::Result<()> {
        let fd = self.fd(pair).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: by the contract of this function.
        unsafe { sys::write(fd, packet) }.map(drop)
    }

    fn set_guest_offloads(&self, guest: u64) -> io::Result<()> {
        let flags = FLAGS
            .iter()
            .filter(|(number, _)| guest & offloads::GUEST & feature(*number) != 0)
            .fold(0, |all, (_, flag)| all | flag);
        // The kernel takes USO of both versions of IP, or of none.
        let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let flags = if flags & uso == uso { flags } else { flags & !uso };
        let first = self.fd(0).ok_or(io::ErrorKind::NotFound)?;
        set_offload(first, flags)
    }

    fn set_active_pairs(&self, count: u16) -> io::Result<()> {
        if self.queues.len() < 2 {
            return Ok(());
        }
        for (index, queue) in self.queues.iter().enumerate() {
            let active = index < usize::from(count);
            // SAFETY: an ifreq is integers and arrays of them, for which zeroes are valid.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            let flags = if active {
                libc::IFF_ATTACH_QUEUE
            } else {
                libc::IFF_DETACH_QUEUE
            };
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: the request outlives the call.
            let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE as _, &raw mut request) };
            match checked(result) {
                // It is attached or detached already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        Ok(())
    }
}
