//! A daemon: the real device code of `ringd` and the real queues of `ringblk`, and the reactor's round in steps.
//!
//! The order of the steps is that of `ringblk::reactor` and `ringd::io`; between any two of them the scheduler
//! may do something else, or end the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringblk::engine::{Engine, IoDone};
use ringblk::{Callback, Disk, GuestRam, Queue, QueueId};
use ringd::device::Device;
use ringd::hv::Hypervisor;
use ringd::io::queues::Queues;
use ringd::io::served::{DeviceParts, ServedDevice};
use ringvisor::abi::shared;
use ringvisor::ring::{Consumer, Entry};
use vm_memory::MmapRegion;

use crate::disk::{SimDisk, SimEngine};
use crate::el2::{SLOT, SimEl2, ZONE};
use crate::options::{Profile, Sabotage};

/// What the next step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Takes an entry off the ring.
    Collect,
    /// Does what the entry says.
    Handle(Entry),
    /// Obeys a message of the last step.
    Obey,
    /// Takes what a kicked queue offers.
    Service,
    /// Publishes what is done.
    Publish,
    /// Tells those who wait for queues at rest.
    Settle,
    /// Looks at the available rings, so many times still.
    Look(u64),
    /// Signals what was left to a later publication, of one queue.
    Signal,
    /// Asks a driver for notifications, if one is not asked.
    Listen,
    /// Asks for the bell.
    Arm,
    /// Sleeps, if the flag says so.
    Sleep(bool),
    /// Is awake again.
    Disarm,
    /// Takes a result.
    Complete,
}

enum Message {
    Add(QueueId, Box<Queue>),
    Kick(QueueId),
    Remove(QueueId, Callback),
}

struct Served {
    queue: Queue,
    waiting: Vec<Callback>,
    kicked: bool,
    dirty: bool,
}

/// The list that `ringd`'s device code adds to.
#[derive(Default)]
struct Commands {
    list: VecDeque<Message>,
    ids: u64,
}

impl Queues for Commands {
    fn add(&mut self, queue: Queue) -> QueueId {
        let id = QueueId::from_number(self.ids);
        self.ids += 1;
        self.list.push_back(Message::Add(id, Box::new(queue)));
        id
    }

    fn schedule(&mut self, id: QueueId) {
        self.list.push_back(Message::Kick(id));
    }

    fn remove(&mut self, id: QueueId, then: Callback) {
        self.list.push_back(Message::Remove(id, then));
    }
}

/// See the module.
pub struct Daemon {
    hv: Arc<SimEl2>,
    dyn_hv: Arc<dyn Hypervisor>,
    disk: SimDisk,
    engine: SimEngine,
    sabotage: Sabotage,
    /// How often it looks on before it sleeps.
    looks: u64,
    device: ServedDevice,
    consumer: Consumer,
    /// The ring was taken over: everything counts as changed.
    refresh: bool,
    phase: Phase,
    commands: Commands,
    queues: BTreeMap<QueueId, Served>,
    done: VecDeque<IoDone>,
}

impl Daemon {
    /// Attaches. `disk` was opened by this daemon; `log` outlives it.
    pub fn new(
        hv: Arc<SimEl2>,
        disk: Arc<Disk>,
        ram: Arc<GuestRam>,
        log: Arc<MmapRegion>,
        sim: SimDisk,
        profile: &Profile,
    ) -> Self {
        let Profile {
            queues,
            sabotage,
            looks,
            ..
        } = *profile;
        let device = ServedDevice::new(DeviceParts {
            zone: ZONE,
            slot: SLOT,
            queues,
            device: Device::Disk(disk),
            ram,
            log,
            starts: 1,
        });
        let consumer = Consumer::attach(&hv.window().ring(), hv.ring_head());
        Self {
            dyn_hv: hv.clone(),
            engine: SimEngine(sim.clone()),
            disk: sim,
            hv,
            sabotage,
            looks,
            device,
            consumer,
            refresh: true,
            phase: Phase::Collect,
            commands: Commands::default(),
            queues: BTreeMap::new(),
            done: VecDeque::new(),
        }
    }

    /// Whether it sleeps and nothing has come that would wake it.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.phase == Phase::Sleep(true) && !self.hv.bell() && !self.disk.has_results()
    }

    /// Wakes it without a reason.
    pub fn wake(&mut self) {
        if self.phase == Phase::Sleep(true) {
            self.phase = Phase::Disarm;
        }
    }

    /// One step; what it was.
    pub fn step(&mut self) -> &'static str {
        match self.phase {
            Phase::Collect => self.collect(),
            Phase::Handle(entry) => self.handle(entry),
            Phase::Obey => self.obey(),
            Phase::Service => self.service(),
            Phase::Publish => self.publish(),
            Phase::Settle => self.settle(),
            Phase::Look(left) => self.look(left),
            Phase::Signal => self.signal(),
            Phase::Listen => self.listen(),
            Phase::Arm => self.arm(),
            Phase::Sleep(sleep) => {
                if sleep && !self.hv.bell() && !self.disk.has_results() {
                    return "asleep";
                }
                let _ = self.hv.take_bell();
                self.phase = Phase::Disarm;
                "wakes"
            }
            Phase::Disarm => {
                let offset = shared::zone_window(ZONE).map(|window| window + shared::ARMED);
                if let Some(armed) = offset.and_then(|offset| self.hv.shared().u32_at(offset)) {
                    armed.swap(0, Ordering::Relaxed);
                }
                let mut done = Vec::new();
                self.engine.reap(&mut done);
                self.done.extend(done);
                self.phase = Phase::Complete;
                "disarms"
            }
            Phase::Complete => self.complete(),
        }
    }

    fn collect(&mut self) -> &'static str {
        if mem::take(&mut self.refresh) {
            self.device.refresh(&self.dyn_hv, &mut self.commands);
            return "refreshes";
        }
        match self.consumer.take(&self.hv.window().ring()) {
            Some(entry) => {
                self.phase = Phase::Handle(entry);
                "takes an entry"
            }
            None => {
                self.phase = Phase::Obey;
                "finds no entry"
            }
        }
    }

    fn handle(&mut self, entry: Entry) -> &'static str {
        self.phase = Phase::Collect;
        match entry {
            Entry::Notify { slot: SLOT, queue } => {
                if let Some(id) = self.device.queue(queue) {
                    self.commands.list.push_back(Message::Kick(id));
                }
                "was notified"
            }
            Entry::Device { slot: SLOT } => {
                self.device.refresh(&self.dyn_hv, &mut self.commands);
                if let (Sabotage::DeafToCache, Some(disk)) = (self.sabotage, self.device.device().disk()) {
                    disk.control().set_writeback(true);
                }
                "looks at the device"
            }
            _ => "ignores an entry",
        }
    }

    fn obey(&mut self) -> &'static str {
        match self.commands.list.pop_front() {
            None => {
                self.phase = Phase::Service;
                "obeyed"
            }
            Some(Message::Add(id, mut queue)) => {
                queue.set_tag_base(id.number() << 16);
                let served = Served {
                    queue: *queue,
                    waiting: Vec::new(),
                    kicked: true,
                    dirty: false,
                };
                self.queues.insert(id, served);
                "adds a queue"
            }
            Some(Message::Kick(id)) => {
                if let Some(served) = self.queues.get_mut(&id) {
                    served.kicked = true;
                }
                "kicks"
            }
            Some(Message::Remove(id, then)) => {
                match self.queues.get_mut(&id) {
                    Some(_) if self.sabotage == Sabotage::EarlyQuiesce => then(),
                    Some(served) => {
                        served.queue.set_paused(true);
                        served.waiting.push(then);
                        served.dirty = true;
                    }
                    None => then(),
                }
                "removes"
            }
        }
    }

    fn service(&mut self) -> &'static str {
        let Some(served) = self.queues.values_mut().find(|served| served.kicked) else {
            self.phase = Phase::Publish;
            return "served";
        };
        served.kicked = false;
        served.dirty = true;
        served.queue.set_quiet(self.looks > 0);
        served.queue.service(&mut self.engine);
        "serves"
    }

    fn publish(&mut self) -> &'static str {
        self.phase = Phase::Settle;
        for served in self.queues.values_mut().filter(|served| served.dirty) {
            served.queue.publish();
        }
        "publishes"
    }

    fn settle(&mut self) -> &'static str {
        let dirty = self.queues.iter_mut().find(|(_, served)| served.dirty);
        let Some((&id, served)) = dirty else {
            self.phase = Phase::Look(self.looks);
            return "settled";
        };
        served.dirty = false;
        if served.queue.running() == 0 && !served.waiting.is_empty() {
            let waiting = mem::take(&mut served.waiting);
            // Nothing but removals waits here.
            self.queues.remove(&id);
            waiting.into_iter().for_each(|then| then());
        }
        "settles"
    }

    fn look(&mut self, left: u64) -> &'static str {
        let Some(left) = left.checked_sub(1) else {
            self.phase = Phase::Signal;
            return "has looked";
        };
        self.phase = Phase::Look(left);
        for served in self.queues.values_mut() {
            if served.queue.has_available() {
                served.kicked = true;
                self.phase = Phase::Collect;
            }
        }
        if self.consumer.peek(&self.hv.window().ring()).is_some() || self.disk.has_results() {
            self.phase = Phase::Disarm;
        }
        "looks"
    }

    fn signal(&mut self) -> &'static str {
        let due = self
            .queues
            .values_mut()
            .map(|served| &mut served.queue)
            .find(|queue| queue.interrupt_due().is_some());
        match due {
            Some(queue) if self.sabotage != Sabotage::NoSignal => {
                queue.signal_overdue();
                "signals"
            }
            _ => {
                self.phase = Phase::Listen;
                "has signalled"
            }
        }
    }

    fn listen(&mut self) -> &'static str {
        let queue = self
            .queues
            .values_mut()
            .find(|served| served.queue.wants_to_listen() && self.sabotage != Sabotage::NoListen);
        match queue {
            Some(served) => served.kicked |= served.queue.listen(),
            None => self.phase = Phase::Arm,
        }
        "listens"
    }

    fn arm(&mut self) -> &'static str {
        let armed = self.consumer.prepare_to_sleep(&self.hv.window().ring());
        let more = match self.sabotage {
            Sabotage::NoSecondLook => false,
            _ => !armed,
        };
        let idle = self.commands.list.is_empty() && self.queues.values().all(|served| !served.kicked);
        self.phase = Phase::Sleep(!more && idle);
        "arms"
    }

    fn complete(&mut self) -> &'static str {
        let Some(outcome) = self.done.pop_front() else {
            self.phase = Phase::Collect;
            return "completed";
        };
        let id = QueueId::from_number(outcome.tag >> 16);
        if let Some(served) = self.queues.get_mut(&id) {
            served
                .queue
                .complete(outcome.tag, outcome.result, &mut self.engine);
            served.dirty = true;
        }
        "completes"
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let added = self.commands.list.iter_mut().filter_map(|message| match message {
            Message::Add(_, queue) => Some(&mut **queue),
            _ => None,
        });
        for queue in self
            .queues
            .values_mut()
            .map(|served| &mut served.queue)
            .chain(added)
        {
            // SAFETY: the simulated disk keeps addresses in the arena, which stays; it never reads the queue's lists
            // again.
            unsafe { queue.assume_drained() };
        }
    }
}
