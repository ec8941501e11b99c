//! The network driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor, with a real port behind.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ringvirtio::fake::{FakeDevice, FakeTransport, Ram, with_reactor};
use ringvirtio::{QueueHandler, QueueSetup};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use super::ports::{arp, bring_up, own_network};
use super::rig::{MAC, config};
use crate::port::HEADER;
use crate::{Net, Port, QUEUE_SIZE_MAX, Stream, Tap, tap};

/// The device under test.
struct Tested(Arc<Net>);

impl FakeDevice for Tested {
    const TYPE: DeviceType = DeviceType::Network;
    const QUEUE_SIZE_MAX: u16 = QUEUE_SIZE_MAX;

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn config(&self) -> Vec<u8> {
        self.0.space().to_vec()
    }

    fn queue(&self, number: u16, setup: QueueSetup) -> Box<dyn QueueHandler> {
        self.0.queue(number, setup).unwrap().0
    }
}

type Driver = VirtIONetRaw<Ram, FakeTransport<Tested>, 16>;

/// Runs `guest` with a driver of a device with this port, on a reactor with io_uring and on one without.
fn with_driver(port: impl Fn() -> Arc<dyn Port>, guest: impl Fn(&mut Driver)) {
    for io_uring in [true, false] {
        with_reactor(io_uring, |handle| {
            let port = port();
            let net = Net::new(config(1), port.offloads(), None);
            net.attach(port).unwrap();
            let mut driver = Driver::new(FakeTransport::new(Tested(net), handle)).unwrap();
            assert_eq!(driver.mac_address(), MAC.0);
            guest(&mut driver);
        });
    }
}

/// Waits for a frame for which `wanted` holds.
fn receive(driver: &mut Driver, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let mut buffer = vec![0; 2048];
        let (header, len) = driver.receive_wait(&mut buffer).unwrap();
        assert_eq!(header, HEADER);
        let frame = buffer[header..header + len].to_vec();
        if wanted(&frame) {
            return frame;
        }
    }
}

/// An echo behind the stream: what the guest sends comes back, frames of many sizes.
#[test]
fn a_driver_and_a_stream() {
    let port = || {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = theirs.read(&mut bytes) {
                if theirs.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
        });
        Arc::new(Stream::new(ours.into()).unwrap()) as Arc<dyn Port>
    };
    with_driver(port, |driver| {
        for round in 0..60_usize {
            let frame: Vec<u8> = (0..14 + round * 31 % 1500)
                .map(|byte| (byte ^ round) as u8)
                .collect();
            driver.send(&frame).unwrap();
            assert!(receive(driver, |_| true) == frame);
        }
    });
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// An echo request of 10.0.0.2 to 10.0.0.1.
fn ping(to: &[u8], sequence: u16, len: usize) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 0, 1];
    echo.extend(sequence.to_be_bytes());
    echo.extend((0..len).map(|byte| byte as u8));
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + echo.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [to, &MAC.0, &[8, 0], &ip, &echo].concat()
}

/// The host's kernel answers a guest's pings over a tap.
#[test]
fn a_driver_and_a_tap() {
    if !own_network() {
        return;
    }
    let port = || {
        let queues = tap::open("tap0", 1).unwrap();
        bring_up("tap0", [10, 0, 0, 1]);
        Arc::new(Tap::new(queues).unwrap()) as Arc<dyn Port>
    };
    with_driver(port, |driver| {
        driver.send(&arp(MAC.0, [10, 0, 0, 1])).unwrap();
        let reply = receive(driver, |frame| frame[12..14] == [8, 6] && frame[21] == 2);
        let host = &reply[6..12];
        for sequence in 0..40 {
            let len = usize::from(sequence) * 37 % 1400;
            driver.send(&ping(host, sequence, len)).unwrap();
            let reply = receive(driver, |frame| frame[12..14] == [8, 0] && frame[34] == 0);
            assert_eq!(reply[40..42], sequence.to_be_bytes());
            assert_eq!(reply.len(), 42 + len);
            assert_eq!(checksum(&reply[34..]), [0, 0]);
        }
    });
}
