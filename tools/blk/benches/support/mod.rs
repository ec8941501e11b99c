//! What `benches/requests.rs` and `benches/instructions.rs` measure: [`Disk`], a guest's driver with as
//! little work as possible, the queue and the engine, in one thread; and [`Registers`], EL2's part of a
//! request, as host code.
#![allow(clippy::expect_used, clippy::panic, reason = "what fails is not measured")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use ringblk::engine::Engine;
use ringblk::engine::uring::OwnRingEngine;
use ringblk::{BlockQueue, DiskConfig};
use ringvirtio::memory::Slots;
use ringvirtio::virtio::{VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, feature};
use ringvirtio::{Completion, GuestRam, InflightArea, QueueSetup, RingAddresses};
use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::DeviceSpec;
use ringvisor::ring::{Consumer, Entry, Producer, Ring};
use ringvisor::syndrome::Width;
use ringvisor::virtio::fake::{FakePage, FakeRam};
use ringvisor::virtio::{Event, Spec, Transport, registers};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

const BASE: u64 = 0x4000_0000;
const AVAIL: u64 = BASE + 0x1_0000;
const USED: u64 = BASE + 0x2_0000;
const HEADERS: u64 = BASE + 0x3_0000;
const DATA: u64 = BASE + 0x10_0000;
const SIZE: u16 = 256;

/// What a request is.
#[derive(Clone, Copy)]
pub struct Shape {
    /// `null:SIZE`, or a file.
    pub path: &'static str,
    /// VIRTIO_BLK_T_OUT, else VIRTIO_BLK_T_IN.
    pub write: bool,
    /// Requests made available together.
    pub depth: u16,
    /// Each begins where the one before it ends.
    pub neighbours: bool,
}

impl Shape {
    /// Reads of the `null:` image, none a neighbour of another.
    pub fn read(depth: u16) -> Self {
        Self {
            path: "null:64M",
            write: false,
            depth,
            neighbours: false,
        }
    }
}

/// A disk at work.
pub struct Disk {
    queue: BlockQueue,
    engine: OwnRingEngine,
    avail: Slots<AtomicU16>,
    used: Slots<AtomicU16>,
    depth: u16,
    idx: u16,
    done: Vec<Completion>,
    interrupts: Arc<AtomicU64>,
}

impl Disk {
    /// All requests are written to memory here, once: of 4 KiB each, header, data and status in three
    /// descriptors.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), 8 << 20)]).expect("guest RAM");
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).expect("inside RAM");
        for number in 0..shape.depth {
            let wide = u64::from(number);
            let (header, data) = (HEADERS + wide * 64, DATA + wide * 4096);
            let sector = wide * if shape.neighbours { 8 } else { 32 };
            put(header, &u32::from(shape.write).to_le_bytes());
            put(header + 8, &sector.to_le_bytes());
            let data_flags = if shape.write { 1 } else { 3 };
            let chain = [
                (header, 16_u32, 1_u16),
                (data, 4096, data_flags),
                (header + 32, 1, 2),
            ];
            for (offset, (addr, len, flags)) in (0_u16..).zip(chain) {
                let index = number * 3 + offset;
                let at = BASE + u64::from(index) * 16;
                put(at, &addr.to_le_bytes());
                put(at + 8, &len.to_le_bytes());
                put(at + 12, &flags.to_le_bytes());
                put(at + 14, &(index + 1).to_le_bytes());
            }
        }
        for slot in 0..SIZE {
            let head = slot % shape.depth * 3;
            put(AVAIL + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        }
        let ram = GuestRam::new(memory).expect("guest RAM");
        let config = DiskConfig {
            path: shape.path.into(),
            ..DiskConfig::default()
        };
        let log = MmapRegion::new(InflightArea::bytes(SIZE).next_multiple_of(4096)).expect("memory");
        let interrupts = Arc::new(AtomicU64::new(0));
        let raised = interrupts.clone();
        let disk = ringblk::Disk::open(&config).expect("the disk");
        let mut engine = OwnRingEngine::new(64).expect("io_uring");
        engine.attach(disk.backing(), &ram);
        let ring = RingAddresses {
            size: SIZE,
            desc: GuestAddress(BASE),
            avail: GuestAddress(AVAIL),
            used: GuestAddress(USED),
        };
        Self {
            queue: BlockQueue::new(
                disk,
                QueueSetup {
                    ram: ram.clone(),
                    ring,
                    features: feature(VIRTIO_F_VERSION_1)
                        | feature(VIRTIO_RING_F_EVENT_IDX)
                        | feature(ringblk::virtio::VIRTIO_BLK_F_FLUSH),
                    inflight: InflightArea {
                        mapping: Arc::new(log),
                        offset: 0,
                    },
                    epoch: 1,
                    notify_driver: Box::new(move || {
                        raised.fetch_add(1, Ordering::Relaxed);
                    }),
                    needs_reset: Box::new(|fault| panic!("{fault}")),
                },
            )
            .expect("the queue"),
            engine,
            avail: ram
                .slots(GuestAddress(AVAIL), 3 + usize::from(SIZE))
                .expect("inside RAM"),
            used: ram.slots(GuestAddress(USED), 2).expect("inside RAM"),
            depth: shape.depth,
            idx: 0,
            done: Vec::new(),
            interrupts,
        }
    }

    /// Makes all requests available, serves them, and takes them back; an interrupt for each round.
    pub fn round(&mut self) {
        let before = self.idx;
        self.idx = before.wrapping_add(self.depth);
        let store = |index, value: u16| {
            self.avail
                .get(index)
                .expect("inside the ring")
                .store(value.to_le(), Ordering::Release);
        };
        // used_event: after the last of them.
        store(2 + usize::from(SIZE), self.idx.wrapping_sub(1));
        store(1, self.idx);
        self.queue.service(&mut self.engine);
        self.engine.submit();
        while self.queue.queue.in_flight() > 0 {
            self.engine.reap(&mut self.done);
            for outcome in self.done.drain(..) {
                self.queue.complete(outcome.tag, outcome.result, &mut self.engine);
            }
        }
        self.queue.queue.publish();
        let used = self.used.get(1).expect("inside the ring").load(Ordering::Acquire);
        assert_eq!(u16::from_le(used), self.idx, "all are used");
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }
}

/// A device's registers at EL2 and the zone's ring, with the daemon's side of it.
pub struct Registers {
    transport: Transport,
    page: FakePage,
    producer: Producer,
    consumer: Consumer,
    slots: [AtomicU64; 64],
    pending: [AtomicU64; 1],
    armed: AtomicU32,
}

const RAM: FakeRam<'static> = FakeRam(&[(BASE, 8 << 20)]);

impl Registers {
    /// A block device with one queue, after its driver's set-up.
    #[must_use]
    pub fn new() -> Self {
        let mut queue_max = [0; MAX_QUEUES];
        queue_max[0] = SIZE;
        let spec = DeviceSpec {
            device_id: ringblk::DEVICE_ID,
            vendor_id: 1,
            features: 1 << VIRTIO_F_VERSION_1,
            queues: 1,
            config_len: 0,
            queue_max,
            config: [0; 256],
        };
        let slots = [const { AtomicU64::new(0) }; 64];
        let (pending, armed) = ([AtomicU64::new(0)], AtomicU32::new(0));
        let mut this = Self {
            transport: Transport::new(&Spec::try_from(&spec).expect("a device")),
            page: FakePage::default(),
            producer: Producer::new(),
            consumer: Consumer::attach(&Ring::new(&slots, &pending, &armed).expect("a ring"), 0),
            slots,
            pending,
            armed,
        };
        this.transport.write_page(&this.page);
        for (offset, value) in [
            (registers::STATUS, 3),
            (registers::DRIVER_FEATURES_SEL, 1),
            (registers::DRIVER_FEATURES, 1),
            (registers::STATUS, 11),
            (registers::QUEUE_NUM, SIZE.into()),
            (registers::QUEUE_DESC_LOW, BASE as u32),
            (registers::QUEUE_DRIVER_LOW, AVAIL as u32),
            (registers::QUEUE_DEVICE_LOW, USED as u32),
            (registers::QUEUE_READY, 1),
            (registers::STATUS, 15),
        ] {
            let _ = this.store(offset, value);
        }
        this
    }

    fn store(&mut self, offset: u16, value: u32) -> ringvisor::virtio::Effect {
        self.transport
            .write(offset, Width::Word, value.into(), &RAM, &self.page)
    }

    /// What EL2 does for one request at depth 1, without traps: the store to QueueNotify and its ring entry,
    /// which the daemon takes; the daemon's completion; the store to InterruptACK. In between `serve` does
    /// what the daemon does.
    pub fn request(&mut self, serve: impl FnOnce()) {
        let notified = self.store(registers::QUEUE_NOTIFY, 0);
        let Some(Event::Notify { queue }) = notified.event else {
            panic!("no event for the daemon: {notified:?}");
        };
        let ring = Ring::new(&self.slots, &self.pending, &self.armed).expect("a ring");
        let _ = self.producer.push(&ring, Entry::Notify { slot: 0, queue });
        self.consumer.pop(&ring).expect("an entry");
        serve();
        assert!(self.consumer.prepare_to_sleep(&ring));
        let raised = self.transport.used_buffer(&self.page);
        let acknowledged = self.store(registers::INTERRUPT_ACK, 1);
        assert_eq!((raised.line, acknowledged.line), (Some(true), Some(false)));
    }
}
