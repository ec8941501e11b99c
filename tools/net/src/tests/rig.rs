//! A driver by hand: rings, chains and packets are written byte by byte, so that they can be invalid.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ringvirtio::clock::Clock;
use ringvirtio::handler::Backends;
use ringvirtio::memory::Slots;
use ringvirtio::virtio::{
    VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, feature,
};
use ringvirtio::{
    Context, GuestRam, InflightArea, Polls, QueueHandler, QueueId, QueueSetup, ReactorBackend, RingAddresses,
    VirtQueue, Waiter,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use crate::port::HEADER;
pub use crate::port::fake::FakePort;
use crate::state::WORDS;
use crate::virtio::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MRG_RXBUF,
};
use crate::{MacAddress, Net, NetConfig, NetStats, Offloads, Port, SavedState};

/// Where guest RAM starts.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of guest RAM.
pub const RAM: usize = 4 << 20;
/// Where buffers may be: after the rings.
pub const BUFFERS: u64 = BASE + 0x10_0000;
/// Descriptors of each queue.
pub const SIZE: u16 = 16;
/// Bytes between the rings of two queues.
const RINGS: u64 = 0x4000;
/// Bytes between two in-flight logs.
const LOG: usize = 4096;

pub const RX: u16 = 0;
pub const TX: u16 = 1;

pub const ALL: Offloads = Offloads { tcp: true, udp: true };

/// A device's own address.
pub const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

/// Features that most tests negotiate.
pub const FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_INDIRECT_DESC)
    | feature(VIRTIO_NET_F_MRG_RXBUF)
    | feature(VIRTIO_NET_F_CTRL_VQ)
    | feature(VIRTIO_NET_F_CTRL_RX)
    | feature(VIRTIO_NET_F_CTRL_RX_EXTRA)
    | feature(VIRTIO_NET_F_CTRL_VLAN)
    | feature(VIRTIO_NET_F_CTRL_MAC_ADDR)
    | feature(VIRTIO_NET_F_GUEST_ANNOUNCE);

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
}

pub fn readable(addr: u64, len: usize) -> Buf {
    let len = len as u32;
    Buf { addr, len, flags: 0 }
}

pub fn writable(addr: u64, len: usize) -> Buf {
    Buf {
        flags: VIRTQ_DESC_F_WRITE,
        ..readable(addr, len)
    }
}

/// Returns a frame of `len` bytes to an address, whose other bytes follow from `seed`.
pub fn frame(to: MacAddress, len: usize, seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len)
        .map(|index| (index as u8).wrapping_mul(31) ^ seed)
        .collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes
}

/// The driver's side of a queue, and the daemon's.
struct RigQueue {
    ring: RingAddresses,
    avail_idx: u16,
    used_seen: u16,
    handler: Option<Box<dyn QueueHandler>>,
    stats: Option<Arc<NetStats>>,
    ready: bool,
}

/// The guest with its driver, what outlives a daemon, and the daemon.
pub struct Rig {
    pub net: Arc<Net>,
    pub port: Arc<FakePort>,
    pub memory: GuestMemoryMmap,
    pub features: u64,
    pub epoch: u64,
    config: NetConfig,
    offloads: Offloads,
    log: Arc<MmapRegion>,
    interrupts: Arc<AtomicUsize>,
    faults: Arc<Mutex<Vec<String>>>,
    queues: Vec<RigQueue>,
    waiter: Waiter,
    backends: Backends,
    clock: Option<Arc<AtomicU64>>,
}

pub fn config(pairs: u16) -> NetConfig {
    NetConfig {
        name: "net".into(),
        mac: MAC,
        mtu: 1500,
        pairs,
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(FakePort::new(1, Offloads::default()), FEATURES)
    }

    /// A device with the pairs and offloads of a port.
    pub fn with(port: Arc<FakePort>, features: u64) -> Self {
        let config = config(port.pairs());
        let queues = (0..config.queues()).map(|number| {
            let base = BASE + u64::from(number) * RINGS;
            RigQueue {
                ring: RingAddresses {
                    size: SIZE,
                    desc: GuestAddress(base),
                    avail: GuestAddress(base + 0x1000),
                    used: GuestAddress(base + 0x2000),
                },
                avail_idx: 0,
                used_seen: 0,
                handler: None,
                stats: None,
                ready: false,
            }
        });
        let mut rig = Self {
            net: Net::new(config.clone(), port.offloads(), None),
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), RAM)]).unwrap(),
            features,
            epoch: 1,
            offloads: port.offloads(),
            queues: queues.collect(),
            config,
            port,
            log: Arc::new(MmapRegion::new(LOG * 20).unwrap()),
            interrupts: Arc::default(),
            faults: Arc::default(),
            waiter: Waiter::new(false, 8).unwrap(),
            backends: Backends::default(),
            clock: None,
        };
        rig.open();
        rig
    }

    /// Number of the control queue.
    pub fn control(&self) -> u16 {
        let several = self.features & feature(crate::virtio::VIRTIO_NET_F_MQ) != 0;
        if several { 2 * self.config.pairs } else { 2 }
    }

    fn saved(&self) -> SavedState {
        let words = Slots::in_mapping(&self.log, LOG * 19, WORDS).unwrap();
        SavedState::new(Arc::new(words), 0)
    }

    /// A daemon starts: it opens the device and serves all queues that are set up.
    pub fn open(&mut self) {
        self.kill();
        self.net = Net::new(self.config.clone(), self.offloads, Some(self.saved()));
        self.net.attach(self.port.clone()).unwrap();
        for number in 0..=self.control() {
            self.open_queue(number);
        }
    }

    pub fn open_queue(&mut self, number: u16) {
        let (interrupts, faults) = (self.interrupts.clone(), self.faults.clone());
        let setup = QueueSetup {
            ram: GuestRam::new(self.memory.clone()).unwrap(),
            ring: self.queues[usize::from(number)].ring,
            features: self.features,
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: LOG * usize::from(number),
            },
            epoch: self.epoch,
            notify_driver: Box::new(move || {
                interrupts.fetch_add(1, Ordering::Relaxed);
            }),
            needs_reset: Box::new(move |fault| faults.lock().unwrap().push(fault.to_string())),
        };
        let (mut handler, stats) = self.net.queue(number, setup).unwrap();
        handler.queue_mut().tag_base = QueueId::from_number(u64::from(number) + 1).tag();
        if let Some(clock) = &self.clock {
            handler.queue_mut().clock = Clock::Manual(clock.clone());
        }
        handler
            .attach(&mut Context::new(&mut self.waiter, &mut self.backends))
            .unwrap();
        let queue = &mut self.queues[usize::from(number)];
        (queue.handler, queue.stats, queue.ready) = (Some(handler), Some(stats), true);
    }

    /// Kills the daemon.
    pub fn kill(&mut self) {
        for queue in &mut self.queues {
            if let Some(mut handler) = queue.handler.take() {
                // SAFETY: no operation has memory of the queue.
                unsafe { handler.queue_mut().assume_drained() };
            }
        }
        self.waiter = Waiter::new(false, 8).unwrap();
        self.backends = Backends::default();
    }

    pub fn handler(&mut self, number: u16) -> &mut dyn QueueHandler {
        &mut **self.queues[usize::from(number)].handler.as_mut().unwrap()
    }

    pub fn vq(&mut self, number: u16) -> &mut VirtQueue {
        self.handler(number).queue_mut()
    }

    pub fn stats(&self, number: u16) -> &NetStats {
        self.queues[usize::from(number)].stats.as_ref().unwrap()
    }

    /// From now on time stands still until it is set.
    pub fn set_clock(&mut self, now: u64) -> Arc<AtomicU64> {
        let clock = Arc::new(AtomicU64::new(now));
        for queue in &mut self.queues {
            if let Some(handler) = &mut queue.handler {
                handler.queue_mut().clock = Clock::Manual(clock.clone());
            }
        }
        self.clock = Some(clock.clone());
        clock
    }

    /// The driver notifies all queues, or the daemon schedules them.
    pub fn schedule(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.ready = true);
    }

    /// Runs the daemon as a reactor does until there is nothing to do.
    pub fn run(&mut self) {
        self.schedule();
        self.turn();
    }

    /// As [`Self::run`], without a notification.
    pub fn turn(&mut self) {
        let mut done = Vec::new();
        let mut rounds = 0;
        loop {
            let mut busy = false;
            for queue in &mut self.queues {
                let Some(handler) = queue.handler.as_mut().filter(|_| queue.ready) else {
                    continue;
                };
                busy = true;
                handler.service(&mut Context::new(&mut self.waiter, &mut self.backends));
                handler.queue_mut().publish();
                queue.ready = handler.queue().has_more() || handler.wants_service();
            }
            if let Some(backend) = self.backends.get::<Polls>() {
                backend.reap(&mut done);
            }
            for completion in done.drain(..) {
                let number = QueueId::from_tag(completion.tag).number() - 1;
                let queue = &mut self.queues[number as usize];
                let Some(handler) = &mut queue.handler else {
                    continue;
                };
                let mut cx = Context::new(&mut self.waiter, &mut self.backends);
                handler.complete(completion.tag, completion.result, &mut cx);
                queue.ready |= handler.wants_service();
                busy |= queue.ready;
            }
            if !busy {
                return;
            }
            rounds += 1;
            assert!(rounds < 10_000, "the device never rests");
        }
    }

    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn set_u16(&self, addr: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    pub fn ring(&self, number: u16) -> RingAddresses {
        self.queues[usize::from(number)].ring
    }

    /// Writes a descriptor into the table at `table`.
    pub fn descriptor(&self, table: u64, index: u16, buf: Buf, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(buf.addr.to_le_bytes());
        bytes.extend(buf.len.to_le_bytes());
        bytes.extend(buf.flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.fill(table + u64::from(index) * 16, &bytes);
    }

    /// Writes a chain into the table at `table` from descriptor `first` on.
    pub fn chain(&self, table: u64, first: u16, bufs: &[Buf]) {
        for (offset, buf) in bufs.iter().enumerate() {
            let index = first + offset as u16;
            let mut buf = *buf;
            if offset + 1 < bufs.len() {
                buf.flags |= VIRTQ_DESC_F_NEXT;
            }
            self.descriptor(table, index, buf, index + 1);
        }
    }

    /// Writes a direct chain and makes it available.
    pub fn offer(&mut self, number: u16, head: u16, bufs: &[Buf]) {
        self.chain(self.ring(number).desc.0, head, bufs);
        self.offer_head(number, head);
    }

    /// Makes a head available.
    pub fn offer_head(&mut self, number: u16, head: u16) {
        let queue = &mut self.queues[usize::from(number)];
        let slot = u64::from(queue.avail_idx % queue.ring.size);
        queue.avail_idx = queue.avail_idx.wrapping_add(1);
        let (avail, idx) = (queue.ring.avail.0, queue.avail_idx);
        self.set_u16(avail + 4 + 2 * slot, head);
        self.set_u16(avail + 2, idx);
    }

    /// Takes new used entries: heads and lengths.
    pub fn take_used(&mut self, number: u16) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        let queue = &mut self.queues[usize::from(number)];
        let used = queue.ring.used.0;
        let idx: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        while queue.used_seen != idx {
            let at = used + 4 + 8 * u64::from(queue.used_seen % queue.ring.size);
            let id = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            entries.push((id, len));
            queue.used_seen = queue.used_seen.wrapping_add(1);
        }
        entries
    }

    /// Sends a frame from one buffer, with an empty header.
    pub fn send(&mut self, head: u16, frame: &[u8]) {
        let addr = BUFFERS + u64::from(head) * 0x1_0000;
        self.fill(addr, &[&[0; HEADER][..], frame].concat());
        self.offer(TX, head, &[readable(addr, HEADER + frame.len())]);
    }

    /// Where the receive buffer of a head is.
    pub fn buffer(head: u16) -> u64 {
        BUFFERS + 0x20_0000 + u64::from(head) * 0x1_0000
    }

    /// Makes a receive buffer of `len` bytes available.
    pub fn supply(&mut self, head: u16, len: usize) {
        self.fill(Self::buffer(head), &vec![0xa5; len]);
        self.offer(RX, head, &[writable(Self::buffer(head), len)]);
    }

    /// Takes received packets, header and frame, put together from the buffers that were supplied; checks
    /// `num_buffers`.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let used = self.take_used(RX);
        self.packets(&used)
    }

    /// Returns the packets in these used buffers.
    pub fn packets(&self, used: &[(u32, u32)]) -> Vec<Vec<u8>> {
        let mut used = used.iter();
        let mut packets = Vec::new();
        while let Some(&(head, len)) = used.next() {
            let mut packet = self.bytes(Self::buffer(head as u16), len as usize);
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            assert!(count > 0, "num_buffers is 0");
            for _ in 1..count {
                let &(head, len) = used.next().expect("a packet was published in part");
                packet.extend(self.bytes(Self::buffer(head as u16), len as usize));
            }
            packets.push(packet);
        }
        packets
    }

    /// Carries out a command; returns its result.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let control = self.control();
        let (addr, ack) = (BUFFERS, BUFFERS + 0x8000);
        self.fill(addr, &[&[class, command], data].concat());
        self.fill(ack, &[0xa5]);
        self.offer(control, 0, &[readable(addr, 2 + data.len()), writable(ack, 1)]);
        self.run();
        assert_eq!(self.take_used(control), [(0, 1)]);
        self.bytes(ack, 1)[0]
    }

    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Resets the device and sets all queues up again, as the driver does.
    pub fn reset(&mut self) {
        self.kill();
        self.epoch += 1;
        for queue in &mut self.queues {
            (queue.avail_idx, queue.used_seen) = (0, 0);
            let (avail, used) = (queue.ring.avail, queue.ring.used);
            self.memory.write_slice(&[0; 64], avail).unwrap();
            self.memory.write_slice(&[0; 256], used).unwrap();
        }
        for number in 0..=self.control() {
            self.open_queue(number);
        }
    }
}
