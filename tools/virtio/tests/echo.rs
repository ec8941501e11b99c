//! The smallest device, on a real reactor: a queue that copies a request's readable buffers to its writable
//! ones.
#![cfg(test)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ringvirtio::buffers::Buffers;
use ringvirtio::virtio::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use ringvirtio::{
    Completion, Context, GuestRam, InflightArea, QueueFault, QueueHandler, QueueId, QueueSetup, Reactor,
    ReactorBackend, ReactorHandle, ReactorOptions, RingAddresses, VirtQueue, Waiter,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

const BASE: u64 = 0x4000_0000;
const AVAIL: u64 = BASE + 0x1000;
const USED: u64 = BASE + 0x2000;
const SENT: u64 = BASE + 0x3000;
const RECEIVED: u64 = BASE + 0x4000;
const SIZE: u16 = 8;
/// Time after which a test has hung.
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Completes each operation in the round after it was pushed.
#[derive(Default)]
struct EchoBackend {
    pushed: Vec<Completion>,
    done: Vec<Completion>,
}

impl ReactorBackend for EchoBackend {
    fn submit(&mut self, _waiter: &mut Waiter) {
        self.done.append(&mut self.pushed);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn has_completions(&self) -> bool {
        !self.done.is_empty()
    }
}

struct EchoQueue {
    queue: VirtQueue,
    slots: Vec<(Buffers, Buffers)>,
    /// Requests are started and never complete.
    stuck: bool,
    /// Services that start nothing.
    skipped: u16,
    /// The last service has left requests.
    woken: bool,
}

impl EchoQueue {
    fn pop(&mut self) -> Result<u16, QueueFault> {
        let head = self.queue.peek()?;
        let (readable, writable) = &mut self.slots[usize::from(head)];
        readable.clear();
        writable.clear();
        self.queue.walk(head, readable, writable)?;
        self.queue.accept(head);
        Ok(head)
    }

    fn start(&mut self, head: u16, cx: &mut Context<'_>) {
        self.queue.start();
        let (readable, writable) = &mut self.slots[usize::from(head)];
        let mut bytes = vec![0; readable.total() as usize];
        assert!(readable.take_front(&mut bytes));
        let result = writable.write_front(&bytes) as i32;
        let tag = self.queue.tag_base | u64::from(head);
        let (backend, _) = cx.backend::<EchoBackend>().unwrap();
        if !self.stuck {
            backend.pushed.push(Completion { tag, result });
        }
    }
}

impl QueueHandler for EchoQueue {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        assert!(cx.make_backend::<EchoBackend>().is_some());
        Ok(())
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        self.woken = false;
        self.queue.begin_service();
        if self.queue.paused {
            return;
        }
        let restart = self.queue.take_restart();
        for &head in &restart {
            let (readable, writable) = &mut self.slots[usize::from(head)];
            self.queue.walk(head, readable, writable).unwrap();
            self.start(head, cx);
        }
        self.queue.begin_round();
        if self.skipped > 0 {
            self.skipped -= 1;
            self.woken = self.queue.enable_notifications();
            return;
        }
        while self.queue.has_next() {
            match self.pop() {
                Ok(head) => self.start(head, cx),
                Err(fault) => self.queue.fail(fault),
            }
        }
        self.queue.end_round();
        self.queue.end_service(restart.len() as u16);
    }

    fn complete(&mut self, tag: u64, result: i32, _cx: &mut Context<'_>) {
        self.queue.begin_complete();
        self.queue.complete(tag as u16, result as u32);
    }

    fn wants_service(&self) -> bool {
        self.woken
    }

    fn abandon(&mut self, _cx: &mut Context<'_>) -> bool {
        let count = if self.stuck { self.queue.in_flight() } else { 0 };
        self.queue.abandon(count);
        count > 0
    }
}

/// The guest with its driver, and what outlives a daemon.
struct Guest {
    memory: GuestMemoryMmap,
    log: Arc<MmapRegion>,
    avail: u16,
    used: u16,
}

impl Guest {
    fn new() -> Self {
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), 0x1_0000)]).unwrap(),
            log: Arc::new(MmapRegion::new(InflightArea::bytes(SIZE).next_multiple_of(4096)).unwrap()),
            avail: 0,
            used: 0,
        }
    }

    fn handler(&self, stuck: bool, interrupts: Sender<()>, faults: Sender<String>) -> Box<EchoQueue> {
        let ram = GuestRam::new(self.memory.clone()).unwrap();
        let slots = (0..SIZE).map(|_| (Buffers::new(ram.clone()), Buffers::new(ram.clone())));
        let setup = QueueSetup {
            ram: ram.clone(),
            ring: RingAddresses {
                size: SIZE,
                desc: GuestAddress(BASE),
                avail: GuestAddress(AVAIL),
                used: GuestAddress(USED),
            },
            features: 0,
            inflight: InflightArea {
                mapping: self.log.clone(),
                offset: 0,
            },
            epoch: 1,
            notify_driver: Box::new(move || {
                let _ = interrupts.send(());
            }),
            needs_reset: Box::new(move |fault| faults.send(fault.to_string()).unwrap()),
        };
        Box::new(EchoQueue {
            queue: VirtQueue::new(setup).unwrap(),
            slots: slots.collect(),
            stuck,
            skipped: 0,
            woken: false,
        })
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Sends four bytes in the chain at an even head.
    fn send(&mut self, head: u16, bytes: [u8; 4]) {
        let at = u64::from(head) * 16;
        self.put(bytes, SENT + at);
        let flags = [VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE];
        for (index, (addr, flags)) in [SENT, RECEIVED].into_iter().zip(flags).enumerate() {
            let desc = BASE + at + index as u64 * 16;
            self.put((addr + at).to_le_bytes(), desc);
            self.put(4_u32.to_le_bytes(), desc + 8);
            self.put(flags.to_le_bytes(), desc + 12);
            self.put((head + 1).to_le_bytes(), desc + 14);
        }
        self.offer(head);
    }

    fn offer(&mut self, head: u16) {
        self.put(head.to_le_bytes(), AVAIL + 4 + 2 * u64::from(self.avail % SIZE));
        self.avail = self.avail.wrapping_add(1);
        let idx = GuestAddress(AVAIL + 2);
        self.memory
            .store(self.avail.to_le(), idx, Ordering::Release)
            .unwrap();
    }

    /// Waits for the next used entry: head and length.
    fn receive(&mut self, interrupts: &Receiver<()>) -> (u32, u32) {
        let idx = GuestAddress(USED + 2);
        while u16::from_le(self.memory.load(idx, Ordering::Acquire).unwrap()) == self.used {
            interrupts.recv_timeout(TEST_TIMEOUT).expect("an interrupt");
        }
        let at = USED + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let [head, len]: [u32; 2] = [at, at + 4].map(|at| self.memory.read_obj(GuestAddress(at)).unwrap());
        (head, len)
    }

    fn received(&self, head: u16) -> [u8; 4] {
        self.memory
            .read_obj(GuestAddress(RECEIVED + u64::from(head) * 16))
            .unwrap()
    }
}

struct Running(ReactorHandle, Option<JoinHandle<()>>);

impl Running {
    fn new(io_uring: bool) -> Self {
        let options = ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        };
        let (reactor, handle) = Reactor::new(options).unwrap();
        Self(handle, Some(std::thread::spawn(move || reactor.run().unwrap())))
    }

    fn remove(&self, id: QueueId) {
        let (sender, removed) = channel();
        let then = Box::new(move || sender.send(()).unwrap());
        self.0.command(|commands| commands.remove(id, then));
        removed.recv_timeout(TEST_TIMEOUT).expect("removed");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
        self.1.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_device_without_a_disk() {
    for io_uring in [true, false] {
        let reactor = Running::new(io_uring);
        let mut guest = Guest::new();
        let ((raise, interrupts), (fault, faults)) = (channel(), channel());
        let handler = guest.handler(false, raise, fault);
        let stats = handler.queue.stats().clone();
        let id = reactor.0.add(handler);
        for round in 0..1000_u16 {
            let head = round % (SIZE / 2) * 2;
            let bytes = u32::from(round).to_le_bytes();
            guest.send(head, bytes);
            reactor.0.schedule(id);
            assert_eq!(guest.receive(&interrupts), (head.into(), 4));
            assert_eq!(guest.received(head), bytes);
        }
        assert_eq!(stats.batched.get(), 1000);
        // A quiesced queue pops nothing until it is resumed.
        let (sender, quiesced) = channel();
        let then = Box::new(move || sender.send(()).unwrap());
        reactor.0.command(|commands| commands.quiesce(id, then));
        quiesced.recv_timeout(TEST_TIMEOUT).unwrap();
        guest.send(0, [1; 4]);
        reactor.0.schedule(id);
        reactor.remove(id);
        assert_eq!(stats.batched.get(), 1000);
        assert!(faults.try_recv().is_err());
    }
}

// Requests that a service leaves, with notifications enabled behind them, are notified of by no one.
#[test]
fn a_queue_that_wants_service_gets_it_without_a_notification() {
    for io_uring in [true, false] {
        let reactor = Running::new(io_uring);
        let mut guest = Guest::new();
        let ((raise, interrupts), (fault, faults)) = (channel(), channel());
        let mut handler = guest.handler(false, raise, fault);
        handler.skipped = 2;
        guest.send(0, [1; 4]);
        let id = reactor.0.add(handler);
        assert_eq!(guest.receive(&interrupts), (0, 4));
        reactor.remove(id);
        assert!(faults.try_recv().is_err());
    }
}

// Requests in flight when the queue is removed are in the log; the next queue runs them once, before later
// requests.
#[test]
fn a_take_over_resubmits_requests_in_flight() {
    for io_uring in [true, false] {
        let reactor = Running::new(io_uring);
        let mut guest = Guest::new();
        let ((raise, interrupts), (fault, _faults)) = (channel(), channel());
        let handler = guest.handler(true, raise.clone(), fault.clone());
        let stats = handler.queue.stats().clone();
        let id = reactor.0.add(handler);
        guest.send(0, [7; 4]);
        reactor.0.schedule(id);
        while stats.batched.get() == 0 {
            std::thread::yield_now();
        }
        reactor.remove(id);
        guest.put([0; 4], RECEIVED);
        guest.send(2, [8; 4]);
        reactor.0.add(guest.handler(false, raise, fault));
        assert_eq!(guest.receive(&interrupts), (0, 4));
        assert_eq!(guest.receive(&interrupts), (2, 4));
        assert_eq!((guest.received(0), guest.received(2)), ([7; 4], [8; 4]));
    }
}

#[test]
fn a_driver_error_breaks_its_queue_alone() {
    let reactor = Running::new(true);
    let (mut guest, mut other) = (Guest::new(), Guest::new());
    let ((raise, interrupts), (fault, faults)) = (channel(), channel());
    let broken = reactor.0.add(guest.handler(false, channel().0, fault.clone()));
    let id = reactor.0.add(other.handler(false, raise, fault));
    guest.offer(SIZE);
    reactor.0.schedule(broken);
    let message = faults.recv_timeout(TEST_TIMEOUT).unwrap();
    assert_eq!(message, "head 8 is outside of the descriptor table");
    other.send(0, [3; 4]);
    reactor.0.schedule(id);
    assert_eq!(other.receive(&interrupts), (0, 4));
    reactor.remove(broken);
}
