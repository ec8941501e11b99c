//! The reactor: one thread that sleeps in one place and serves many queues of many zones.
//!
//! A [`Reactor`] is made anywhere and run on its own thread; a [`ReactorHandle`] talks to it from others, a
//! [`Bell`] from within: it is the peer that rings (EL2 through `/dev/uioN`, an `eventfd` in tests) and knows which
//! queues were notified. Both use the same [`Commands`].
//!
//! One round: take messages and bells, start what the notified queues offer, publish what is done, wait for more that one
//! interrupt may signal, look on for a while ([`poll`]), arm the bells, sleep; then complete what has finished. Nothing but the
//! mailbox of the control threads is ever locked. A queue that its disk's limits keep waiting gives the sleep a deadline.

mod idle;
mod mailbox;
mod poll;
mod remotes;
pub(crate) mod wait;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub use mailbox::{Callback, Commands, QueueId, ReactorHandle};
pub use wait::ReadWidth;

use crate::affinity;
use crate::clock::Clock;
use crate::disk::{Disk, EngineKind};
use crate::engine::threads::Threads;
use crate::engine::{Engine, IoDone};
use crate::memory::GuestRam;
use crate::queue::Queue;
use mailbox::{IdHasher, Mailbox, Message};
use poll::Polling;
use remotes::Remotes;
use wait::{Ready, Sleep, Sleeper};

/// A peer that rings. All calls come on the reactor's thread and must not block.
pub trait Bell: Send {
    /// The descriptor was read: the peer rang. An interrupt that masks itself is unmasked here.
    fn rung(&mut self) {}

    /// Asked after [`Self::rung`], on which CPU the thread is best off: there it is kept, on `Some(None)` anywhere. `None`:
    /// where it is.
    fn place(&mut self) -> Option<Option<usize>> {
        None
    }

    /// Takes what the peer has left and says what to do. Called in every round.
    fn collect(&mut self, commands: &mut Commands);

    /// Whether the peer has left something, without taking it. Called often while the thread looks on before it sleeps.
    fn look(&self) -> bool {
        false
    }

    /// The thread has looked for so long, and something was there or not.
    fn looked(&mut self, _found: bool, _time: Duration) {}

    /// The thread is about to sleep: asks the peer to ring from now on, then looks once more. `true` if the peer left
    /// something meanwhile; [`Self::collect`] is called again then.
    fn arm(&mut self) -> bool {
        false
    }

    /// The thread is awake: the peer need not ring.
    fn disarm(&mut self) {}
}

/// How to build a reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReactorOptions {
    /// Use io_uring if the system has it; else epoll and threads serve everything.
    pub io_uring: bool,
    /// Submission entries of the ring.
    pub entries: u32,
    /// For how long to look on at most before going to sleep; zero: not at all. Without io_uring never.
    pub poll: Duration,
}

impl ReactorOptions {
    /// KVM's limit for a halted vCPU on this architecture (`halt_poll_ns`).
    pub const POLL: Duration = Duration::from_micros(500);
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self {
            io_uring: true,
            entries: 256,
            poll: Self::POLL,
        }
    }
}

struct Entry {
    queue: Queue,
    /// Called when nothing runs any more.
    quiesced: Vec<Callback>,
    /// Goes when nothing runs any more.
    leaving: bool,
    kicked: bool,
    dirty: bool,
    /// It is in the list of those that wait for their deadlines.
    waiting: bool,
    /// It is in the list of those whose drivers need not notify.
    quiet: bool,
    /// It is in the list of those that owe an interrupt.
    owing: bool,
    /// Its engine knows of it.
    attached: bool,
}

/// A reactor that does not run yet.
pub struct Reactor {
    options: ReactorOptions,
    mailbox: Mailbox,
}

impl Reactor {
    /// A reactor, and the handle to it. Fails when there are no descriptors left.
    pub fn new(options: ReactorOptions) -> io::Result<(Self, ReactorHandle)> {
        let (mailbox, handle) = Mailbox::new()?;
        Ok((Self { options, mailbox }, handle))
    }

    /// Runs on the calling thread until [`ReactorHandle::stop`], and until all requests have ended. An error is one
    /// of sleeping itself; those of files are the requests'.
    pub fn run(self) -> io::Result<()> {
        let Self { options, mailbox } = self;
        let mut core = Core {
            sleeper: Sleeper::new(options.io_uring, options.entries)?,
            pool: None,
            remotes: Remotes::default(),
            bells: Vec::new(),
            watchers: Vec::new(),
            queues: HashMap::default(),
            kicked: Vec::new(),
            dirty: Vec::new(),
            again: Vec::new(),
            waiting: Vec::new(),
            quiet: Vec::new(),
            owing: Vec::new(),
            clock: Clock::Monotonic,
            polling: Polling::new(options.poll),
            crowded: false,
            told: None,
            stopping: false,
        };
        core.watch(mailbox.event(), ReadWidth::Eight, Watcher::Mailbox)?;
        core.run(&mailbox)
    }
}

/// Who a watched descriptor belongs to.
#[derive(Clone, Copy)]
enum Watcher {
    Mailbox,
    Pool,
    Remote,
    Bell(usize),
}

struct RegisteredBell {
    bell: Box<dyn Bell>,
    /// Kept open for the watch.
    _fd: OwnedFd,
}

/// What the running thread owns. Fields drop in order: engines end their I/O before the queues' memory goes.
struct Core {
    sleeper: Sleeper,
    pool: Option<Threads>,
    remotes: Remotes,
    bells: Vec<RegisteredBell>,
    watchers: Vec<Watcher>,
    queues: HashMap<QueueId, Entry, BuildHasherDefault<IdHasher>>,
    kicked: Vec<QueueId>,
    dirty: Vec<QueueId>,
    /// Queues with more than one round's requests: storage of [`Core::service`].
    again: Vec<QueueId>,
    /// Queues that wait for their deadlines.
    waiting: Vec<QueueId>,
    /// Queues whose drivers need not notify, while the thread looks itself.
    quiet: Vec<QueueId>,
    /// Queues that owe their drivers an interrupt, as they may have more to signal soon.
    owing: Vec<QueueId>,
    clock: Clock,
    polling: Polling,
    /// Among the drivers that were last told of requests is one with more than one under way.
    crowded: bool,
    /// The same of this round, once one was told.
    told: Option<bool>,
    stopping: bool,
}

impl Core {
    fn run(&mut self, mailbox: &Mailbox) -> io::Result<()> {
        let mut ready: Vec<Ready> = Vec::new();
        let mut done: Vec<IoDone> = Vec::new();
        let mut commands = mailbox.commands();
        mailbox.take(&mut commands);
        loop {
            for registered in &mut self.bells {
                registered.bell.collect(&mut commands);
            }
            while let Some(message) = commands.pop() {
                self.obey(message);
            }
            self.service();
            // What was done in place, so that it is published in this round.
            self.finish(&mut done);
            self.publish();
            self.abandon_leaving();
            self.settle();
            if self.stopping && self.queues.is_empty() {
                return Ok(());
            }
            if let Some(pool) = &mut self.pool {
                pool.submit();
            }
            self.remotes.submit();
            let copying = self.sleeper.is_copying();
            let idle = commands.is_empty() && self.kicked.is_empty() && self.dirty.is_empty() && !copying;
            if !idle {
                // Those that nobody notifies of are looked at all the same, and nobody is kept waiting for others' work.
                self.signal(None);
                self.kick_quiet(|queue| queue.has_available());
            }
            if copying || idle && (self.coalesce() || self.look_on()) {
                // Nobody was asked to ring, so nobody is told not to.
                self.sleeper.wait(Sleep::Not, &mut ready)?;
            } else {
                self.sleep(idle, &mut ready)?;
            }
            for Ready { watch } in ready.drain(..) {
                match self.watchers.get(watch) {
                    Some(Watcher::Mailbox) => mailbox.take(&mut commands),
                    Some(&Watcher::Bell(index)) => {
                        if let Some(registered) = self.bells.get_mut(index) {
                            registered.bell.rung();
                            if let Some(cpu) = registered.bell.place() {
                                self.stay_on(cpu);
                            }
                        }
                    }
                    // Reaped below in any case.
                    Some(Watcher::Pool | Watcher::Remote) | None => {}
                }
            }
            self.finish(&mut done);
        }
    }

    /// Keeps the thread on a CPU, or nowhere.
    fn stay_on(&self, cpu: Option<usize>) {
        let ring = match &self.sleeper {
            Sleeper::Uring(ring) => Some(&**ring),
            Sleeper::Epoll(_) => None,
        };
        if let Err(error) = affinity::bind(cpu, ring) {
            tracing::debug!(?cpu, %error, "the reactor cannot stay there");
        }
    }

    /// Completes what the engines are done with. `done` is storage.
    fn finish(&mut self, done: &mut Vec<IoDone>) {
        if let Sleeper::Uring(ring) = &mut self.sleeper {
            ring.reap(done);
        }
        if let Some(pool) = &mut self.pool {
            pool.reap(done);
        }
        self.remotes.reap(done);
        for outcome in done.drain(..) {
            self.complete(outcome);
        }
    }

    fn watch(&mut self, fd: i32, width: ReadWidth, watcher: Watcher) -> io::Result<usize> {
        let number = self.sleeper.watch(fd, width)?;
        match self.watchers.get_mut(number) {
            Some(known) => *known = watcher,
            None => self.watchers.push(watcher),
        }
        Ok(number)
    }

    /// An engine for a queue of another process's disk. `false`: there is none.
    fn attach_remote(&mut self, queue: &Queue) -> bool {
        let (disk, ram) = (queue.disk(), queue.ram());
        let Some(remote) = disk.remote() else {
            return false;
        };
        if self.remotes.attach(disk, ram) {
            return true;
        }
        let started = remote.start(ram).and_then(|engine| {
            let watch = self.watch(engine.event().as_raw_fd(), ReadWidth::Foreign, Watcher::Remote)?;
            self.remotes.add(disk, ram, engine, watch);
            Ok(())
        });
        if let Err(error) = &started {
            let path = disk.config().path.display();
            tracing::error!(%path, %error, "cannot serve a queue");
        }
        started.is_ok()
    }

    fn detach_remote(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) {
        if let Some((watch, event)) = self.remotes.detach(disk, ram) {
            self.sleeper.unwatch(watch, event.as_raw_fd());
        }
    }

    /// Queues that leave wait neither for a process that is not there nor for what is left to copy: their logs have what was in
    /// flight.
    fn abandon_leaving(&mut self) {
        if self.remotes.is_empty() && !self.sleeper.is_copying() {
            return;
        }
        for (id, entry) in &mut self.queues {
            let queue = &mut entry.queue;
            if !entry.leaving || queue.running() == 0 {
                continue;
            }
            let engine = self.remotes.get(queue.disk(), queue.ram());
            let abandoned = match &mut self.sleeper {
                _ if engine.is_some_and(|engine| engine.abandon(id.tag())) => queue.running(),
                Sleeper::Uring(ring) => ring.abandon(id.tag()),
                Sleeper::Epoll(_) => 0,
            };
            if abandoned > 0 {
                queue.abandoned(abandoned);
                if !entry.dirty {
                    entry.dirty = true;
                    self.dirty.push(*id);
                }
            }
        }
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::Bell { fd, width, bell } => {
                if let Err(error) = self.watch(fd.as_raw_fd(), width, Watcher::Bell(self.bells.len())) {
                    tracing::error!(%error, "cannot watch a bell");
                    return;
                }
                self.bells.push(RegisteredBell { bell, _fd: fd });
            }
            Message::Add { id, queue } => self.add(id, *queue),
            Message::Kick(id) => self.kick(id),
            Message::Notified { id, ago } => {
                if let Some(entry) = self.queues.get_mut(&id) {
                    entry.queue.set_notified(ago);
                }
                self.kick(id);
            }
            Message::Quiesce { id, then } => match self.queues.get_mut(&id) {
                Some(entry) => {
                    entry.queue.set_paused(true);
                    entry.quiesced.push(then);
                    self.mark_dirty(id);
                }
                // Nothing of it can be in flight.
                None => then(),
            },
            Message::Resume(id) => {
                if let Some(entry) = self.queues.get_mut(&id).filter(|entry| !entry.leaving) {
                    entry.queue.set_paused(false);
                    self.kick(id);
                }
            }
            Message::Retry(id) => {
                if let Some(entry) = self.queues.get_mut(&id) {
                    entry.queue.retry();
                    self.kick(id);
                }
            }
            Message::Remove { id, then } => match self.queues.get_mut(&id) {
                Some(entry) => {
                    entry.queue.set_paused(true);
                    entry.quiesced.push(then);
                    entry.leaving = true;
                    self.mark_dirty(id);
                }
                None => then(),
            },
            Message::Stop => {
                self.stopping = true;
                let ids: Vec<QueueId> = self.queues.keys().copied().collect();
                for id in ids {
                    self.obey(Message::Remove {
                        id,
                        then: Box::new(|| {}),
                    });
                }
            }
        }
    }

    fn add(&mut self, id: QueueId, mut queue: Queue) {
        queue.set_tag_base(id.tag());
        if self.stopping {
            return;
        }
        let threads = queue.disk().remote().is_none()
            && (queue.disk().config().engine == EngineKind::Threads
                || matches!(self.sleeper, Sleeper::Epoll(_)));
        if threads && self.pool.is_none() {
            match self.start_pool() {
                Ok(()) => {}
                // A ring serves these as well.
                Err(error) => tracing::error!(%error, "cannot start the thread pool"),
            }
        }
        let mut attached = true;
        if queue.disk().remote().is_some() {
            attached = self.attach_remote(&queue);
        } else if let Some(engine) = engine_for(&mut self.sleeper, &mut self.pool, &mut self.remotes, &queue)
        {
            engine.attach(queue.disk().backing(), queue.ram());
        }
        let entry = Entry {
            queue,
            quiesced: Vec::new(),
            leaving: false,
            kicked: false,
            dirty: false,
            waiting: false,
            quiet: false,
            owing: false,
            attached,
        };
        self.queues.insert(id, entry);
        // What an earlier daemon left, and what came since.
        self.kick(id);
    }

    fn start_pool(&mut self) -> io::Result<()> {
        let pool = Threads::new()?;
        self.watch(pool.event(), ReadWidth::Eight, Watcher::Pool)?;
        self.pool = Some(pool);
        Ok(())
    }

    fn kick(&mut self, id: QueueId) {
        if let Some(entry) = self.queues.get_mut(&id).filter(|entry| !entry.kicked) {
            entry.kicked = true;
            self.kicked.push(id);
        }
    }

    fn mark_dirty(&mut self, id: QueueId) {
        if let Some(entry) = self.queues.get_mut(&id).filter(|entry| !entry.dirty) {
            entry.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Starts what the notified queues offer, and those whose deadlines have passed; at most one round of each.
    fn service(&mut self) {
        if !self.waiting.is_empty() {
            self.kick_due();
        }
        let quiet = self.polling.is_worth_it() && matches!(self.sleeper, Sleeper::Uring(_));
        while let Some(id) = self.kicked.pop() {
            let Some(entry) = self.queues.get_mut(&id) else {
                continue;
            };
            entry.kicked = false;
            let engine = engine_for(&mut self.sleeper, &mut self.pool, &mut self.remotes, &entry.queue);
            let Some(engine) = engine else {
                // Nobody serves it, so nobody looks at it. Whoever waits for it to come to rest is told.
                self.mark_dirty(id);
                continue;
            };
            entry.queue.set_quiet(quiet);
            entry.queue.service(engine);
            if entry.queue.wants_to_listen() && !entry.quiet {
                entry.quiet = true;
                self.quiet.push(id);
            }
            if entry.queue.has_more() {
                self.again.push(id);
            }
            if entry.queue.deadline().is_some() && !entry.waiting {
                entry.waiting = true;
                self.waiting.push(id);
            }
            self.mark_dirty(id);
        }
        while let Some(id) = self.again.pop() {
            self.kick(id);
        }
    }

    /// Kicks the queues that may go on, and forgets those that do not wait any more.
    fn kick_due(&mut self) {
        let now = self.clock.now();
        let (queues, kicked) = (&mut self.queues, &mut self.kicked);
        self.waiting.retain(|id| {
            let Some(entry) = queues.get_mut(id) else {
                return false;
            };
            entry.waiting = entry.queue.deadline().is_some_and(|at| at > now);
            if !entry.waiting && entry.queue.deadline().is_some() && !entry.kicked {
                entry.kicked = true;
                kicked.push(*id);
            }
            entry.waiting
        });
    }

    fn complete(&mut self, outcome: IoDone) {
        let id = QueueId::from_tag(outcome.tag);
        let Some(entry) = self.queues.get_mut(&id) else {
            return;
        };
        if let Some(engine) = engine_for(&mut self.sleeper, &mut self.pool, &mut self.remotes, &entry.queue) {
            entry.queue.complete(outcome.tag, outcome.result, engine);
        }
        self.mark_dirty(id);
    }

    /// One publication and at most one interrupt for each queue that has something; or one is owed then.
    fn publish(&mut self) {
        self.told = None;
        let mut crowded = None;
        for id in &self.dirty {
            let Some(entry) = self.queues.get_mut(id) else {
                continue;
            };
            entry.queue.publish();
            crowded = crowded.max(entry.queue.take_crowded());
            if entry.queue.interrupt_due().is_some() && !entry.owing {
                entry.owing = true;
                self.owing.push(*id);
            }
        }
        self.note_crowded(crowded);
    }

    /// Tells those who wait for queues that have come to rest.
    fn settle(&mut self) {
        while let Some(id) = self.dirty.pop() {
            let Some(entry) = self.queues.get_mut(&id) else {
                continue;
            };
            entry.dirty = false;
            if entry.queue.running() > 0 || entry.quiesced.is_empty() {
                continue;
            }
            let waiting = std::mem::take(&mut entry.quiesced);
            if entry.leaving
                && let Some(Entry {
                    queue,
                    quiet,
                    attached,
                    ..
                }) = self.queues.remove(&id)
            {
                if quiet {
                    self.quiet.retain(|other| *other != id);
                }
                let (disk, ram) = (queue.disk(), queue.ram());
                if disk.remote().is_some() {
                    if attached {
                        self.detach_remote(disk, ram);
                    }
                } else if let Some(engine) =
                    engine_for(&mut self.sleeper, &mut self.pool, &mut self.remotes, &queue)
                {
                    engine.detach(disk.backing(), ram);
                }
            }
            for then in waiting {
                then();
            }
        }
    }
}

/// The engine that a queue's disk asks for, or the one there is.
fn engine_for<'a>(
    sleeper: &'a mut Sleeper,
    pool: &'a mut Option<Threads>,
    remotes: &'a mut Remotes,
    queue: &Queue,
) -> Option<&'a mut dyn Engine> {
    if queue.disk().remote().is_some() {
        let engine = remotes.get(queue.disk(), queue.ram())?;
        return Some(engine);
    }
    match (sleeper, pool, queue.disk().config().engine) {
        (Sleeper::Uring(ring), _, EngineKind::IoUring) => Some(&mut **ring),
        (_, Some(pool), _) => Some(pool),
        (Sleeper::Uring(ring), None, _) => Some(&mut **ring),
        (Sleeper::Epoll(_), None, _) => None,
    }
}
