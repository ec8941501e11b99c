//! The reactor: event sources, messages, quiescing, several queues, with and without io_uring.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringvirtio::ring::RingAddresses;
use ringvirtio::waiter::eventfd;
use ringvirtio::{Commands, EventSource, QueueId, Reactor, ReactorHandle, ReactorOptions, ReadWidth};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::rig::{ALL_FEATURES, BUFFERS, Rig, open_soon, readable, writable};
use crate::disk::{Disk, EngineKind};
use crate::queue::BlockQueue;
use crate::virtio::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DATA: u64 = BUFFERS + 0x1_0000;

/// Reactors with and without io_uring, with each engine.
pub const REACTOR_VARIANTS: [(bool, EngineKind); 4] = [
    (true, EngineKind::IoUring),
    (true, EngineKind::Threads),
    (false, EngineKind::Threads),
    (false, EngineKind::IoUring),
];

/// Time after which a test has hung.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Running {
    pub handle: ReactorHandle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn new(io_uring: bool) -> Self {
        Self::with(ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        })
    }

    pub fn with(options: ReactorOptions) -> Self {
        let (reactor, handle) = Reactor::new(options).unwrap();
        let thread = std::thread::spawn(move || reactor.run().unwrap());
        Self {
            handle,
            thread: Some(thread),
        }
    }

    /// Starts a reactor that busy-polls for longer than any test from its first sleep on.
    pub fn never_sleeping() -> Self {
        Self::with(ReactorOptions {
            poll: Duration::from_secs(1_000_000),
            ..ReactorOptions::default()
        })
    }

    /// Starts a reactor that has begun to busy-poll, and will for longer than any test.
    pub fn busy_polling() -> Self {
        let reactor = Self::never_sleeping();
        let rig = Rig::closed(EngineKind::IoUring, 128, ALL_FEATURES, false);
        let id = reactor.handle.add(own_queue(&rig).0);
        let deadline = Instant::now() + TEST_TIMEOUT;
        while rig.notification_wanted() {
            assert!(Instant::now() < deadline);
            reactor.handle.schedule(id);
            std::thread::yield_now();
        }
        reactor.remove(id);
        reactor
    }

    pub fn quiesce(&self, id: QueueId) {
        let (sender, receiver) = channel();
        let then = Box::new(move || sender.send(()).unwrap());
        self.handle.command(|commands| commands.quiesce(id, then));
        receiver.recv_timeout(TEST_TIMEOUT).expect("quiesced");
    }

    pub fn remove(&self, id: QueueId) {
        let (sender, receiver) = channel();
        let then = Box::new(move || sender.send(()).unwrap());
        self.handle.command(|commands| commands.remove(id, then));
        receiver.recv_timeout(TEST_TIMEOUT).expect("removed");
    }

    pub fn resume(&self, id: QueueId) {
        self.handle.command(|commands| commands.resume(id));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Returns a queue of the rig's own disk, whose interrupts arrive on a channel.
pub fn own_queue(rig: &Rig) -> (Box<BlockQueue>, Receiver<()>) {
    queue(rig, open_soon(&rig.config))
}

/// Returns a queue of any disk, whose interrupts arrive on a channel.
pub fn queue(rig: &Rig, disk: Arc<Disk>) -> (Box<BlockQueue>, Receiver<()>) {
    let (sender, receiver) = channel();
    let mut setup = rig.setup();
    setup.notify_driver = Box::new(move || {
        let _ = sender.send(());
    });
    (Box::new(BlockQueue::new(disk, setup).unwrap()), receiver)
}

/// Waits for `count` used entries.
pub fn collect(rig: &mut Rig, interrupts: &Receiver<()>, count: usize) {
    let mut seen = rig.take_used().len();
    while seen < count {
        interrupts.recv_timeout(TEST_TIMEOUT).expect("an interrupt");
        seen += rig.take_used().len();
    }
    assert_eq!(seen, count);
}

#[test]
fn messages_serve_a_queue() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        let (queue, interrupts) = own_queue(&rig);
        let stats = queue.stats().clone();
        // Made available before the queue is added: found without a notification.
        rig.offer_request(0, VIRTIO_BLK_T_IN, 1, Some(writable(DATA, 512)));
        let id = reactor.handle.add(queue);
        collect(&mut rig, &interrupts, 1);
        for round in 0..50_u64 {
            for head in 0..20 {
                let at = DATA + u64::from(head) * 512;
                rig.fill(at, &[round as u8; 512]);
                rig.offer_request(head * 3, VIRTIO_BLK_T_OUT, head.into(), Some(readable(at, 512)));
            }
            reactor.handle.schedule(id);
            collect(&mut rig, &interrupts, 20);
            assert!(rig.image_at(0, 20 * 512).iter().all(|&byte| byte == round as u8));
        }
        rig.offer_request(0, VIRTIO_BLK_T_FLUSH, 0, None);
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        assert_eq!(
            (stats.writes.get(), stats.reads.get(), stats.flushes.get()),
            (1000, 1, 1)
        );
        assert!(stats.queue.interrupts.get() <= stats.queue.publications.get());
        reactor.remove(id);
        assert!(Disk::open(&rig.config).is_ok(), "the image is closed");
    }
}

/// A peer in shared memory, as EL2's ring is: a list of notified queues and an armed flag.
#[derive(Default)]
pub struct Peer {
    pub notified: Mutex<Vec<QueueId>>,
    armed: AtomicBool,
    pub wakeups: AtomicUsize,
    /// How often it was armed.
    pub arming: AtomicUsize,
    /// Nanoseconds that the reactor busy-polled.
    pub busy_polled: AtomicU64,
}

pub struct PeerSource(pub Arc<Peer>);

impl EventSource for PeerSource {
    fn on_wakeup(&mut self) {
        self.0.wakeups.fetch_add(1, Ordering::Relaxed);
    }

    fn collect(&mut self, commands: &mut Commands) {
        for id in self.0.notified.lock().unwrap().drain(..) {
            commands.schedule(id);
        }
    }

    fn has_events(&self) -> bool {
        !self.0.notified.lock().unwrap().is_empty()
    }

    fn on_busy_poll(&mut self, _found: bool, time: Duration) {
        self.0
            .busy_polled
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn arm(&mut self) -> bool {
        self.0.arming.fetch_add(1, Ordering::Relaxed);
        self.0.armed.store(true, Ordering::SeqCst);
        !self.0.notified.lock().unwrap().is_empty()
    }

    fn disarm(&mut self) {
        self.0.armed.store(false, Ordering::SeqCst);
    }
}

impl Peer {
    /// The guest notifies a queue: a sleeping reactor is woken.
    pub fn notify(&self, id: QueueId, event: &OwnedFd) {
        self.notified.lock().unwrap().push(id);
        if self.armed.swap(false, Ordering::SeqCst) {
            std::io::Write::write_all(
                &mut std::fs::File::from(event.try_clone().unwrap()),
                &1_u64.to_ne_bytes(),
            )
            .unwrap();
        }
    }
}

/// Adds a peer to the reactor; returns it with the eventfd that wakes the reactor.
pub fn peer_of(reactor: &Running) -> (Arc<Peer>, OwnedFd) {
    let peer = Arc::new(Peer::default());
    let event = eventfd().unwrap();
    reactor.handle.add_event_source(
        event.try_clone().unwrap(),
        ReadWidth::Eight,
        Box::new(PeerSource(peer.clone())),
    );
    (peer, event)
}

// Several queues of several zones behind one event source: no notification is lost, and no wake-up is
// spurious.
#[test]
fn an_event_source_serves_many_queues() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let (peer, event) = peer_of(&reactor);
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let (peer, event, handle) = (&peer, &event, &reactor.handle);
                scope.spawn(move || {
                    let mut rig = Rig::closed(engine, 32, ALL_FEATURES, false);
                    let (queue, interrupts) = own_queue(&rig);
                    let id = handle.add(queue);
                    for round in 0..200_u64 {
                        let count = 1 + (round % 8) as u16;
                        for head in 0..count {
                            let at = DATA + u64::from(head) * 512;
                            rig.fill(at, &[number; 512]);
                            rig.offer_request(
                                head * 3,
                                VIRTIO_BLK_T_OUT,
                                head.into(),
                                Some(readable(at, 512)),
                            );
                        }
                        peer.notify(id, event);
                        collect(&mut rig, &interrupts, count.into());
                    }
                    assert!(rig.image_at(0, 8 * 512).iter().all(|&byte| byte == number));
                });
            }
        });
        assert!(peer.wakeups.load(Ordering::Relaxed) <= 800);
    }
}

// A pipe and four bytes at a time, as from /dev/uioN.
#[test]
fn an_event_source_of_four_bytes() {
    for io_uring in [true, false] {
        let reactor = Running::new(io_uring);
        let peer = Arc::new(Peer::default());
        let (reader, mut writer) = std::io::pipe().unwrap();
        reactor
            .handle
            .add_event_source(reader.into(), ReadWidth::Four, Box::new(PeerSource(peer.clone())));
        for count in 1..=5 {
            std::io::Write::write_all(&mut writer, &7_u32.to_ne_bytes()).unwrap();
            let deadline = Instant::now() + TEST_TIMEOUT;
            while peer.wakeups.load(Ordering::Relaxed) < count {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // Nothing more is read: one wake-up for each write.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(peer.wakeups.load(Ordering::Relaxed), 5);
    }
}

// Quiesced: nothing is popped, nothing in flight, all published; then it resumes.
#[test]
fn quiesce_and_resume() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        let mut total = 0;
        for round in 0..50 {
            for head in 0..10 {
                rig.offer_request(head * 3, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 4096)));
            }
            reactor.handle.schedule(id);
            if round % 3 == 0 {
                std::thread::yield_now();
            }
            reactor.quiesce(id);
            let used = rig.used_idx();
            assert!((total..=total + 10).contains(&usize::from(used)));
            rig.fill(DATA, &[0xa5; 4096]);
            std::thread::sleep(Duration::from_millis(1));
            // torture a9: while the queue is quiesced, no byte of guest memory changes.
            assert_eq!((rig.used_idx(), rig.bytes(DATA, 4096)), (used, vec![0xa5; 4096]));
            reactor.resume(id);
            collect(&mut rig, &interrupts, 10);
            total += 10;
        }
        // A reset: the queue is removed, and a new one added.
        reactor.remove(id);
        reactor.remove(id);
        rig.epoch += 1;
        rig.fill(rig.ring.avail.0, &[0; 256]);
        rig.fill(rig.ring.used.0, &[0; 1024]);
        (rig.avail_idx, rig.used_seen) = (0, 0);
        let (again, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(again);
        rig.offer_request(0, VIRTIO_BLK_T_IN, 1, Some(writable(DATA, 512)));
        reactor.handle.schedule(id);
        collect(&mut rig, &interrupts, 1);
        assert_eq!(rig.used_idx(), 1);
    }
}

fn spare(engine: EngineKind) -> (Box<BlockQueue>, Receiver<()>) {
    own_queue(&Rig::closed(engine, 16, ALL_FEATURES, false))
}

// A reactor that stops completes all requests first; the next continues with the same log, as in an upgrade.
#[test]
fn a_reactor_takes_over_from_another() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        for round in 0..20 {
            let reactor = Running::new(io_uring);
            let (queue, interrupts) = own_queue(&rig);
            let id = reactor.handle.add(queue);
            for head in 0..10 {
                rig.offer_request(head * 3, VIRTIO_BLK_T_OUT, head.into(), Some(readable(DATA, 512)));
            }
            reactor.handle.schedule(id);
            if round % 2 == 0 {
                collect(&mut rig, &interrupts, 10);
            }
            drop(reactor);
            if round % 2 == 1 {
                let reactor = Running::new(io_uring);
                let (queue, interrupts) = own_queue(&rig);
                reactor.handle.add(queue);
                collect(&mut rig, &interrupts, 10);
            }
        }
        assert_eq!(rig.used_idx(), 200);
    }
}

// An idle reactor does not run.
#[test]
fn idle_costs_nothing() {
    for io_uring in [true, false] {
        let options = ReactorOptions {
            io_uring,
            ..ReactorOptions::default()
        };
        let (reactor, handle) = Reactor::new(options).unwrap();
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: no pointers.
            sender.send(unsafe { libc::gettid() }).unwrap();
            reactor.run().unwrap();
        });
        let tid = receiver.recv().unwrap();
        let (queue, _interrupts) = spare(EngineKind::IoUring);
        handle.add(queue);
        let switches = || {
            let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt_switches"))
                .unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        // The reactor may take a while to sleep; after that it must not run.
        let sleeps = (0..50).any(|_| {
            let before = switches();
            std::thread::sleep(Duration::from_millis(200));
            switches() == before
        });
        assert!(sleeps, "an idle reactor wakes up");
        handle.stop();
        thread.join().unwrap();
    }
}

/// An event source that always has events.
struct AlwaysReady;

impl EventSource for AlwaysReady {
    fn collect(&mut self, _commands: &mut Commands) {}

    fn arm(&mut self) -> bool {
        true
    }
}

/// Schedules one queue in every round, and keeps the reactor awake.
struct Notifier(QueueId);

impl EventSource for Notifier {
    fn collect(&mut self, commands: &mut Commands) {
        commands.schedule(self.0);
    }

    fn arm(&mut self) -> bool {
        true
    }
}

/// Resubmits each request of a queue as soon as it has completed, so that the reactor is always busy.
pub struct Resubmitter {
    memory: GuestMemoryMmap,
    ring: RingAddresses,
    id: QueueId,
    seen: u16,
    made: u16,
    begun: Arc<AtomicBool>,
}

impl Resubmitter {
    /// Adds a full queue, with more requests than are popped in one round, and starts to resubmit them.
    pub fn add(reactor: &Running) {
        let mut rig = Rig::closed(EngineKind::IoUring, 1024, ALL_FEATURES, false);
        let made = 341;
        for lane in 0..made {
            rig.offer_request(lane * 3, VIRTIO_BLK_T_GET_ID, 0, Some(writable(DATA, 20)));
        }
        let begun = Arc::new(AtomicBool::new(false));
        let id = reactor.handle.add(own_queue(&rig).0);
        let resubmitter = Self {
            memory: rig.memory.clone(),
            ring: rig.ring,
            id,
            seen: 0,
            made,
            begun: begun.clone(),
        };
        reactor
            .handle
            .add_event_source(eventfd().unwrap(), ReadWidth::Eight, Box::new(resubmitter));
        // The reactor may have completed all of them and slept before the event source was added.
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !begun.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline);
            reactor.handle.schedule(id);
            std::thread::yield_now();
        }
    }
}

impl EventSource for Resubmitter {
    fn collect(&mut self, commands: &mut Commands) {
        let (memory, used, avail) = (&self.memory, self.ring.used.0, self.ring.avail.0);
        let at = |index: u16, size: u64| 4 + size * u64::from(index % self.ring.size);
        let done: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
        while self.seen != done {
            let head: u32 = memory.read_obj(GuestAddress(used + at(self.seen, 8))).unwrap();
            let slot = GuestAddress(avail + at(self.made, 2));
            memory.write_obj(head as u16, slot).unwrap();
            self.seen = self.seen.wrapping_add(1);
            self.made = self.made.wrapping_add(1);
        }
        memory.write_obj(self.made, GuestAddress(avail + 2)).unwrap();
        self.begun.fetch_or(self.seen != 0, Ordering::Relaxed);
        commands.schedule(self.id);
    }
}

// A large queue that its driver refills continuously starves neither its own completions nor other queues.
#[test]
fn a_full_queue_starves_no_other() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let (stop, served, handle) = (&stop, &served, &reactor.handle);
            scope.spawn(move || {
                let mut full = Rig::closed(engine, 1024, ALL_FEATURES, false);
                let (queue, _interrupts) = own_queue(&full);
                let notifier = Notifier(handle.add(queue));
                handle.add_event_source(eventfd().unwrap(), ReadWidth::Eight, Box::new(notifier));
                let mut free: Vec<u16> = (0..341).collect();
                while !stop.load(Ordering::Relaxed) {
                    while let Some(lane) = free.pop() {
                        let kind = [VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN][usize::from(lane % 2)];
                        full.offer_request(lane * 3, kind, 0, Some(writable(DATA, 512)));
                    }
                    let used = full.take_used();
                    if used.is_empty() {
                        // On few CPUs, let the reactor run.
                        std::thread::yield_now();
                    }
                    for (head, _) in used {
                        free.push((head / 3) as u16);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
            let (queue, interrupts) = own_queue(&rig);
            let id = reactor.handle.add(queue);
            let deadline = Instant::now() + TEST_TIMEOUT;
            let mut rounds = 0;
            while rounds < 20 || served.load(Ordering::Relaxed) < 1000 {
                rounds += 1;
                if Instant::now() > deadline {
                    break;
                }
                rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 4096)));
                rig.offer_request(3, VIRTIO_BLK_T_FLUSH, 0, None);
                reactor.handle.schedule(id);
                collect(&mut rig, &interrupts, 2);
            }
            stop.store(true, Ordering::Relaxed);
            let served = served.load(Ordering::Relaxed);
            assert!(
                rounds >= 20 && served >= 1000,
                "{rounds} rounds beside {served} requests"
            );
        });
    }
}

// Nor queues whose notifications are disabled: they are polled in every round.
#[test]
fn a_full_queue_starves_no_polled_queue() {
    let reactor = Running::busy_polling();
    Resubmitter::add(&reactor);
    let mut rig = Rig::closed(EngineKind::IoUring, 64, ALL_FEATURES, false);
    let (queue, interrupts) = own_queue(&rig);
    rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
    reactor.handle.add(queue);
    for _ in 0..20 {
        collect(&mut rig, &interrupts, 1);
        assert!(!rig.notification_wanted());
        rig.offer_request(0, VIRTIO_BLK_T_IN, 0, Some(writable(DATA, 512)));
    }
    collect(&mut rig, &interrupts, 1);
}

// A storm of notifications does not starve completions, those from the kernel's workers included.
#[test]
fn a_busy_event_source_starves_no_queue() {
    for (io_uring, engine) in REACTOR_VARIANTS {
        let reactor = Running::new(io_uring);
        let event = eventfd().unwrap();
        reactor
            .handle
            .add_event_source(event, ReadWidth::Eight, Box::new(AlwaysReady));
        let mut rig = Rig::closed(engine, 64, ALL_FEATURES, false);
        let (queue, interrupts) = own_queue(&rig);
        let id = reactor.handle.add(queue);
        for kind in [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN] {
            let data = match kind {
                VIRTIO_BLK_T_FLUSH => None,
                VIRTIO_BLK_T_OUT => Some(readable(DATA, 4096)),
                _ => Some(writable(DATA, 4096)),
            };
            rig.offer_request(0, kind, 0, data);
            reactor.handle.schedule(id);
            collect(&mut rig, &interrupts, 1);
        }
    }
}
