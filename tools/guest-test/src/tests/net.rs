//! The network device (virtio 1.2, 5.1), if there is one: through virtio-drivers, by hand, and with invalid
//! chains and commands. Root answers ARP requests for its own address on `ringvisor0`.

use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::mmio::MmioTransport;

use super::queue::{NEXT, Queue, WRITE};
use crate::context::Context;
use crate::hal::GuestHal;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::CONFIG;
use crate::virtio::{NET, Slot};
use crate::{check, check_eq, time};

type Net = VirtIONetRaw<GuestHal, MmioTransport<'static>, 16>;

/// Bytes of `struct virtio_net_hdr` (5.1.6).
const HEADER: usize = 12;
/// Bytes of an ARP request or reply with its Ethernet header.
const ARP: usize = 42;
/// Feature bits (5.1.3).
const MRG_RXBUF: u64 = 1 << 15;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const CTRL_MAC_ADDR: u64 = 1 << 23;
/// Numbers of the queues, without MQ; the receive queue is the first.
const TX: u32 = 1;
const CONTROL: u32 = 2;
/// Root's address on the bridge, and one that the guest uses.
const ROOT: [u8; 4] = [10, 72, 76, 1];
const OWN: [u8; 4] = [10, 72, 76, 77];

/// Runs the group on every network device.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    for slot in Slot::with(context.machine, NET) {
        let _ = context.gic.enable_interrupt(slot.device.intid, None, false);
        suite.test_unless(reference, "the driver asks root for its address", || {
            address_of_root(slot)
        });
        suite.test_unless(reference, "a packet in several buffers", || merged(slot));
        suite.test_unless(reference, "a packet to be sent in one-byte buffers", || {
            scattered(slot)
        });
        suite.test_unless(reference, "commands", || commands(slot));
        suite.test_unless(reference, "packets that are none", || bad_packets(slot));
        suite.test_unless(reference, "receive buffers that are none", || bad_buffers(slot));
        suite.test_unless(reference, "commands that are none", || bad_commands(slot));
        suite.test_unless(reference, "no packet comes after a reset", || {
            nothing_after_reset(slot)
        });
        suite.test_unless(reference, "and it works again", || address_of_root(slot));
        let _ = slot.reset();
    }
}

fn mac(slot: Slot) -> [u8; 6] {
    core::array::from_fn(|index| slot.read_byte(CONFIG + index as u64))
}

/// An ARP request for root's address.
fn request(mac: [u8; 6]) -> [u8; ARP] {
    let mut frame = [0; ARP];
    let mut parts = [
        &[0xff; 6][..],
        &mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &OWN,
        &[0; 6],
        &ROOT,
    ]
    .into_iter()
    .flatten();
    frame.fill_with(|| parts.next().copied().unwrap_or(0));
    frame
}

/// Whether a frame is root's reply to this address.
fn is_reply(frame: &[u8], mac: [u8; 6]) -> bool {
    frame.get(..6) == Some(&mac[..])
        && frame.get(12..14) == Some(&[8, 6])
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&ROOT[..])
}

fn address_of_root(slot: Slot) -> TestResult {
    let transport = slot
        .transport()
        .ok_or_else(|| Failure::new(format_args!("virtio-drivers finds no device")))?;
    let mut net = Net::new(transport).map_err(|error| Failure::new(format_args!("set-up: {error}")))?;
    let mac = net.mac_address();
    check_eq!(mac[0] & 1, 0, "the multicast bit of the device's address");
    for round in 0..20 {
        let sent = net.send(&request(mac));
        sent.map_err(|error| Failure::new(format_args!("request {round}: {error}")))?;
        let mut answered = false;
        // Root may say other things meanwhile.
        for _ in 0..50 {
            let mut buffer = [0; 2048];
            // SAFETY: the buffer is not used until it was completed, or the device was reset.
            let token = unsafe { net.receive_begin(&mut buffer) };
            let token = token.map_err(|error| Failure::new(format_args!("buffer: {error}")))?;
            if !time::wait(5000, || net.poll_receive() == Some(token)) {
                let _ = slot.reset();
                break;
            }
            // SAFETY: the buffer that was given with this token.
            let received = unsafe { net.receive_complete(token, &mut buffer) };
            let (header, len) =
                received.map_err(|error| Failure::new(format_args!("reply {round}: {error}")))?;
            check_eq!(header, HEADER, "bytes of the header");
            check_eq!(buffer[10], 1, "num_buffers");
            if is_reply(&buffer[header..header + len], mac) {
                answered = true;
                break;
            }
        }
        check!(answered, "no reply to request {round}");
    }
    Ok(())
}

/// The queues of a device that is in use.
struct Queues {
    rx: Queue,
    tx: Queue,
    control: Queue,
}

impl Queues {
    fn new(slot: Slot) -> Result<Self, Failure> {
        let rx = Queue::new(slot, MRG_RXBUF | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR)?;
        let queues = Self {
            rx,
            tx: Queue::numbered(slot, TX)?,
            control: Queue::numbered(slot, CONTROL)?,
        };
        queues.rx.driver_ok();
        Ok(queues)
    }

    /// Sends an ARP request in buffers of `part` bytes.
    fn ask(&mut self, mac: [u8; 6], part: usize) -> TestResult {
        let data = self.tx.data();
        let mut packet = [0_u8; HEADER + ARP];
        packet[HEADER..].copy_from_slice(&request(mac));
        self.tx.set(data, packet);
        let count = packet.len().div_ceil(part);
        for index in 0..count {
            let len = part.min(packet.len() - index * part);
            let flags = if index + 1 < count { NEXT } else { 0 };
            let at = data + (index * part) as u64;
            self.tx
                .describe(index as u16, at, len as u32, flags, index as u16 + 1);
        }
        self.tx.offer(0);
        self.tx.notify();
        check!(
            time::wait(5000, || self.tx.is_done()),
            "the packet is not sent: used.idx {}",
            self.tx.used()
        );
        Ok(())
    }

    /// Carries out a command of class, command and one byte or an address; returns its result.
    fn command<const N: usize>(&mut self, command: [u8; N]) -> Result<u8, Failure> {
        let (data, ack) = (self.control.data(), self.control.data() + 64);
        self.control.set(data, command);
        self.control.set(ack, 0xee_u8);
        self.control.describe(0, data, N as u32, NEXT, 1);
        self.control.describe(1, ack, 1, WRITE, 0);
        self.control.offer(0);
        self.control.notify();
        check!(
            time::wait(5000, || self.control.is_done()),
            "a command does not complete"
        );
        Ok(self.control.get(ack))
    }
}

/// 5.1.6.3.2: a packet may be in several buffers, and all of them are used at once.
fn merged(slot: Slot) -> TestResult {
    /// Bytes of a buffer.
    const PART: u64 = 16;
    let mut queues = Queues::new(slot)?;
    let mac = mac(slot);
    let data = queues.rx.data();
    for index in 0..60 {
        queues
            .rx
            .describe(index, data + u64::from(index) * PART, PART as u32, WRITE, 0);
        queues.rx.offer(index);
    }
    queues.rx.notify();
    queues.ask(mac, HEADER + ARP)?;
    let mut first = 0;
    check!(time::wait(5000, || queues.rx.used() != 0), "nothing is received");
    // Packets that are not the reply may come before it.
    for _ in 0..10 {
        let used = queues.rx.used();
        let at = data + u64::from(first) * PART;
        let count = queues.rx.get::<u16>(at + 10);
        check!(
            count > 0 && first + count <= used,
            "num_buffers {count}, used.idx {used}"
        );
        let bytes: [u8; 64] = queues.rx.get(at);
        if is_reply(&bytes[HEADER..], mac) {
            check!(
                count > 2,
                "{count} buffers of 16 bytes for {ARP} bytes and a header"
            );
            return Ok(());
        }
        first += count;
        check!(
            time::wait(5000, || queues.rx.used() > first),
            "no reply in {used} buffers"
        );
    }
    Err(Failure::new(format_args!("no reply among ten packets")))
}

/// 2.7.4.1: the framing does not matter.
fn scattered(slot: Slot) -> TestResult {
    let mut queues = Queues::new(slot)?;
    let mac = mac(slot);
    let data = queues.rx.data();
    queues.rx.describe(0, data, 512, WRITE, 0);
    queues.rx.offer(0);
    queues.rx.notify();
    queues.ask(mac, 1)?;
    check!(time::wait(5000, || queues.rx.used() == 1), "no reply");
    check_eq!(queues.rx.get::<u16>(data + 10), 1, "num_buffers");
    Ok(())
}

/// 5.1.6.5: commands that are carried out, and those that are refused.
fn commands(slot: Slot) -> TestResult {
    let mut queues = Queues::new(slot)?;
    for (name, expected, result) in [
        ("promiscuous", 0, queues.command([0, 0, 1])?),
        ("not promiscuous", 0, queues.command([0, 0, 0])?),
        ("an address", 0, queues.command([1, 1, 2, 0, 0, 0, 0, 9])?),
        (
            "a multicast address",
            1,
            queues.command([1, 1, 3, 0, 0, 0, 0, 9])?,
        ),
        ("a short address", 1, queues.command([1, 1, 2, 0, 0])?),
        ("VLANs, not negotiated", 1, queues.command([2, 0, 1, 0])?),
        ("an unknown class", 1, queues.command([0x77, 0, 0])?),
        ("an unknown command", 1, queues.command([0, 0x77, 0])?),
        ("no data", 1, queues.command([0, 0])?),
    ] {
        check_eq!(result, expected, "{name}");
    }
    Ok(())
}

/// Makes a chain of one or two buffers available that must break a queue.
fn breaks(queue: &mut Queue, name: &str, buffers: [Option<(u64, u32, u16)>; 2]) -> TestResult {
    for (index, buffer) in (0..).zip(buffers) {
        if let Some((address, length, flags)) = buffer {
            queue.describe(index, address, length, flags, index + 1);
        }
    }
    queue.offer(0);
    queue.notify();
    check!(queue.broken(), "{name}: no DEVICE_NEEDS_RESET");
    check_eq!(queue.used(), 0, "{name}: used.idx");
    Ok(())
}

// torture b1, b5, b7, k1
fn bad_packets(slot: Slot) -> TestResult {
    for (name, length, flags, second) in [
        ("to write", 64, WRITE, None),
        ("a part to write", 64, NEXT, Some((64, WRITE))),
        ("shorter than its header", 11, 0, None),
        ("empty", 0, 0, None),
        ("beyond the queue", 64, NEXT, Some((64, NEXT))),
    ] {
        let mut queues = Queues::new(slot)?;
        let data = queues.tx.data();
        queues.tx.set(data, [0xa5_u8; 128]);
        if name == "beyond the queue" {
            queues.tx.describe(2, data, 64, NEXT, 2);
        }
        let second = second.map(|(length, flags)| (data + 64, length, flags));
        breaks(&mut queues.tx, name, [Some((data, length, flags)), second])?;
        let bytes: [u8; 128] = queues.tx.get(data);
        check!(bytes == [0xa5; 128], "{name}: bytes were written");
    }
    let mut queues = Queues::new(slot)?;
    breaks(&mut queues.tx, "outside of RAM", [Some((0x10, 64, 0)), None])
}

// torture b1, b5, b7, k1
fn bad_buffers(slot: Slot) -> TestResult {
    for (name, length, flags, second) in [
        ("to read", 64, 0, None),
        ("a part to read", 64, NEXT, Some((64, WRITE))),
        ("shorter than a header", 11, WRITE, None),
        ("empty", 0, WRITE, None),
    ] {
        let mut queues = Queues::new(slot)?;
        let data = queues.rx.data();
        queues.rx.set(data, [0xa5_u8; 128]);
        let second = second.map(|(length, flags)| (data + 64, length, flags));
        breaks(&mut queues.rx, name, [Some((data, length, flags)), second])?;
        let bytes: [u8; 128] = queues.rx.get(data);
        check!(bytes == [0xa5; 128], "{name}: bytes were written");
    }
    let mut queues = Queues::new(slot)?;
    breaks(&mut queues.rx, "outside of RAM", [Some((0x10, 64, WRITE)), None])
}

// torture b1, b7, k1
fn bad_commands(slot: Slot) -> TestResult {
    for (name, first, second) in [
        ("no result", (3, 0), None),
        ("one byte", (1, NEXT), Some((1, WRITE))),
        ("nothing to read", (8, WRITE), None),
        ("an empty result", (3, NEXT), Some((0, WRITE))),
    ] {
        let mut queues = Queues::new(slot)?;
        let data = queues.control.data();
        let at = |(length, flags): (u32, u16), offset: u64| (data + offset, length, flags);
        let second = second.map(|part| at(part, 64));
        breaks(&mut queues.control, name, [Some(at(first, 0)), second])?;
    }
    Ok(())
}

// torture a9, k2: once Status reads 0, no packet comes into memory any more
fn nothing_after_reset(slot: Slot) -> TestResult {
    for _ in 0..20 {
        let mut queues = Queues::new(slot)?;
        let mac = mac(slot);
        let data = queues.rx.data();
        for index in 0..8 {
            queues
                .rx
                .describe(index, data + u64::from(index) * 64, 64, WRITE, 0);
            queues.rx.offer(index);
        }
        queues.rx.notify();
        queues.ask(mac, HEADER + ARP)?;
        check!(queues.rx.reset(), "reset");
        let before = queues.rx.sum();
        time::sleep(10);
        check!(queues.rx.sum() == before, "memory changes after a reset");
    }
    Ok(())
}
