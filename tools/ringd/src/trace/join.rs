//! Joins events to requests: which notification, wake-up, interrupt and acknowledgement belong to which
//! request.
//!
//! A request begins when the daemon pops its head and ends when the guest acknowledges the interrupt for it,
//! or, if the driver suppressed it, in the used ring. Around that:
//! - A service of a queue takes all notifications before it; the requests that it pops share the earliest of
//!   them. Requests that are popped without one (notifications were disabled) have none.
//! - An interrupt is for all that the queue put into the used ring since the one before.
//!
//! What began before the recording, or has no end in it, is counted and left out.

use std::collections::HashMap;

use ringvirtio::trace::Kind;

use super::{Event, Source, Step, Trace};

ringvisor::counted! {
    /// A point on a request's path, in their order.
    #[derive(PartialOrd, Ord)]
    pub enum Point: 12 {
        /// The guest's store to QueueNotify trapped.
        Notify = 0 => "notify trap",
        /// The event ring has the notification.
        Ring = 1 => "ring entry",
        /// The control device's interrupt was raised, because the daemon slept.
        EventInterrupt = 2 => "bell",
        /// The daemon's thread woke up, if it slept.
        Wake = 3 => "daemon wake-up",
        /// The request was popped off the available ring.
        Popped = 4 => "popped",
        /// Its operation was submitted to the engine.
        Submitted = 5 => "submitted",
        /// Its operation completed.
        Completed = 6 => "completed",
        /// It is in the used ring.
        Used = 7 => "used ring",
        /// The daemon stores to the doorbell.
        Raise = 8 => "doorbell store",
        /// That store trapped.
        Doorbell = 9 => "doorbell trap",
        /// The interrupt is pending on the guest's CPU.
        Inject = 10 => "interrupt injected",
        /// The guest acknowledged it.
        Acknowledge = 11 => "acknowledged",
    }
}

/// How many there are.
pub const POINTS: usize = Point::ALL.len();

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Zone.
    pub zone: u8,
    /// virtio slot.
    pub slot: u8,
    /// Queue.
    pub queue: u8,
    /// Descriptor head.
    pub head: u16,
    /// Stamps by [`Point`].
    pub at: [Option<u64>; POINTS],
}

impl Request {
    fn set(&mut self, point: Point, stamp: u64) {
        if let Some(place) = self.at.get_mut(point as usize) {
            *place = Some(stamp);
        }
    }

    fn has(&self, point: Point) -> bool {
        self.get(point).is_some()
    }

    /// Returns when it passed a point.
    pub fn get(&self, point: Point) -> Option<u64> {
        self.at.get(point as usize).copied().flatten()
    }

    /// Returns the points that it passed, with their stamps.
    pub fn points(&self) -> impl Iterator<Item = (Point, u64)> {
        Point::ALL
            .into_iter()
            .filter_map(|point| Some((point, self.get(point)?)))
    }

    /// Returns the time from its first to its last point.
    pub fn ticks(&self) -> u64 {
        let first = self.points().next().map_or(0, |(_, stamp)| stamp);
        let last = self.points().last().map_or(0, |(_, stamp)| stamp);
        last.saturating_sub(first)
    }
}

/// The requests of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Requests that are complete, by their ends.
    pub requests: Vec<Request>,
    /// Requests whose end is not in the trace.
    pub unfinished: usize,
}

/// A notification that no service of the queue has taken yet.
#[derive(Clone, Copy, Default)]
struct Notification {
    notify: Option<u64>,
    ring: Option<u64>,
    event_interrupt: Option<u64>,
    wake: Option<u64>,
}

#[derive(Default)]
struct Queue {
    coming: Notification,
    taken: Notification,
    running: HashMap<u32, Request>,
    used: Vec<Request>,
}

type QueueKey = (u8, u8, u8);

#[derive(Default)]
struct Joiner {
    queues: HashMap<QueueKey, Queue>,
    /// Requests whose interrupt is pending, by zone and slot.
    raised: HashMap<(u8, u8), Vec<Request>>,
    /// The queue whose notification a CPU put on a ring last: the control device's interrupt that follows is
    /// for it.
    rang: HashMap<Source, QueueKey>,
    woke: HashMap<Source, u64>,
    done: Vec<Request>,
}

/// Joins the events of a sorted trace.
pub fn join(trace: &Trace) -> Joined {
    let mut joiner = Joiner::default();
    for event in &trace.events {
        match event.step {
            Step::Daemon(kind) => joiner.daemon(event, kind),
            _ => joiner.el2(event),
        }
    }
    let in_queues: usize = joiner
        .queues
        .values()
        .map(|queue| queue.running.len() + queue.used.len())
        .sum();
    let unfinished = in_queues + joiner.raised.values().map(Vec::len).sum::<usize>();
    Joined {
        requests: joiner.done,
        unfinished,
    }
}

impl Joiner {
    fn el2(&mut self, event: &Event) {
        let key = (event.zone, event.slot, event.queue);
        let (device, stamp) = ((event.zone, event.slot), event.stamp);
        match event.step {
            Step::Notify => {
                let queue = self.queues.entry(key).or_default();
                queue.coming.notify.get_or_insert(stamp);
            }
            Step::Ring => {
                let queue = self.queues.entry(key).or_default();
                queue.coming.ring.get_or_insert(stamp);
                self.rang.insert(event.source, key);
            }
            Step::EventInterrupt => {
                let key = self.rang.remove(&event.source);
                if let Some(queue) = key.and_then(|key| self.queues.get_mut(&key)) {
                    queue.coming.event_interrupt.get_or_insert(stamp);
                }
            }
            Step::Doorbell | Step::Inject(_) => {
                let (point, before) = match event.step {
                    Step::Doorbell => (Point::Doorbell, Point::Raise),
                    _ => (Point::Inject, Point::Doorbell),
                };
                for request in self.raised.entry(device).or_default() {
                    if request.has(before) && !request.has(point) {
                        request.set(point, stamp);
                    }
                }
            }
            Step::Acknowledge => {
                let waiting = self.raised.entry(device).or_default();
                let told = waiting.extract_if(.., |request| request.has(Point::Doorbell));
                self.done.extend(told.map(|mut request| {
                    request.set(Point::Acknowledge, stamp);
                    request
                }));
            }
            Step::Exit(..) | Step::Daemon(_) => {}
        }
    }

    fn daemon(&mut self, event: &Event, kind: Kind) {
        let stamp = event.stamp;
        if kind == Kind::Wake {
            self.woke.insert(event.source, stamp);
            return;
        }
        let queue = self
            .queues
            .entry((event.zone, event.slot, event.queue))
            .or_default();
        let point = match kind {
            Kind::Service => {
                let coming = std::mem::take(&mut queue.coming);
                let woke = self.woke.get(&event.source).copied();
                queue.taken = Notification {
                    wake: woke.filter(|woke| coming.notify.is_some_and(|notify| *woke >= notify)),
                    ..coming
                };
                return;
            }
            Kind::Popped => {
                let mut request = Request {
                    zone: event.zone,
                    slot: event.slot,
                    queue: event.queue,
                    head: event.value as u16,
                    at: [None; POINTS],
                };
                let Notification {
                    notify,
                    ring,
                    event_interrupt,
                    wake,
                } = queue.taken;
                for (point, at) in Point::ALL.into_iter().zip([notify, ring, event_interrupt, wake]) {
                    if let Some(at) = at {
                        request.set(point, at);
                    }
                }
                request.set(Point::Popped, stamp);
                queue.running.insert(event.value, request);
                return;
            }
            Kind::Raise | Kind::Suppressed => {
                let told = std::mem::take(&mut queue.used);
                if kind == Kind::Suppressed {
                    self.done.extend(told);
                    return;
                }
                let waiting = self.raised.entry((event.zone, event.slot)).or_default();
                waiting.extend(told.into_iter().map(|mut request| {
                    request.set(Point::Raise, stamp);
                    request
                }));
                return;
            }
            Kind::Submitted => Point::Submitted,
            Kind::Completed => Point::Completed,
            Kind::Used => Point::Used,
            Kind::Wake => return,
        };
        if kind == Kind::Used {
            if let Some(mut request) = queue.running.remove(&event.value) {
                request.set(point, stamp);
                queue.used.push(request);
            }
        } else if let Some(request) = queue.running.get_mut(&event.value)
            && !(point == Point::Submitted && request.has(point))
        {
            request.set(point, stamp);
        }
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
