//! What `benches/instructions.rs` measures: [`Card`], a guest's driver with as little work as possible and a
//! device with its queues, in one thread.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what fails is not measured"
)]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use ringnet::port::HEADER;
use ringnet::virtio::VIRTIO_NET_F_MRG_RXBUF;
use ringnet::{MacAddress, Net, NetConfig, Offloads, Port};
use ringvirtio::handler::Backends;
use ringvirtio::memory::{IoVec, Slots};
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::{Context, GuestRam, InflightArea, QueueHandler, QueueSetup, RingAddresses, Waiter};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

const BASE: u64 = 0x4000_0000;
const AVAIL: u64 = BASE + 0x1_0000;
const USED: u64 = BASE + 0x2_0000;
const DATA: u64 = BASE + 0x10_0000;
const SIZE: u16 = 256;
/// Bytes of a frame.
pub const FRAME: usize = 1514;

/// A port that transfers nothing: what is left is the device's work.
pub struct NullPort {
    /// Packets that have arrived.
    pub arrived: AtomicUsize,
}

impl Port for NullPort {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn pairs(&self) -> u16 {
        1
    }

    fn fd(&self, _pair: u16) -> Option<RawFd> {
        None
    }

    fn has_header(&self) -> bool {
        true
    }

    unsafe fn receive(&self, _pair: u16, _room: &[IoVec]) -> io::Result<usize> {
        let arrived = self.arrived.load(Ordering::Relaxed);
        let left = arrived.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.arrived.store(left, Ordering::Relaxed);
        Ok(HEADER + FRAME)
    }

    unsafe fn send(&self, _pair: u16, _packet: &[IoVec]) -> io::Result<()> {
        Ok(())
    }

    fn set_guest_offloads(&self, _guest: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_active_pairs(&self, _count: u16) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of a network device at work.
pub struct Card {
    queue: Box<dyn QueueHandler>,
    waiter: Waiter,
    backends: Backends,
    avail: Slots<AtomicU16>,
    used: Slots<AtomicU16>,
    depth: u16,
    idx: u16,
    /// Where packets go.
    pub port: Arc<NullPort>,
    receives: bool,
}

impl Card {
    /// All packets are written to memory here, once: header and frame in one descriptor each, `depth` of them
    /// made available together.
    #[must_use]
    pub fn new(receives: bool, depth: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), 8 << 20)]).expect("guest RAM");
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).expect("inside RAM");
        for number in 0..depth {
            let wide = u64::from(number);
            let mut descriptor = (DATA + wide * 4096).to_le_bytes().to_vec();
            descriptor.extend((if receives { 2048 } else { HEADER + FRAME } as u32).to_le_bytes());
            descriptor.extend((if receives { 2_u16 } else { 0 }).to_le_bytes());
            descriptor.extend([0, 0]);
            put(BASE + wide * 16, &descriptor);
        }
        for slot in 0..SIZE {
            put(AVAIL + 4 + u64::from(slot) * 2, &(slot % depth).to_le_bytes());
        }
        let ram = GuestRam::new(memory).expect("guest RAM");
        let config = NetConfig {
            name: "net".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            pairs: 1,
        };
        let port = Arc::new(NullPort {
            arrived: AtomicUsize::new(0),
        });
        let net = Net::new(config, Offloads::default(), None);
        net.attach(port.clone()).expect("a port of one pair");
        let features = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        let setup = QueueSetup {
            ram: ram.clone(),
            ring: RingAddresses {
                size: SIZE,
                desc: GuestAddress(BASE),
                avail: GuestAddress(AVAIL),
                used: GuestAddress(USED),
            },
            features: features.iter().fold(0, |all, &number| all | feature(number)),
            inflight: InflightArea {
                mapping: Arc::new(MmapRegion::new(InflightArea::bytes(SIZE)).expect("memory for a log")),
                offset: 0,
            },
            epoch: 1,
            notify_driver: Box::new(|| {}),
            needs_reset: Box::new(|fault| eprintln!("the queue is broken: {fault}")),
        };
        let (mut queue, _) = net
            .queue(u16::from(!receives), setup)
            .expect("the rings are in RAM");
        let (mut waiter, mut backends) = (Waiter::new(false, 8).expect("descriptors"), Backends::default());
        queue
            .attach(&mut Context::new(&mut waiter, &mut backends))
            .expect("it can be attached");
        let slots = |at| ram.slots::<AtomicU16>(GuestAddress(at), 2).expect("in RAM");
        Self {
            queue,
            waiter,
            backends,
            avail: slots(AVAIL),
            used: slots(USED),
            depth,
            idx: 0,
            port,
            receives,
        }
    }

    /// Makes packets or buffers available, and serves them.
    pub fn round(&mut self) {
        self.idx = self.idx.wrapping_add(self.depth);
        if let Some(idx) = self.avail.get(1) {
            idx.store(self.idx.to_le(), Ordering::Release);
        }
        if self.receives {
            self.port.arrived.store(self.depth.into(), Ordering::Relaxed);
        }
        self.queue
            .service(&mut Context::new(&mut self.waiter, &mut self.backends));
        self.queue.queue_mut().publish();
        let used = self
            .used
            .get(1)
            .map(|idx| u16::from_le(idx.load(Ordering::Acquire)));
        assert_eq!(used, Some(self.idx), "packets are left");
    }
}
