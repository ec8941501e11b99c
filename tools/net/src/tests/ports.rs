//! Ports on real descriptors: a stream socket, and tap devices in a network namespace of their own.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use ringvirtio::memory::IoVec;

use crate::port::stream::SEND_MAX;
use crate::port::{HEADER, Port};
use crate::{Stream, Tap, tap};

/// Receives a packet into buffers of these sizes. Returns it with its header.
fn receive(port: &dyn Port, pair: u16, sizes: &[usize]) -> io::Result<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
    let parts: Vec<_> = buffers.iter_mut().map(|buffer| IoVec::of(buffer)).collect();
    // SAFETY: the buffers outlive the call.
    let len = unsafe { port.receive(pair, &parts) }?;
    let mut packet = buffers.concat();
    packet.truncate(len);
    Ok(packet)
}

/// Sends a packet, its header in a buffer of its own.
fn send(port: &dyn Port, pair: u16, packet: &[u8]) -> io::Result<()> {
    let (header, frame) = packet.split_at(HEADER);
    // SAFETY: the buffers outlive the call.
    unsafe { port.send(pair, &[IoVec::reading(header), IoVec::reading(frame)]) }
}

fn packet(len: usize, seed: u8) -> Vec<u8> {
    (0..HEADER + len)
        .map(|index| if index < HEADER { 0 } else { index as u8 ^ seed })
        .collect()
}

fn stream() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(ours.into()).unwrap(), theirs)
}

#[test]
fn frames_behind_their_lengths() {
    let (port, mut peer) = stream();
    for len in [0, 1, 14, 1514, SEND_MAX] {
        send(&port, 0, &packet(len, 1)).unwrap();
        let mut bytes = vec![0; 4 + len];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..4], (len as u32).to_be_bytes());
        assert!(bytes[4..] == packet(len, 1)[HEADER..]);
        peer.write_all(&bytes).unwrap();
        assert!(
            receive(&port, 0, &[5, 100, 40_000]).unwrap() == packet(len, 1),
            "{len} bytes"
        );
    }
    let error = send(&port, 0, &packet(SEND_MAX + 1, 1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(
        receive(&port, 0, &[2000]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

/// A frame is taken off only when all of it is there: a daemon that is killed leaves the next one a stream
/// that begins with a frame.
// torture k2
#[test]
fn frames_that_arrive_in_pieces() {
    let (port, mut peer) = stream();
    let mut bytes = Vec::new();
    for (len, seed) in [(60, 1), (70, 2)] {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(&packet(len, seed)[HEADER..]);
    }
    let mut received = Vec::new();
    for piece in bytes.chunks(7) {
        peer.write_all(piece).unwrap();
        match receive(&port, 0, &[HEADER, 2000]) {
            Ok(packet) => received.push(packet),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(received, [packet(60, 1), packet(70, 2)]);
}

/// What does not fit is lost, and the next frame is found.
#[test]
fn a_frame_larger_than_the_buffers() {
    let (port, mut peer) = stream();
    for seed in [1, 2] {
        peer.write_all(&100_u32.to_be_bytes()).unwrap();
        peer.write_all(&packet(100, seed)[HEADER..]).unwrap();
    }
    let mut buffer = [0; HEADER + 50];
    // SAFETY: the buffer outlives the call.
    let len = unsafe { port.receive(0, &[IoVec::of(&mut buffer)]) }.unwrap();
    assert_eq!((len, &buffer[HEADER..]), (HEADER + 100, &packet(50, 1)[HEADER..]));
    assert_eq!(receive(&port, 0, &[200]).unwrap(), packet(100, 2));
}

/// Frames are sent wholly or not at all, however full the socket is.
// torture k2
#[test]
fn a_full_socket_has_whole_frames() {
    let (port, mut peer) = stream();
    let mut sent = 0_u8;
    while send(&port, 0, &packet(9000, sent)).is_ok() {
        sent += 1;
    }
    assert!(sent > 5, "{sent} frames");
    let mut bytes = vec![0; 9004];
    for seed in 0..sent {
        peer.read_exact(&mut bytes).unwrap();
        assert!(bytes[4..] == packet(9000, seed)[HEADER..]);
    }
    send(&port, 0, &packet(14, 0)).unwrap();
    peer.read_exact(&mut bytes[..18]).unwrap();
    assert_eq!(bytes[..4], [0, 0, 0, 14]);
}

#[test]
fn peers_that_leave_or_make_no_sense() {
    let (port, peer) = stream();
    drop(peer);
    assert_eq!(
        receive(&port, 0, &[2000]).unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(
        send(&port, 0, &packet(60, 1)).unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    let (port, mut peer) = stream();
    peer.write_all(b"HTTP/1.1 200 OK").unwrap();
    assert_eq!(
        receive(&port, 0, &[2000]).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
}

/// Gives this thread a network namespace of its own. Returns `false` where that is not permitted.
pub fn own_network() -> bool {
    // SAFETY: it affects only this thread, which the test harness ends after the test.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("skipped: a network namespace needs root");
        return false;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: there is no /dev/net/tun");
        return false;
    }
    true
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is integers and arrays of them, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl(socket: RawFd, number: libc::c_ulong, mut request: libc::ifreq) {
    // SAFETY: the request outlives the call.
    let result = unsafe { libc::ioctl(socket, number as _, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Brings an interface up with an address of 10.0.0.0/8.
pub fn bring_up(name: &str, address: [u8; 4]) {
    const SIOCSIFFLAGS: libc::c_ulong = 0x8914;
    const SIOCSIFADDR: libc::c_ulong = 0x8916;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    let mut with_address = request(name);
    // SAFETY: the union has room for a sockaddr_in, whose bytes may be anything.
    unsafe {
        let to = (&raw mut with_address.ifr_ifru).cast::<libc::sockaddr_in>();
        (*to).sin_family = libc::AF_INET as libc::sa_family_t;
        (*to).sin_addr.s_addr = u32::from_ne_bytes(address);
    }
    ioctl(socket, SIOCSIFADDR, with_address);
    let mut with_flags = request(name);
    with_flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(socket, SIOCSIFFLAGS, with_flags);
    // SAFETY: the descriptor has no other owner.
    unsafe { libc::close(socket) };
}

/// An ARP request of 10.0.0.2 for `target`.
pub fn arp(from: [u8; 6], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(from);
    frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

/// Waits for a packet of a certain EtherType; others, such as the kernel's own announcements, are skipped.
fn receive_type(port: &dyn Port, pairs: u16, ether_type: [u8; 2]) -> (u16, Vec<u8>) {
    loop {
        for pair in 0..pairs {
            match receive(port, pair, &[HEADER, 70_000]) {
                Ok(packet) if packet[HEADER + 12..HEADER + 14] == ether_type => return (pair, packet),
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let mut fds: Vec<_> = (0..pairs)
            .map(|pair| libc::pollfd {
                fd: port.fd(pair).unwrap(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: that many entries.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 10_000) };
        assert!(ready > 0, "nothing came for ten seconds");
    }
}

#[test]
fn a_tap_device() {
    if !own_network() {
        return;
    }
    let queues = tap::open("tap0", 1).unwrap();
    let second = tap::open("tap0", 1);
    assert_eq!(second.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    let port = Tap::new(queues).unwrap();
    assert!(port.offloads().tcp && port.has_header());
    assert_eq!(
        receive(&port, 0, &[2000]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let request = [vec![0; HEADER], arp([2, 0, 0, 0, 0, 1], [10, 0, 0, 1])].concat();
    assert!(send(&port, 0, &request).is_err(), "the interface is down");
    bring_up("tap0", [10, 0, 0, 1]);
    send(&port, 0, &request).unwrap();
    let (_, reply) = receive_type(&port, 1, [8, 6]);
    let arp = &reply[HEADER + 14..];
    assert_eq!((arp[7], &arp[14..18]), (2, &[10, 0, 0, 1][..]));
    assert_eq!(reply[..HEADER - 2], [0; 10], "no offload is needed");
    // A header that promises more than there is.
    let mut wrong = request;
    wrong[..4].copy_from_slice(&[1, 1, 0xff, 0xff]);
    assert!(send(&port, 0, &wrong).is_err());
}

/// A second process, or the next one, has the same queue by its descriptor.
#[test]
fn a_tap_outlives_its_port() {
    if !own_network() {
        return;
    }
    let queues = tap::open("tap0", 1).unwrap();
    let kept: Vec<OwnedFd> = queues.iter().map(|queue| queue.try_clone().unwrap()).collect();
    let port = Tap::new(queues).unwrap();
    port.set_guest_offloads(1 << 1 | 1 << 7).unwrap();
    bring_up("tap0", [10, 0, 0, 1]);
    let request = [vec![0; HEADER], arp([2, 0, 0, 0, 0, 1], [10, 0, 0, 1])].concat();
    send(&port, 0, &request).unwrap();
    drop(port);
    let port = Tap::new(kept).unwrap();
    let (_, reply) = receive_type(&port, 1, [8, 6]);
    assert_eq!(reply[HEADER + 14 + 7], 2, "the reply to what the first one sent");
}

/// Only the pairs in use have packets.
#[test]
fn a_tap_with_several_queues() {
    if !own_network() {
        return;
    }
    let port = Tap::new(tap::open("tap0", 3).unwrap()).unwrap();
    assert_eq!(port.pairs(), 3);
    bring_up("tap0", [10, 0, 0, 1]);
    let request = [vec![0; HEADER], arp([2, 0, 0, 0, 0, 1], [10, 0, 0, 1])].concat();
    for (active, pair) in [(1, 0), (3, 2), (2, 1), (1, 0)] {
        port.set_active_pairs(active).unwrap();
        port.set_active_pairs(active).unwrap();
        send(&port, pair, &request).unwrap();
        // Which queue the kernel takes is its own business, but it is one that is in use.
        receive_type(&port, active, [8, 6]);
    }
}

/// Checksums are left to the guest where its driver completes them, and are complete where not.
#[test]
fn checksums_over_a_tap() {
    if !own_network() {
        return;
    }
    let port = Tap::new(tap::open("tap0", 1).unwrap()).unwrap();
    bring_up("tap0", [10, 0, 0, 1]);
    let socket = std::net::UdpSocket::bind("10.0.0.1:9").unwrap();
    for (guest, flags) in [(0, 0), (1 << 1, 1)] {
        port.set_guest_offloads(guest).unwrap();
        socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
        send(
            &port,
            0,
            &[vec![0; HEADER], arp([2, 0, 0, 0, 0, 1], [10, 0, 0, 1])].concat(),
        )
        .unwrap();
        // The kernel asks for 10.0.0.2 before it sends, unless it knows it from the request above.
        let reply = [
            vec![0; HEADER],
            [
                &[0xff; 6][..],
                &[2, 0, 0, 0, 0, 1],
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            ]
            .concat(),
            vec![2, 0, 0, 0, 0, 1, 10, 0, 0, 2],
            vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 0, 0, 1],
        ];
        send(&port, 0, &reply.concat()).unwrap();
        let (_, datagram) = receive_type(&port, 1, [8, 0]);
        assert_eq!(datagram[0] & 1, flags);
        assert_eq!(datagram[datagram.len() - 100..], [7; 100]);
    }
}

#[test]
fn names_that_no_tap_can_have() {
    for name in ["", "a-name-that-is-too-long", "a/b", "tap%d"] {
        assert_eq!(
            tap::open(name, 1).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{name}"
        );
    }
}

#[test]
fn descriptors_that_are_no_tap() {
    assert_eq!(
        Tap::new(Vec::new()).map(drop).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(file.as_raw_fd() >= 0 && Tap::new(vec![file.into()]).is_err());
}
