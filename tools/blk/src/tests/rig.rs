//! A driver by hand: rings, chains and requests are written byte by byte, so that they can be invalid.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringvirtio::inflight::InflightArea;
use ringvirtio::memory::GuestRam;
use ringvirtio::ring::RingAddresses;
use ringvirtio::virtio::{
    VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE, VIRTQ_USED_F_NO_NOTIFY, feature,
};
use ringvirtio::{Completion, QueueSetup, VirtQueue};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use crate::disk::{Disk, DiskConfig, EngineKind, HostCache, OpenContext, OpenOptions};
use crate::engine::threads::Threads;
use crate::engine::uring::OwnRingEngine;
use crate::engine::{Engine, IoOp};
use crate::queue::BlockQueue;
use crate::virtio::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Where guest RAM starts.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of guest RAM.
pub const RAM: usize = 8 << 20;
/// Where buffers may go: behind the rings.
pub const BUFFERS: u64 = BASE + 0x10_0000;
/// Sectors of the image.
pub const SECTORS: u64 = 128;
/// Returns the initial byte of the image at `offset`.
pub fn pattern(offset: u64) -> u8 {
    (offset / 512 * 7 + offset % 251) as u8
}

/// Both engines, for tests that run on each.
pub const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

/// An engine and a way to wait for its completions.
pub enum TestEngine {
    Uring(OwnRingEngine, Vec<usize>),
    Threads(Threads),
    Custom(Box<dyn Engine>),
}

impl TestEngine {
    pub fn new(kind: EngineKind) -> Self {
        match kind {
            EngineKind::IoUring => match OwnRingEngine::new(64) {
                Ok(engine) => Self::Uring(engine, Vec::with_capacity(64)),
                Err(error) => {
                    eprintln!("no io_uring here ({error}): threads instead");
                    Self::Threads(Threads::new().unwrap())
                }
            },
            EngineKind::Threads => Self::Threads(Threads::new().unwrap()),
        }
    }

    pub fn get(&mut self) -> &mut dyn Engine {
        match self {
            Self::Uring(engine, _) => engine,
            Self::Threads(threads) => threads,
            Self::Custom(engine) => &mut **engine,
        }
    }

    /// Waits until something has completed.
    pub fn wait(&mut self, done: &mut Vec<Completion>) {
        self.get().submit();
        self.get().reap(done);
        while done.is_empty() {
            match self {
                Self::Uring(engine, _) if engine.state.is_copying() => engine.submit(),
                Self::Uring(engine, ready) => {
                    engine.ring.wait(None, ready).unwrap();
                    ready.clear();
                }
                _ => std::thread::yield_now(),
            }
            self.get().reap(done);
        }
    }
}

/// A descriptor of the table.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    pub addr: u64,
    pub len: u32,
    pub write: bool,
}

pub fn readable(addr: u64, len: u32) -> Buf {
    Buf {
        addr,
        len,
        write: false,
    }
}

pub fn writable(addr: u64, len: u32) -> Buf {
    Buf {
        addr,
        len,
        write: true,
    }
}

/// Opens a disk that was just closed, and waits for its lock: a child of another test may hold an inherited
/// descriptor until it calls exec, and an io_uring a registered file until it is torn down.
pub fn open_soon(config: &DiskConfig) -> Arc<Disk> {
    let patient = OpenOptions {
        known: None,
        format_unstated: false,
        owner: None,
        wait: Duration::from_secs(60),
    };
    Disk::open_with(config, &OpenContext::default(), &patient).unwrap()
}

/// The guest with its driver, and what outlives a daemon.
pub struct Rig {
    pub dir: TempDir,
    pub config: DiskConfig,
    pub memory: GuestMemoryMmap,
    pub ram: Arc<GuestRam>,
    pub ring: RingAddresses,
    pub log: Arc<MmapRegion>,
    pub features: u64,
    pub epoch: u64,
    pub interrupts: Arc<AtomicUsize>,
    pub faults: Arc<Mutex<Vec<String>>>,
    /// The driver's next avail index and last seen used index.
    pub avail_idx: u16,
    pub used_seen: u16,
    pub engine: TestEngine,
    pub queue: Option<BlockQueue>,
}

/// The features that a common driver accepts, without EVENT_IDX.
pub const ALL_FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_INDIRECT_DESC)
    | feature(VIRTIO_BLK_F_SIZE_MAX)
    | feature(VIRTIO_BLK_F_SEG_MAX)
    | feature(VIRTIO_BLK_F_BLK_SIZE)
    | feature(VIRTIO_BLK_F_TOPOLOGY)
    | feature(VIRTIO_BLK_F_FLUSH);

/// The same with CONFIG_WCE, DISCARD and WRITE_ZEROES.
pub const WRITABLE_FEATURES: u64 = ALL_FEATURES
    | feature(VIRTIO_BLK_F_CONFIG_WCE)
    | feature(VIRTIO_BLK_F_DISCARD)
    | feature(VIRTIO_BLK_F_WRITE_ZEROES);

impl Rig {
    pub fn new(kind: EngineKind) -> Self {
        Self::with(kind, 16, ALL_FEATURES, false)
    }

    pub fn with(kind: EngineKind, size: u16, features: u64, readonly: bool) -> Self {
        let mut rig = Self::closed(kind, size, features, readonly);
        rig.open();
        rig
    }

    /// Returns a rig without a queue.
    pub fn closed(kind: EngineKind, size: u16, features: u64, readonly: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let image: Vec<u8> = (0..SECTORS * 512).map(pattern).collect();
        std::fs::write(&path, image).unwrap();
        let config = DiskConfig {
            path,
            readonly,
            serial: "serial-0".into(),
            engine: kind,
            // Fast on any file system; `engines` tests direct I/O.
            cache: HostCache::Writeback,
            ..DiskConfig::default()
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), RAM)]).unwrap();
        let ram = GuestRam::new(memory.clone()).unwrap();
        let ring = RingAddresses {
            size,
            desc: GuestAddress(BASE),
            avail: GuestAddress(BASE + 0x8_0000),
            used: GuestAddress(BASE + 0xa_0000),
        };
        let log = Arc::new(MmapRegion::new(InflightArea::bytes(size).next_multiple_of(4096)).unwrap());
        Self {
            dir,
            config,
            memory,
            ram,
            ring,
            log,
            features,
            epoch: 1,
            interrupts: Arc::default(),
            faults: Arc::default(),
            avail_idx: 0,
            used_seen: 0,
            engine: TestEngine::new(kind),
            queue: None,
        }
    }

    /// Creates the queue, as the daemon does when the driver sets it up or after a take-over.
    pub fn open(&mut self) {
        self.open_on(open_soon(&self.config));
    }

    pub fn open_on(&mut self, disk: Arc<Disk>) {
        self.queue = Some(BlockQueue::new(disk, self.setup()).unwrap());
    }

    pub fn setup(&self) -> QueueSetup {
        let (interrupts, faults) = (self.interrupts.clone(), self.faults.clone());
        QueueSetup {
            ram: self.ram.clone(),
            ring: self.ring,
            features: self.features,
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: 0,
            },
            epoch: self.epoch,
            notify_driver: Box::new(move || {
                interrupts.fetch_add(1, Ordering::Relaxed);
            }),
            needs_reset: Box::new(move |fault| faults.lock().unwrap().push(fault.to_string())),
        }
    }

    /// Kills the daemon: the kernel ends its I/O, the completions are lost, the image is closed.
    pub fn kill(&mut self) {
        self.engine = TestEngine::Custom(Box::new(Nothing));
        self.drop_queue();
    }

    /// Drops the queue with its requests in flight; its engine must have been dropped or drained.
    pub fn drop_queue(&mut self) {
        if let Some(mut queue) = self.queue.take() {
            // SAFETY: the caller has dropped or drained the engine.
            unsafe { queue.queue.assume_drained() };
        }
    }

    /// Replaces the daemon.
    pub fn reopen(&mut self) {
        self.kill();
        self.engine = TestEngine::new(self.config.engine);
        self.open();
    }

    pub fn queue(&mut self) -> &mut BlockQueue {
        self.queue.as_mut().unwrap()
    }

    pub fn vq(&mut self) -> &mut VirtQueue {
        &mut self.queue().queue
    }

    /// Returns the image's bytes.
    pub fn image(&self) -> Vec<u8> {
        std::fs::read(&self.config.path).unwrap()
    }

    pub fn image_file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&self.config.path)
            .unwrap()
    }

    pub fn image_at(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.image_file().read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn byte(&self, addr: u64) -> u8 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn u16_at(&self, addr: u64) -> u16 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn set_u16(&self, addr: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    pub fn write_desc(&self, table: u64, index: u16, desc: Desc) {
        let at = table + u64::from(index) * 16;
        let mut bytes = Vec::new();
        bytes.extend(desc.addr.to_le_bytes());
        bytes.extend(desc.len.to_le_bytes());
        bytes.extend(desc.flags.to_le_bytes());
        bytes.extend(desc.next.to_le_bytes());
        self.fill(at, &bytes);
    }

    /// Writes a request header at `addr`.
    pub fn header(&self, addr: u64, kind: u32, sector: u64) {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        self.fill(addr, &bytes);
    }

    /// Writes the buffers as a chain in the table at `table` from `first` on.
    pub fn chain_in(&self, table: u64, first: u16, bufs: &[Buf]) {
        for (offset, buf) in bufs.iter().enumerate() {
            let index = first + offset as u16;
            let last = offset + 1 == bufs.len();
            let mut flags = if buf.write { VIRTQ_DESC_F_WRITE } else { 0 };
            if !last {
                flags |= VIRTQ_DESC_F_NEXT;
            }
            self.write_desc(
                table,
                index,
                Desc {
                    addr: buf.addr,
                    len: buf.len,
                    flags,
                    next: index + 1,
                },
            );
        }
    }

    /// Writes the buffers as a direct chain and makes it available.
    pub fn offer(&mut self, head: u16, bufs: &[Buf]) {
        self.chain_in(self.ring.desc.0, head, bufs);
        self.offer_head(head);
    }

    /// Makes a head available.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.ring.size);
        self.set_u16(self.ring.avail.0 + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_u16(self.ring.avail.0 + 2, self.avail_idx);
    }

    /// Serves the queue until no request is available or in flight.
    pub fn run(&mut self) {
        let (queue, engine) = (self.queue.as_mut().unwrap(), &mut self.engine);
        let mut done = Vec::new();
        loop {
            queue.service(engine.get());
            while queue.queue.in_flight() > 0 {
                engine.wait(&mut done);
                for outcome in done.drain(..) {
                    queue.complete(outcome.tag, outcome.result, engine.get());
                }
            }
            queue.queue.publish();
            if !queue.queue.has_more() {
                return;
            }
        }
    }

    /// Returns whether the driver must notify the request that it has offered last (virtio 1.2, 2.7.10).
    pub fn notification_wanted(&self) -> bool {
        let used = self.ring.used.0;
        if self.features & feature(VIRTIO_RING_F_EVENT_IDX) == 0 {
            return self.u16_at(used) & VIRTQ_USED_F_NO_NOTIFY == 0;
        }
        let avail_event = self.u16_at(used + 4 + 8 * u64::from(self.ring.size));
        self.avail_idx.wrapping_sub(avail_event) == 1
    }

    /// Returns whether the driver will have to notify the next request.
    pub fn next_notification_wanted(&self) -> bool {
        let used = self.ring.used.0;
        if self.features & feature(VIRTIO_RING_F_EVENT_IDX) == 0 {
            return self.notification_wanted();
        }
        self.u16_at(used + 4 + 8 * u64::from(self.ring.size)) == self.avail_idx
    }

    pub fn used_idx(&self) -> u16 {
        self.u16_at(self.ring.used.0 + 2)
    }

    /// Takes new used entries: heads and lengths.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.used_seen != self.used_idx() {
            let at = self.ring.used.0 + 4 + 8 * u64::from(self.used_seen % self.ring.size);
            let id = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            entries.push((id, len));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        entries
    }

    /// Requests an interrupt for the next used entry, as a driver that has handled those before (2.7.10).
    pub fn request_interrupt(&self) {
        if self.features & feature(VIRTIO_RING_F_EVENT_IDX) != 0 {
            let used_event = self.ring.avail.0 + 4 + 2 * u64::from(self.ring.size);
            self.set_u16(used_event, self.used_seen);
        }
    }

    pub fn interrupt_count(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn fault_list(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Writes segments of a discard or of zeroes at `addr`: sector, sectors, flags. Returns their buffer.
    pub fn segments(&self, addr: u64, segments: &[(u64, u32, u32)]) -> Buf {
        let mut bytes = Vec::new();
        for (sector, count, flags) in segments {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.fill(addr, &bytes);
        readable(addr, bytes.len() as u32)
    }

    /// Runs a request of header, data and status at `head`; returns status and used length.
    pub fn request(&mut self, head: u16, kind: u32, sector: u64, data: Option<Buf>) -> (u8, u32) {
        let at = self.offer_request(head, kind, sector, data);
        self.run();
        let used = self.take_used();
        assert_eq!(used.len(), 1, "faults: {:?}", self.fault_list());
        assert_eq!(used[0].0, u32::from(head));
        (self.byte(at), used[0].1)
    }

    /// Offers such a request and returns the address of its status byte, which is 0xff until then.
    pub fn offer_request(&mut self, head: u16, kind: u32, sector: u64, data: Option<Buf>) -> u64 {
        let at = BUFFERS + u64::from(head) * 64;
        self.header(at, kind, sector);
        let status = at + 32;
        self.fill(status, &[0xff]);
        let mut bufs = vec![readable(at, 16)];
        bufs.extend(data);
        bufs.push(writable(status, 1));
        self.offer(head, &bufs);
        status
    }
}

/// The engine of a dead daemon.
struct Nothing;

impl Engine for Nothing {
    unsafe fn push(&mut self, _op: IoOp) {}
    fn submit(&mut self) {}
    fn reap(&mut self, _done: &mut Vec<Completion>) {}
}
