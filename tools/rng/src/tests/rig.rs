//! A driver by hand: rings and chains are written byte by byte, so that they can be invalid.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ringvirtio::clock::Clock;
use ringvirtio::handler::Backends;
use ringvirtio::virtio::{
    VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, feature,
};
use ringvirtio::{
    Context, GuestRam, InflightArea, QueueHandler, QueueSetup, RingAddresses, VirtQueue, Waiter,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use crate::{Rng, RngQueue};

/// Where guest RAM starts.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of guest RAM.
pub const RAM: usize = 1 << 20;
/// Where buffers may be: after the rings.
pub const BUFFERS: u64 = BASE + 0x1_0000;
/// Descriptors of the queue.
pub const SIZE: u16 = 16;

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
}

pub fn readable(addr: u64, len: u32) -> Buf {
    Buf { addr, len, flags: 0 }
}

pub fn writable(addr: u64, len: u32) -> Buf {
    Buf {
        addr,
        len,
        flags: VIRTQ_DESC_F_WRITE,
    }
}

/// The guest with its driver, what outlives a daemon, and the daemon.
pub struct Rig {
    pub rng: Arc<Rng>,
    pub memory: GuestMemoryMmap,
    pub ring: RingAddresses,
    pub features: u64,
    pub epoch: u64,
    log: Arc<MmapRegion>,
    interrupts: Arc<AtomicUsize>,
    faults: Arc<Mutex<Vec<String>>>,
    avail_idx: u16,
    used_seen: u16,
    queue: Option<RngQueue>,
}

/// Returns a device that fills each request with a byte of its own, from 1 on.
pub fn counting() -> Arc<Rng> {
    let next = AtomicU8::new(1);
    Rng::with_source(Box::new(move |bytes| {
        bytes.fill(next.fetch_add(1, Ordering::Relaxed).max(1));
        Ok(())
    }))
}

impl Rig {
    pub fn new(rng: Arc<Rng>) -> Self {
        let mut rig = Self {
            rng,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), RAM)]).unwrap(),
            ring: RingAddresses {
                size: SIZE,
                desc: GuestAddress(BASE),
                avail: GuestAddress(BASE + 0x1000),
                used: GuestAddress(BASE + 0x2000),
            },
            features: feature(VIRTIO_F_VERSION_1) | feature(VIRTIO_RING_F_INDIRECT_DESC),
            epoch: 1,
            log: Arc::new(MmapRegion::new(InflightArea::bytes(SIZE).next_multiple_of(4096)).unwrap()),
            interrupts: Arc::default(),
            faults: Arc::default(),
            avail_idx: 0,
            used_seen: 0,
            queue: None,
        };
        rig.open();
        rig
    }

    /// Creates the queue, as a daemon does when the driver sets it up or after a take-over.
    pub fn open(&mut self) {
        self.kill();
        let (interrupts, faults) = (self.interrupts.clone(), self.faults.clone());
        let setup = QueueSetup {
            ram: GuestRam::new(self.memory.clone()).unwrap(),
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
        };
        self.queue = Some(RngQueue::new(self.rng.clone(), setup).unwrap());
    }

    /// Kills the daemon.
    pub fn kill(&mut self) {
        if let Some(mut queue) = self.queue.take() {
            // SAFETY: the device has no engine.
            unsafe { queue.queue_mut().assume_drained() };
        }
    }

    pub fn queue(&mut self) -> &mut RngQueue {
        self.queue.as_mut().unwrap()
    }

    pub fn vq(&mut self) -> &mut VirtQueue {
        self.queue().queue_mut()
    }

    pub fn set_clock(&mut self, clock: Clock) {
        self.vq().clock = clock;
    }

    /// Services and publishes until no request can be popped now.
    pub fn run(&mut self) {
        let mut waiter = Waiter::new(false, 8).unwrap();
        let mut backends = Backends::default();
        loop {
            let queue = self.queue();
            queue.service(&mut Context::new(&mut waiter, &mut backends));
            queue.queue_mut().publish();
            if !queue.queue().has_more() {
                return;
            }
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

    pub fn u16_at(&self, addr: u64) -> u16 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn set_u16(&self, addr: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
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
    pub fn offer(&mut self, head: u16, bufs: &[Buf]) {
        self.chain(self.ring.desc.0, head, bufs);
        self.offer_head(head);
    }

    /// Makes a head available.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.ring.size);
        self.set_u16(self.ring.avail.0 + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_u16(self.ring.avail.0 + 2, self.avail_idx);
    }

    /// Takes new used entries: heads and lengths.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.used_seen != self.u16_at(self.ring.used.0 + 2) {
            let at = self.ring.used.0 + 4 + 8 * u64::from(self.used_seen % self.ring.size);
            let id = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            entries.push((id, len));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        entries
    }

    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Resets the device and sets the queue up again, as the driver does.
    pub fn reset(&mut self) {
        self.epoch += 1;
        self.fill(self.ring.avail.0, &[0; 64]);
        self.fill(self.ring.used.0, &[0; 256]);
        (self.avail_idx, self.used_seen) = (0, 0);
        self.open();
    }
}
