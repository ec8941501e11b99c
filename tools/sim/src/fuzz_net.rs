//! The interfaces of network devices that take untrusted input, as fuzz targets: packets with any header,
//! chains in each queue, commands, and what a vhost-user server answers.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringnet::port::HEADER;
use ringnet::port::fake::FakePort;
use ringnet::virtio::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use ringnet::{MacAddress, Net, NetConfig, Offloads, offloads};
use ringvhost::device::session::Session;
use ringvirtio::handler::Backends;
use ringvirtio::virtio::feature;
use ringvirtio::{
    Context, GuestRam, InflightArea, Polls, QueueHandler, QueueId, QueueSetup, ReactorBackend, RingAddresses,
    Waiter,
};
use vm_memory::{GuestAddress, MmapRegion};

use crate::fuzz_input::Bytes;
use crate::memory;

/// Entries of each queue.
const SIZE: u16 = 16;
/// Bytes between the rings of two queues, and of a log.
const RINGS: usize = 0x1000;
const LOG: usize = 4096;
/// Offsets of a queue's rings.
const AVAIL: usize = 0x400;
const USED: usize = 0x800;
/// Where buffers are.
const BUFFERS: usize = 0x1_0000;
/// What memory holds before.
const POISON: u8 = 0xa5;
const OFFLOADS: Offloads = Offloads { tcp: true, udp: true };
/// Rounds within which a device of full queues rests.
const ROUNDS: usize = 200;

const RX: usize = 0;
const TX: usize = 1;

/// A device with all its queues, served as a reactor does.
struct Device {
    net: Arc<Net>,
    port: Arc<FakePort>,
    queues: Vec<Box<dyn QueueHandler>>,
    waiter: Waiter,
    backends: Backends,
    faults: Arc<AtomicUsize>,
}

impl Device {
    fn new(features: u64, pairs: u16) -> Self {
        thread_local! {
            static RAM: Arc<GuestRam> = memory::guest_ram();
        }
        let config = NetConfig {
            name: "net".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            pairs,
        };
        let port = FakePort::new(pairs, OFFLOADS);
        let net = Net::new(config, OFFLOADS, None);
        net.attach(port.clone())
            .expect("the port has what the device has");
        let count = if features & feature(VIRTIO_NET_F_MQ) != 0 {
            net.config().queues()
        } else {
            3
        };
        let log = Arc::new(MmapRegion::new(LOG * usize::from(count)).expect("memory for logs"));
        let faults = Arc::new(AtomicUsize::new(0));
        let (mut waiter, mut backends) = (Waiter::new(false, 0).expect("descriptors"), Backends::default());
        let queues = (0..count).map(|number| {
            let at = memory::BASE + u64::from(number) * RINGS as u64;
            let faults = faults.clone();
            let setup = QueueSetup {
                ram: RAM.with(Arc::clone),
                ring: RingAddresses {
                    size: SIZE,
                    desc: GuestAddress(at),
                    avail: GuestAddress(at + AVAIL as u64),
                    used: GuestAddress(at + USED as u64),
                },
                features,
                inflight: InflightArea {
                    mapping: log.clone(),
                    offset: LOG * usize::from(number),
                },
                epoch: 1,
                notify_driver: Box::new(|| {}),
                needs_reset: Box::new(move |fault| {
                    assert!(!fault.to_string().is_empty());
                    faults.fetch_add(1, Ordering::Relaxed);
                }),
            };
            let (mut queue, _) = net.queue(number, setup).expect("the rings are in RAM");
            queue.queue_mut().tag_base = QueueId::from_number(u64::from(number)).tag();
            queue
                .attach(&mut Context::new(&mut waiter, &mut backends))
                .expect("queues can be attached");
            queue
        });
        Self {
            queues: queues.collect(),
            net,
            port,
            waiter,
            backends,
            faults,
        }
    }

    /// Runs until there is nothing to do.
    fn run(&mut self) {
        let mut ready = vec![true; self.queues.len()];
        for _ in 0..ROUNDS {
            for (queue, ready) in self.queues.iter_mut().zip(&mut ready) {
                if std::mem::take(ready) {
                    queue.service(&mut Context::new(&mut self.waiter, &mut self.backends));
                    queue.queue_mut().publish();
                    *ready = queue.queue().has_more() || queue.wants_service();
                }
            }
            let mut done = Vec::new();
            if let Some(polls) = self.backends.get::<Polls>() {
                polls.reap(&mut done);
            }
            for completion in done {
                let number = QueueId::from_tag(completion.tag).number() as usize;
                let queue = &mut self.queues[number];
                let mut cx = Context::new(&mut self.waiter, &mut self.backends);
                queue.complete(completion.tag, completion.result, &mut cx);
                ready[number] |= queue.wants_service();
            }
            if !ready.contains(&true) {
                return;
            }
        }
        panic!("the device does not rest");
    }

    fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }
}

fn fill(at: usize, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate().take(memory::SIZE - at) {
        memory::poke(at + index, *byte);
    }
}

fn u16_at(memory: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([memory[at], memory[at + 1]])
}

fn u32_at(memory: &[u8], at: usize) -> usize {
    usize::from(u16_at(memory, at)) | usize::from(u16_at(memory, at + 2)) << 16
}

/// Writes descriptor `index` of a queue.
fn describe(queue: usize, index: u16, at: usize, len: u32, flags: u16) {
    let mut bytes = (memory::BASE + at as u64).to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend((index + 1).to_le_bytes());
    fill(queue * RINGS + usize::from(index) * 16, &bytes);
}

/// Makes heads available in an empty ring.
fn offer(queue: usize, heads: &[u16]) {
    let mut bytes = vec![0, 0];
    bytes.extend((heads.len() as u16).to_le_bytes());
    heads.iter().for_each(|head| bytes.extend(head.to_le_bytes()));
    fill(queue * RINGS + AVAIL, &bytes);
}

/// Receives packets with any header and length into buffers of any size (torture k1): a packet is delivered
/// whole, with no more than the driver has enabled, and nothing else is written.
pub fn packet(data: &[u8]) {
    let mut input = Bytes(data);
    let negotiated = OFFLOADS.features() | feature(VIRTIO_NET_F_MRG_RXBUF);
    let features = input.u64() & negotiated;
    let features = if offloads::is_consistent(features & offloads::GUEST) {
        features | 1 << 32
    } else {
        features & !offloads::GUEST | 1 << 32
    };
    let mergeable = features & feature(VIRTIO_NET_F_MRG_RXBUF) != 0;
    memory::clear();
    let mut lens = Vec::new();
    for index in 0..SIZE {
        let len = HEADER + usize::from(input.u16()) % 2048;
        let at = BUFFERS + usize::from(index) * 0x800;
        fill(at, &vec![POISON; 0x800]);
        describe(RX, index, at, len.min(0x800) as u32, 2);
        lens.push(len.min(0x800));
    }
    offer(RX, &(0..SIZE).collect::<Vec<_>>());
    let mut device = Device::new(features, 1);
    let mut arrived = Vec::new();
    while !input.is_empty() && arrived.len() < 8 {
        let mut header = [0; HEADER];
        header.fill_with(|| input.u8());
        // Lengths around the borders, and any.
        let len = match input.u8() {
            small @ 0..=63 => usize::from(small),
            mtu @ 64..=127 => 1500 + usize::from(mtu),
            _ => usize::from(input.u16()),
        };
        let frame: Vec<u8> = (0..len).map(|at| (at ^ arrived.len()) as u8 | 1).collect();
        device.port.arrive_with(0, header, &frame);
        arrived.push((header, frame));
    }
    device.run();
    assert_eq!(device.faults(), 0, "buffers are valid");
    let memory = memory::snapshot();
    let used = usize::from(u16_at(&memory, USED + 2));
    let entries: Vec<(usize, usize)> = (0..used)
        .map(|index| USED + 4 + index * 8)
        .map(|at| (u32_at(&memory, at), u32_at(&memory, at + 4)))
        .collect();
    for &(head, len) in &entries {
        assert!(len <= lens[head], "{len} bytes in a buffer of {}", lens[head]);
    }
    let mut left = &entries[..];
    let mut expected = arrived.iter();
    while let Some(&(head, _)) = left.first() {
        let at = BUFFERS + head * 0x800;
        let count = usize::from(u16_at(&memory, at + 10));
        assert!(count >= 1 && count <= left.len() && (mergeable || count == 1));
        let (parts, rest) = left.split_at(count);
        left = rest;
        let whole: Vec<u8> = parts
            .iter()
            .flat_map(|&(head, len)| &memory[BUFFERS + head * 0x800..][..len])
            .copied()
            .collect();
        let (header, frame) = whole.split_at(HEADER);
        let (flags, gso) = (header[0], header[1]);
        assert!(offloads::covers(features & offloads::GUEST, flags, gso));
        assert!(features & feature(VIRTIO_NET_F_GUEST_CSUM) != 0 || flags == 0);
        // In their order; those between were dropped.
        assert!(
            expected.any(|(_, arrived)| arrived == frame),
            "a packet that did not arrive, or out of order"
        );
    }
}

/// Serves chains in one of the queues: descriptor table, available ring and some buffers are the input
/// (torture b1 to b8, k1). Device-readable memory never changes.
pub fn net_chain(data: &[u8]) {
    let mut input = Bytes(data);
    let (queue, flags) = (usize::from(input.u8()) % 3, input.u8());
    let features = u64::from(flags & 3) << 28 | 1 << 32 | 1 << 17 | u64::from(flags >> 2 & 1) << 15;
    let (table, rest) = input.0.split_at(input.0.len().min(256));
    let (available, buffers) = rest.split_at(rest.len().min(40));
    memory::clear();
    fill(queue * RINGS, table);
    fill(queue * RINGS + AVAIL, available);
    fill(BUFFERS, buffers);
    let mut device = Device::new(features, 1);
    for len in [60, 1514, 0, 9000] {
        device.port.arrive(0, &vec![7; len]);
    }
    let before = memory::snapshot();
    device.run();
    let after = memory::snapshot();
    if queue == TX {
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            let own = (TX * RINGS + USED..TX * RINGS + USED + 0x100).contains(&at);
            let rings = at < 3 * RINGS && at % RINGS >= USED && at % RINGS < USED + 0x100;
            assert!(own || rings || before == after, "a byte at {at:#x} changed");
        }
    }
    assert!(device.faults() <= 1, "DEVICE_NEEDS_RESET is asked for once");
    assert!(
        device
            .port
            .sent()
            .iter()
            .all(|frame| frame.len() <= 0x1_0000 + 18)
    );
}

/// Carries out commands: the result is one of two, and what the device then is stays within what was offered.
pub fn net_command(data: &[u8]) {
    /// Number of the control queue, and pairs.
    const PAIRS: u16 = 3;
    let control = 2 * usize::from(PAIRS);
    let mut input = Bytes(data);
    memory::clear();
    let config = NetConfig {
        name: String::new(),
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        pairs: PAIRS,
    };
    let features = config.features(OFFLOADS);
    let mut device = Device::new(features, PAIRS);
    let mut idx = 0_u16;
    while !input.is_empty() && idx < 64 {
        let (class, command) = (input.u8() % 8, input.u8() % 8);
        let len = match input.u8() {
            small @ 0..=200 => usize::from(small),
            _ => usize::from(input.u16()) % 9000,
        };
        let mut bytes = vec![class, command];
        bytes.extend((0..len).map(|_| input.u8()));
        fill(BUFFERS, &bytes);
        fill(BUFFERS + 0x4000, &[POISON]);
        describe(control, 0, BUFFERS, bytes.len() as u32, 1);
        describe(control, 1, BUFFERS + 0x4000, 1, 2);
        let slot = usize::from(idx % SIZE);
        idx += 1;
        let at = control * RINGS + AVAIL;
        fill(at + 4 + 2 * slot, &[0, 0]);
        fill(at + 2, &idx.to_le_bytes());
        device.run();
        let memory = memory::snapshot();
        assert_eq!(u16_at(&memory, control * RINGS + USED + 2), idx);
        assert!(memory[BUFFERS + 0x4000] <= 1, "a result that is none");
        let view = device.net.view();
        assert!((1..=PAIRS).contains(&view.pairs) && view.filter.mac.check().is_ok());
        assert_eq!(view.guest_offloads & !(features & offloads::GUEST), 0);
        assert!(offloads::is_consistent(view.guest_offloads));
        let set = device.port.state();
        assert!(set.active_pairs == view.pairs && set.guest_offloads == view.guest_offloads);
    }
    assert_eq!(device.faults(), 0, "the chains are valid");
}

/// Negotiates with a vhost-user server whose answers are the input: it is usable or refused, in bounded time.
pub fn vhost_reply(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("descriptors");
    // A socket takes this much at once.
    theirs
        .write_all(&data[..data.len().min(4096)])
        .expect("the socket has room");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    if let Ok(session) = Session::negotiate(ours, Duration::from_secs(5)) {
        let server = session.server();
        assert!(server.features >> 32 & 1 != 0, "VERSION_1 is needed");
        assert_eq!(
            server.protocol & !0b1001,
            0,
            "protocol features that nothing here uses"
        );
        let _ = session.stop(0);
        let _ = session.enable(1, true);
    }
}
