//! A driver by hand: rings and chains are written byte by byte, so that they can be invalid.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ringvirtio::handler::Backends;
use ringvirtio::virtio::{VIRTIO_RING_F_EVENT_IDX, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, feature};
use ringvirtio::{
    Context, GuestRam, InflightArea, Polls, QueueHandler, QueueSetup, ReactorBackend, RingAddresses, Waiter,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use crate::memory::BYTES;
use crate::{Console, ConsoleStats, Port, PortMemory, config};

/// Where guest RAM starts.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of guest RAM.
pub const RAM: usize = 1 << 20;
/// Where buffers may be: after the rings.
pub const BUFFERS: u64 = BASE + 0x4_0000;
/// Descriptors of a queue.
pub const SIZE: u16 = 16;
/// Bytes between the rings of two queues.
const QUEUE: u64 = 0x4000;
/// Input and output of port 0, and the control queues.
pub const INPUT: u16 = 0;
pub const OUTPUT: u16 = 1;
pub const TO_DRIVER: u16 = 2;
pub const FROM_DRIVER: u16 = 3;

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

/// What the driver knows of a queue, and its log.
struct Ring {
    at: RingAddresses,
    log: Arc<MmapRegion>,
    avail_idx: u16,
    used_seen: u16,
}

/// The daemon.
struct Daemon {
    console: Arc<Console>,
    queues: BTreeMap<u16, (Box<dyn QueueHandler>, Arc<ConsoleStats>)>,
    waiter: Waiter,
    backends: Backends,
}

/// The guest with its driver, what outlives a daemon, and the daemon.
pub struct Rig {
    pub memory: GuestMemoryMmap,
    pub epoch: u64,
    ports: usize,
    kept: Arc<MmapRegion>,
    rings: Vec<Ring>,
    interrupts: Arc<AtomicUsize>,
    faults: Arc<Mutex<Vec<String>>>,
    daemon: Option<Daemon>,
}

impl Rig {
    pub fn new(ports: usize) -> Self {
        let ring = |number: usize| {
            let base = BASE + number as u64 * QUEUE;
            Ring {
                at: RingAddresses {
                    size: SIZE,
                    desc: GuestAddress(base),
                    avail: GuestAddress(base + 0x1000),
                    used: GuestAddress(base + 0x2000),
                },
                log: Arc::new(MmapRegion::new(InflightArea::bytes(SIZE).next_multiple_of(4096)).unwrap()),
                avail_idx: 0,
                used_seen: 0,
            }
        };
        let mut rig = Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), RAM)]).unwrap(),
            epoch: 1,
            ports,
            kept: Arc::new(MmapRegion::new(BYTES * ports).unwrap()),
            rings: (0..config::queues(ports)).map(ring).collect(),
            interrupts: Arc::default(),
            faults: Arc::default(),
            daemon: None,
        };
        rig.open();
        rig
    }

    /// A daemon begins, with the driver's queues as they are.
    pub fn open(&mut self) {
        self.kill();
        let memory = |port| Arc::new(PortMemory::in_mapping(&self.kept, port * BYTES).unwrap());
        let console = Console::new("console".into(), (0..self.ports).map(memory).collect());
        let mut daemon = Daemon {
            queues: BTreeMap::new(),
            waiter: Waiter::new(false, 8).unwrap(),
            backends: Backends::default(),
            console,
        };
        for (number, ring) in (0_u16..).zip(&self.rings) {
            let (interrupts, faults) = (self.interrupts.clone(), self.faults.clone());
            let setup = QueueSetup {
                ram: GuestRam::new(self.memory.clone()).unwrap(),
                ring: ring.at,
                // Whether notifications are wanted is then in the flags.
                features: daemon.console.features() & !feature(VIRTIO_RING_F_EVENT_IDX),
                inflight: InflightArea {
                    mapping: ring.log.clone(),
                    offset: 0,
                },
                epoch: self.epoch,
                notify_driver: Box::new(move || {
                    interrupts.fetch_add(1, Ordering::Relaxed);
                }),
                needs_reset: Box::new(move |fault| faults.lock().unwrap().push(fault.to_string())),
            };
            let mut made = daemon.console.queue(number, setup).unwrap();
            made.0.queue_mut().tag_base = u64::from(number + 1) << 16;
            let mut cx = Context::new(&mut daemon.waiter, &mut daemon.backends);
            made.0.attach(&mut cx).unwrap();
            daemon.queues.insert(number, made);
        }
        self.daemon = Some(daemon);
    }

    /// Kills the daemon.
    pub fn kill(&mut self) {
        for (queue, _) in self
            .daemon
            .iter_mut()
            .flat_map(|daemon| daemon.queues.values_mut())
        {
            // SAFETY: the device has no engine.
            unsafe { queue.queue_mut().assume_drained() };
        }
        self.daemon = None;
    }

    pub fn console(&self) -> &Arc<Console> {
        &self.daemon.as_ref().unwrap().console
    }

    pub fn port(&self, number: usize) -> &Arc<Port> {
        &self.console().ports()[number]
    }

    pub fn stats(&self, queue: u16) -> &ConsoleStats {
        &self.daemon.as_ref().unwrap().queues[&queue].1
    }

    /// Returns whether the driver shall notify of a queue's next buffer.
    pub fn is_notification_wanted(&self, queue: u16) -> bool {
        let flags: u16 = self
            .memory
            .read_obj(self.rings[usize::from(queue)].at.used)
            .unwrap();
        flags & 1 == 0
    }

    /// Services and publishes until no queue has something to do.
    pub fn run(&mut self) {
        let daemon = self.daemon.as_mut().unwrap();
        let mut busy = true;
        while busy {
            busy = false;
            for (queue, _) in daemon.queues.values_mut() {
                queue.service(&mut Context::new(&mut daemon.waiter, &mut daemon.backends));
                queue.queue_mut().publish();
                busy |= queue.queue().has_more() || queue.wants_service();
            }
            let mut done = Vec::new();
            if let Some(polls) = daemon.backends.get::<Polls>() {
                polls.reap(&mut done);
            }
            for completion in done {
                let number = (completion.tag >> 16) as u16 - 1;
                let mut cx = Context::new(&mut daemon.waiter, &mut daemon.backends);
                let (queue, _) = daemon.queues.get_mut(&number).unwrap();
                queue.complete(completion.tag, completion.result, &mut cx);
                busy = true;
            }
        }
    }

    /// Returns all output of a port that is kept, from a position on.
    pub fn output(&self, port: usize, mut position: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let read = self.port(port).read_output(position, &mut bytes);
            if read.len == 0 {
                return all;
            }
            all.extend_from_slice(&bytes[..read.len]);
            position = read.next;
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

    pub fn ring(&self, queue: u16) -> RingAddresses {
        self.rings[usize::from(queue)].at
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

    /// Writes a direct chain and makes it available.
    pub fn offer(&mut self, queue: u16, head: u16, bufs: &[Buf]) {
        let table = self.ring(queue).desc.0;
        for (offset, buf) in bufs.iter().enumerate() {
            let index = head + offset as u16;
            let mut buf = *buf;
            if offset + 1 < bufs.len() {
                buf.flags |= VIRTQ_DESC_F_NEXT;
            }
            self.descriptor(table, index, buf, index + 1);
        }
        self.offer_head(queue, head);
    }

    /// Makes a head available.
    pub fn offer_head(&mut self, queue: u16, head: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        let slot = u64::from(ring.avail_idx % SIZE);
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        let (avail, idx) = (ring.at.avail.0, ring.avail_idx);
        self.memory
            .write_obj(head, GuestAddress(avail + 4 + 2 * slot))
            .unwrap();
        self.set_avail_idx(queue, idx);
    }

    pub fn set_avail_idx(&self, queue: u16, idx: u16) {
        let at = self.ring(queue).avail.0 + 2;
        self.memory.write_obj(idx, GuestAddress(at)).unwrap();
    }

    /// Takes new used entries: heads and lengths.
    pub fn take_used(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        let ring = &mut self.rings[usize::from(queue)];
        let used = ring.at.used.0;
        while ring.used_seen != self.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap() {
            let at = used + 4 + 8 * u64::from(ring.used_seen % SIZE);
            let id = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            entries.push((id, len));
            ring.used_seen = ring.used_seen.wrapping_add(1);
        }
        entries
    }

    /// Prints `text` through head 0, and checks that it is done.
    pub fn print(&mut self, queue: u16, text: &[u8]) {
        self.fill(BUFFERS, text);
        self.offer(queue, 0, &[readable(BUFFERS, text.len() as u32)]);
        self.run();
        assert_eq!(self.take_used(queue), [(0, 0)]);
    }

    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Resets the device and sets the queues up again, as the driver does.
    pub fn reset(&mut self) {
        self.epoch += 1;
        for number in 0..self.rings.len() {
            let ring = &mut self.rings[number];
            (ring.avail_idx, ring.used_seen) = (0, 0);
            let at = ring.at;
            self.fill(at.avail.0, &[0; 64]);
            self.fill(at.used.0, &[0; 256]);
        }
        self.open();
    }
}
