//! The daemon: `ringd`'s device code and `ringblk`'s queues as they are, and the reactor's round as single
//! steps.
//!
//! The order of the steps is that of `ringvirtio::reactor` and `ringd::io`; between any two of them the
//! scheduler may run another party or kill the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringblk::BlockBackend;
use ringd::device::Device;
use ringd::hv::Hypervisor;
use ringd::io::served::{DeviceParts, ServedDevice};
use ringvirtio::handler::Backends;
use ringvirtio::reactor::Message;
use ringvirtio::{Callback, Commands, Completion, Context, GuestRam, Polls, QueueHandler, QueueId, Waiter};
use ringvisor::abi::shared;
use ringvisor::ring::{Consumer, Entry};
use vm_memory::MmapRegion;

use crate::disk::{SimDisk, SimEngine};
use crate::el2::{SLOT, SimEl2, ZONE};
use crate::options::{Profile, Sabotage};

/// What the next step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Pops an entry off the event ring.
    Collect,
    /// Handles the entry.
    Handle(Entry),
    /// Executes a command that the device code has queued.
    CarryOut,
    /// Services a ready queue.
    Service,
    /// Publishes what completed.
    Publish,
    /// Calls the callbacks of a queue that is quiesced.
    FinishQuiesced,
    /// Polls the available rings; the number of polls left.
    BusyPoll(u64),
    /// Sends one queue's used buffer notification that was deferred to a later publication.
    Signal,
    /// Enables the notifications of a queue.
    EnableNotifications,
    /// Arms the event source.
    Arm,
    /// Sleeps if the flag is set.
    Sleep(bool),
    /// Disarms the event source after a wake-up.
    Disarm,
    /// Handles a completion.
    Complete,
}

struct Served {
    handler: Box<dyn QueueHandler>,
    quiesced: Vec<Callback>,
    ready: bool,
    dirty: bool,
}

/// See the module.
pub struct Daemon {
    hv: Arc<SimEl2>,
    dyn_hv: Arc<dyn Hypervisor>,
    disk: SimDisk,
    waiter: Waiter,
    backends: Backends,
    sabotage: Sabotage,
    /// Polls of the available rings before it sleeps.
    busy_polls: u64,
    device: ServedDevice,
    consumer: Consumer,
    /// The event ring was taken over, so the device's whole state is read again.
    refresh: bool,
    phase: Phase,
    /// What `ringd`'s device code queues for the reactor.
    commands: Commands,
    queues: BTreeMap<QueueId, Served>,
    done: VecDeque<Completion>,
}

impl Daemon {
    /// Starts a daemon that adopts the zone. It has opened `device` itself; `log` outlives it.
    pub fn new(
        hv: Arc<SimEl2>,
        device: Device,
        ram: Arc<GuestRam>,
        log: Arc<MmapRegion>,
        sim: SimDisk,
        profile: &Profile,
    ) -> Self {
        let Profile {
            queues,
            sabotage,
            busy_polls,
            ..
        } = *profile;
        let device = ServedDevice::new(DeviceParts {
            zone: ZONE,
            slot: SLOT,
            queues,
            device,
            ram,
            log,
            starts: 1,
        });
        let mut backends = Backends::default();
        backends.add::<BlockBackend>();
        backends.add::<Polls>();
        if let Some(backend) = backends.get::<BlockBackend>() {
            backend.set_engine(Box::new(SimEngine(sim.clone())));
        }
        let consumer = Consumer::attach(&hv.window().ring(), hv.ring_head());
        Self {
            dyn_hv: hv.clone(),
            waiter: Waiter::new(false, 0).expect("descriptors"),
            backends,
            disk: sim,
            hv,
            sabotage,
            busy_polls,
            device,
            consumer,
            refresh: true,
            phase: Phase::Collect,
            commands: Commands::default(),
            queues: BTreeMap::new(),
            done: VecDeque::new(),
        }
    }

    /// Returns whether it sleeps with nothing pending that would wake it.
    pub fn is_sleeping(&mut self) -> bool {
        self.phase == Phase::Sleep(true) && !self.hv.event_interrupt() && !self.has_completions()
    }

    /// Returns whether something that it waits for has happened: an operation has completed, a descriptor
    /// that is polled is ready, or time has passed.
    fn has_completions(&mut self) -> bool {
        self.disk.has_results()
            || self
                .backends
                .get::<Polls>()
                .is_some_and(|polls| polls.has_ready())
            || self
                .queues
                .values()
                .any(|served| served.handler.queue().deadline().is_some())
    }

    /// Wakes it spuriously.
    pub fn wake(&mut self) {
        if self.phase == Phase::Sleep(true) {
            self.phase = Phase::Disarm;
        }
    }

    /// Runs one step and returns its name.
    pub fn step(&mut self) -> &'static str {
        match self.phase {
            Phase::Collect => self.collect(),
            Phase::Handle(entry) => self.handle(entry),
            Phase::CarryOut => self.carry_out(),
            Phase::Service => self.service(),
            Phase::Publish => self.publish(),
            Phase::FinishQuiesced => self.finish_quiesced(),
            Phase::BusyPoll(left) => self.busy_poll(left),
            Phase::Signal => self.signal(),
            Phase::EnableNotifications => self.enable_notifications(),
            Phase::Arm => self.arm(),
            Phase::Sleep(sleep) => {
                if sleep && !self.hv.event_interrupt() && !self.has_completions() {
                    return "sleeping";
                }
                let _ = self.hv.take_event_interrupt();
                self.phase = Phase::Disarm;
                "wakes"
            }
            Phase::Disarm => {
                let offset = shared::zone_window(ZONE).map(|window| window + shared::ARMED);
                if let Some(armed) = offset.and_then(|offset| self.hv.shared().u32_at(offset)) {
                    armed.swap(0, Ordering::Relaxed);
                }
                let mut done = Vec::new();
                self.backends.reap(&mut done);
                self.done.extend(done);
                for served in self.queues.values_mut() {
                    served.ready |= served.handler.queue().deadline().is_some();
                }
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
        match self.consumer.pop(&self.hv.window().ring()) {
            Some(entry) => {
                self.phase = Phase::Handle(entry);
                "pops an entry"
            }
            None => {
                self.phase = Phase::CarryOut;
                "finds no entry"
            }
        }
    }

    fn handle(&mut self, entry: Entry) -> &'static str {
        self.phase = Phase::Collect;
        match entry {
            Entry::Notify { slot: SLOT, queue } => {
                if let Some(id) = self.device.queue(queue) {
                    self.commands.schedule(id);
                }
                "was notified"
            }
            Entry::Device { slot: SLOT } => {
                self.device.refresh(&self.dyn_hv, &mut self.commands);
                if let (Sabotage::IgnoreCacheSwitch, Some(disk)) =
                    (self.sabotage, self.device.device().disk())
                {
                    disk.control().set_writeback(true);
                }
                "reads the device's state"
            }
            _ => "ignores an entry",
        }
    }

    fn carry_out(&mut self) -> &'static str {
        match self.commands.list.pop_front() {
            None => {
                self.phase = Phase::Service;
                "carried out"
            }
            Some(Message::Add { id, mut handler }) => {
                handler.queue_mut().tag_base = id.tag();
                let served = Served {
                    handler,
                    quiesced: Vec::new(),
                    ready: true,
                    dirty: false,
                };
                self.queues.insert(id, served);
                "adds a queue"
            }
            Some(Message::Schedule(id)) => {
                if let Some(served) = self.queues.get_mut(&id) {
                    served.ready = true;
                }
                "schedules"
            }
            Some(Message::Remove { id, then }) => {
                match self.queues.get_mut(&id) {
                    Some(_) if self.sabotage == Sabotage::EarlyQuiesce => then(),
                    Some(served) => {
                        served.handler.queue_mut().paused = true;
                        served.quiesced.push(then);
                        served.dirty = true;
                    }
                    None => then(),
                }
                "removes"
            }
            Some(_) => panic!("a command that the device code does not give"),
        }
    }

    fn service(&mut self) -> &'static str {
        let Some(served) = self.queues.values_mut().find(|served| served.ready) else {
            self.phase = Phase::Publish;
            return "served";
        };
        served.ready = false;
        served.dirty = true;
        served.handler.queue_mut().set_polled(self.busy_polls > 0);
        served
            .handler
            .service(&mut Context::new(&mut self.waiter, &mut self.backends));
        served.ready |= served.handler.wants_service() || served.handler.queue().has_more();
        "serves"
    }

    fn publish(&mut self) -> &'static str {
        self.phase = Phase::FinishQuiesced;
        for served in self.queues.values_mut().filter(|served| served.dirty) {
            served.handler.queue_mut().publish();
        }
        "publishes"
    }

    fn finish_quiesced(&mut self) -> &'static str {
        let dirty = self.queues.iter_mut().find(|(_, served)| served.dirty);
        let Some((&id, served)) = dirty else {
            self.phase = Phase::BusyPoll(self.busy_polls);
            return "no queue to quiesce";
        };
        served.dirty = false;
        if served.handler.queue().in_flight() == 0 && !served.quiesced.is_empty() {
            let callbacks = mem::take(&mut served.quiesced);
            // Only a removal registers a callback here.
            if let (Some(mut served), Device::Net(_)) = (self.queues.remove(&id), self.device.device()) {
                let mut cx = Context::new(&mut self.waiter, &mut self.backends);
                served.handler.detach(&mut cx);
            }
            callbacks.into_iter().for_each(|then| then());
        }
        "quiesces"
    }

    fn busy_poll(&mut self, left: u64) -> &'static str {
        let Some(left) = left.checked_sub(1) else {
            self.phase = Phase::Signal;
            return "has polled";
        };
        self.phase = Phase::BusyPoll(left);
        for served in self.queues.values_mut() {
            if served.handler.queue().has_available() {
                served.ready = true;
                self.phase = Phase::Collect;
            }
        }
        if self.consumer.peek(&self.hv.window().ring()).is_some() || self.has_completions() {
            self.phase = Phase::Disarm;
        }
        "polls"
    }

    fn signal(&mut self) -> &'static str {
        let due = self
            .queues
            .values_mut()
            .map(|served| served.handler.queue_mut())
            .find(|queue| queue.interrupt_due().is_some());
        match due {
            Some(queue) if self.sabotage != Sabotage::NoDeferredInterrupt => {
                queue.signal_overdue();
                "signals"
            }
            _ => {
                self.phase = Phase::EnableNotifications;
                "has signalled"
            }
        }
    }

    fn enable_notifications(&mut self) -> &'static str {
        let queue = self.queues.values_mut().find(|served| {
            served.handler.queue().wants_notifications() && self.sabotage != Sabotage::NoEnableNotifications
        });
        match queue {
            Some(served) => served.ready |= served.handler.queue_mut().enable_notifications(),
            None => self.phase = Phase::Arm,
        }
        "enables notifications"
    }

    fn arm(&mut self) -> &'static str {
        let armed = self.consumer.prepare_to_sleep(&self.hv.window().ring());
        let more = match self.sabotage {
            Sabotage::NoRecheck => false,
            _ => !armed,
        };
        let idle = self.commands.list.is_empty() && self.queues.values().all(|served| !served.ready);
        self.phase = Phase::Sleep(!more && idle);
        "arms"
    }

    fn complete(&mut self) -> &'static str {
        let Some(completion) = self.done.pop_front() else {
            self.phase = Phase::Collect;
            return "completed";
        };
        let id = QueueId::from_tag(completion.tag);
        if let Some(served) = self.queues.get_mut(&id) {
            let mut cx = Context::new(&mut self.waiter, &mut self.backends);
            served
                .handler
                .complete(completion.tag, completion.result, &mut cx);
            served.ready |= served.handler.wants_service();
            served.dirty = true;
        }
        "completes"
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let added = self.commands.list.iter_mut().filter_map(|message| match message {
            Message::Add { handler, .. } => Some(&mut **handler),
            _ => None,
        });
        for handler in self
            .queues
            .values_mut()
            .map(|served| &mut *served.handler)
            .chain(added)
        {
            // SAFETY: the simulated disk keeps addresses in the arena, which stays; it never reads the
            // queue's lists again.
            unsafe { handler.queue_mut().assume_drained() };
        }
    }
}
