//! [`Core`]: what a reactor's thread owns, and the steps of a round that concern its queues.

use std::mem;
use std::time::Duration;

use super::busy_poll::{Backlog, BusyPoll};
use super::commands::{Message, QueueId};
use super::schedule::{List, QueueIndex, Schedule};
use super::sources::EventSources;
use super::table::{Entry, QueueTable};
use crate::clock::Clock;
use crate::handler::Completion;
use crate::handler::{Backends, Context, QueueHandler};
use crate::waiter::Waiter;

/// What the running thread owns. Fields drop in order: I/O ends before the queues' memory is freed.
pub struct Core {
    pub waiter: Waiter,
    pub backends: Backends,
    pub sources: EventSources,
    pub queues: QueueTable,
    pub schedule: Schedule,
    pub clock: Clock,
    pub busy: BusyPoll,
    pub backlog: Backlog,
    /// Storage of [`Self::reap`].
    done: Vec<Completion>,
    stopping: bool,
}

impl Core {
    pub fn new(waiter: Waiter, poll: Duration) -> Self {
        Self {
            waiter,
            backends: Backends::default(),
            sources: EventSources::default(),
            queues: QueueTable::default(),
            schedule: Schedule::default(),
            clock: Clock::Monotonic,
            busy: BusyPoll::new(poll),
            backlog: Backlog::default(),
            done: Vec::new(),
            stopping: false,
        }
    }

    /// Returns whether the reactor was stopped and has no queues any more.
    pub fn is_stopped(&self) -> bool {
        self.stopping && self.queues.len() == 0
    }

    /// Returns whether no queue is to be serviced or published.
    pub fn is_idle(&self) -> bool {
        self.schedule.is_empty(List::Ready) && self.schedule.is_empty(List::Dirty)
    }

    /// A watched descriptor woke the thread.
    pub fn on_wakeup(&mut self, watch: usize) {
        if let Some(cpu) = self.sources.on_wakeup(watch)
            && let Err(error) = self.waiter.bind(cpu)
        {
            tracing::debug!(?cpu, %error, "the reactor cannot be bound to a CPU");
        }
    }

    /// Carries out one command.
    pub fn carry_out(&mut self, message: Message) {
        match message {
            Message::AddEventSource { fd, width, source } => {
                if let Err(error) = self.sources.add(&mut self.waiter, fd, width, source) {
                    tracing::error!(%error, "cannot watch an event source");
                }
            }
            Message::Add { id, handler } => self.add(id, handler),
            Message::Schedule(id) => self.schedule(id),
            Message::Notified { id, ago } => {
                if let Some(entry) = self.entry(id) {
                    entry.handler.queue_mut().set_notified(ago);
                }
                self.schedule(id);
            }
            Message::Quiesce { id, then } => match self.entry(id) {
                Some(entry) => {
                    entry.handler.queue_mut().paused = true;
                    entry.quiesced.push(then);
                    self.insert(List::Dirty, id);
                }
                // Nothing of it can be in flight.
                None => then(),
            },
            Message::Resume(id) => {
                if let Some(entry) = self.entry(id).filter(|entry| !entry.leaving) {
                    entry.handler.queue_mut().paused = false;
                    self.schedule(id);
                }
            }
            Message::Retry(id) => {
                if let Some(entry) = self.entry(id) {
                    entry.handler.retry();
                    self.schedule(id);
                }
            }
            Message::Remove { id, then } => match self.entry(id) {
                Some(entry) => {
                    entry.handler.queue_mut().paused = true;
                    entry.quiesced.push(then);
                    self.insert(List::Dirty, id);
                    if let Some(index) = self.queues.index(id) {
                        self.queues.set_leaving(index);
                    }
                }
                None => then(),
            },
            Message::Stop => {
                self.stopping = true;
                let ids: Vec<QueueId> = self.queues.iter_mut().map(|(_, entry)| entry.id).collect();
                for id in ids {
                    let then = Box::new(|| {});
                    self.carry_out(Message::Remove { id, then });
                }
            }
        }
    }

    fn add(&mut self, id: QueueId, mut handler: Box<dyn QueueHandler>) {
        if self.stopping {
            return;
        }
        handler.queue_mut().tag_base = id.tag();
        let attached = handler.attach(&mut Context::new(&mut self.waiter, &mut self.backends));
        if let Err(error) = &attached {
            tracing::error!(device = handler.queue().name, %error, "cannot serve a queue");
        }
        let index = self.queues.insert(Entry {
            id,
            handler,
            quiesced: Vec::new(),
            leaving: false,
            attached: attached.is_ok(),
        });
        self.schedule.add(index);
        // What an earlier daemon left, and what came since.
        self.schedule.insert(List::Ready, index);
    }

    fn entry(&mut self, id: QueueId) -> Option<&mut Entry> {
        let index = self.queues.index(id)?;
        self.queues.get_mut(index)
    }

    fn insert(&mut self, list: List, id: QueueId) {
        if let Some(index) = self.queues.index(id) {
            self.schedule.insert(list, index);
        }
    }

    fn schedule(&mut self, id: QueueId) {
        self.insert(List::Ready, id);
    }

    /// Services the ready queues, and those whose deadlines have passed; at most one round of each.
    pub fn service(&mut self) {
        if !self.schedule.is_empty(List::Deadline) {
            let queues = &self.queues;
            self.schedule
                .expire(self.clock.now(), |index| deadline(queues, index));
        }
        let polled = self.busy.is_worthwhile() && self.waiter.ring().is_some();
        while let Some(index) = self.schedule.pop(List::Ready) {
            let Some(entry) = self.queues.get_mut(index) else {
                continue;
            };
            self.schedule.insert(List::Dirty, index);
            // A queue that cannot be served is not polled either; but it can be quiesced.
            if !entry.attached {
                continue;
            }
            entry.handler.queue_mut().set_polled(polled);
            entry
                .handler
                .service(&mut Context::new(&mut self.waiter, &mut self.backends));
            let queue = entry.handler.queue();
            if queue.wants_notifications() {
                self.schedule.insert(List::Polled, index);
            }
            if queue.has_more() || entry.handler.wants_service() {
                self.schedule.insert(List::Deferred, index);
            }
            if queue.deadline().is_some() {
                self.schedule.insert(List::Deadline, index);
            }
        }
        self.schedule.end_round();
    }

    /// Handles what has completed.
    pub fn reap(&mut self) {
        let mut done = mem::take(&mut self.done);
        if let Waiter::Uring(ring) = &mut self.waiter {
            ring.reap(&mut done);
        }
        self.backends.reap(&mut done);
        for Completion { tag, result } in done.drain(..) {
            let Some(index) = self.queues.index(QueueId::from_tag(tag)) else {
                continue;
            };
            if let Some(entry) = self.queues.get_mut(index) {
                let mut cx = Context::new(&mut self.waiter, &mut self.backends);
                entry.handler.complete(tag, result, &mut cx);
                if entry.handler.wants_service() {
                    self.schedule.insert(List::Ready, index);
                }
            }
            self.schedule.insert(List::Dirty, index);
        }
        self.done = done;
    }

    /// Makes one publication and sends at most one interrupt for each queue that has something; or its
    /// interrupt is pending then.
    pub fn publish(&mut self) {
        self.backlog.begin_round();
        let (mut position, mut backlog) = (0, None);
        while let Some(index) = self.schedule.get(List::Dirty, position) {
            position += 1;
            let Some(entry) = self.queues.get_mut(index) else {
                continue;
            };
            let queue = entry.handler.queue_mut();
            queue.publish();
            backlog = backlog.max(queue.take_backlog());
            if queue.interrupt_due().is_some() {
                self.schedule.insert(List::InterruptPending, index);
            }
        }
        self.backlog.add(backlog);
    }

    /// Queues that leave wait neither for another process nor for what was not begun: their logs have what
    /// was in flight.
    pub fn abandon_leaving(&mut self) {
        if !self.queues.has_leaving() {
            return;
        }
        for (index, entry) in self.queues.iter_mut() {
            if entry.leaving
                && entry.handler.queue().in_flight() > 0
                && entry
                    .handler
                    .abandon(&mut Context::new(&mut self.waiter, &mut self.backends))
            {
                self.schedule.insert(List::Dirty, index);
            }
        }
    }

    /// Calls the callbacks of queues that are quiesced now.
    pub fn finish_quiesced(&mut self) {
        while let Some(index) = self.schedule.pop(List::Dirty) {
            let Some(entry) = self.queues.get_mut(index) else {
                continue;
            };
            if entry.handler.queue().in_flight() > 0 || entry.quiesced.is_empty() {
                continue;
            }
            let callbacks = mem::take(&mut entry.quiesced);
            if entry.leaving
                && let Some(mut entry) = self.queues.remove(index)
            {
                self.schedule.remove(index);
                if entry.attached {
                    entry
                        .handler
                        .detach(&mut Context::new(&mut self.waiter, &mut self.backends));
                }
            }
            for then in callbacks {
                then();
            }
        }
    }
}

/// Returns until when a queue waits for a rate limit.
pub fn deadline(queues: &QueueTable, index: QueueIndex) -> Option<u64> {
    queues.get(index)?.handler.queue().deadline()
}
