//! How a round ends: with interrupts that wait for more completions, busy polling, or asleep.

use std::io;
use std::time::{Duration, Instant};

use super::busy_poll;
use super::core::{Core, deadline};
use super::schedule::List;
use crate::trace::{self, TraceId};
use crate::waiter::Waiter;

impl Core {
    /// While interrupts are pending, polls for more that they may cover, with everything submitted. Returns
    /// whether something has happened; else no interrupt is pending any more.
    pub fn coalesce(&mut self) -> bool {
        if self.schedule.is_empty(List::InterruptPending) {
            return false;
        }
        self.waiter.submit();
        let start = Instant::now();
        let clock = self.clock.clone();
        let mut found = false;
        while !found {
            let now = clock.now();
            let Some(until) = self.signal(Some(now)) else {
                break;
            };
            // A queue that waits for a rate limit is serviced on time.
            let limit = self.until_deadline();
            let until = limit.map_or(until, |limit| {
                until.min(now.saturating_add(limit.as_nanos() as u64))
            });
            found =
                limit == Some(Duration::ZERO) || busy_poll::poll(|| self.has_work(), || clock.now() >= until);
        }
        self.on_busy_poll(found, start.elapsed())
    }

    /// Sends the pending interrupts that are overdue `now`, or all of them. Returns when the next one is due.
    pub fn signal(&mut self, now: Option<u64>) -> Option<u64> {
        let mut next: Option<u64> = None;
        let (queues, mut backlog) = (&mut self.queues, None);
        self.schedule.retain(List::InterruptPending, |slot| {
            let Some(entry) = queues.get_mut(slot) else {
                return false;
            };
            let queue = entry.handler.queue_mut();
            let due = queue.interrupt_due();
            if due.is_some() && due > now && now.is_some() {
                next = due.min(next.or(due));
                return true;
            }
            match now {
                Some(_) => queue.signal_overdue(),
                None => queue.signal(),
            }
            backlog = backlog.max(queue.take_backlog());
            false
        });
        self.backlog.add(backlog);
        next
    }

    /// Returns whether there is something to do.
    fn has_work(&mut self) -> bool {
        let completed = match &mut self.waiter {
            Waiter::Uring(ring) => ring.is_ready(),
            Waiter::Epoll(_) => false,
        };
        let queues = &self.queues;
        completed
            || self.schedule.iter(List::Polled).any(|slot| {
                queues
                    .get(slot)
                    .is_some_and(|entry| entry.handler.queue().has_available())
            })
            || self.sources.have_events()
            || self.backends.have_completions()
    }

    /// Busy-polls for a while, with everything submitted. Returns whether something has happened.
    pub fn busy_poll(&mut self) -> bool {
        let Waiter::Uring(ring) = &mut self.waiter else {
            return false;
        };
        if !self.busy.is_worthwhile() || self.backlog.is_there() {
            return false;
        }
        ring.submit();
        // A queue that waits for a rate limit is serviced at a known moment: until then there is no need to
        // be awake.
        let limit = self.until_deadline();
        if limit.is_some_and(|limit| limit <= self.busy.window) {
            return false;
        }
        let busy = self.busy;
        let (found, time) = busy.run(|| self.has_work());
        self.on_busy_poll(found, time)
    }

    /// Records how long a busy poll ran and whether it found work.
    fn on_busy_poll(&mut self, found: bool, time: Duration) -> bool {
        self.sources.on_busy_poll(found, time);
        if found {
            self.schedule_polled();
        }
        found
    }

    /// Schedules the polled queues whose drivers have made requests available.
    pub fn schedule_polled(&mut self) {
        debug_assert!(self.schedule.len(List::Polled) <= self.queues.len());
        let queues = &self.queues;
        self.schedule.make_ready(List::Polled, |slot| {
            queues
                .get(slot)
                .is_some_and(|entry| entry.handler.queue().has_available())
        });
    }

    /// Enables the notifications of the polled queues, and schedules those that have requests already.
    fn enable_notifications(&mut self) {
        let queues = &mut self.queues;
        self.schedule.make_ready(List::Polled, |slot| {
            queues.get_mut(slot).is_some_and(|entry| {
                let queue = entry.handler.queue_mut();
                queue.wants_notifications() && queue.enable_notifications()
            })
        });
        self.schedule.retain(List::Polled, |_| false);
    }

    /// Arms the event sources and sleeps, if there is nothing else to do, until something happens.
    pub fn sleep(&mut self, idle: bool, ready: &mut Vec<usize>) -> io::Result<()> {
        let start = Instant::now();
        if idle {
            self.enable_notifications();
        }
        let idle = idle && self.schedule.is_empty(List::Ready);
        // Everything is armed, even if one has more already.
        let more = self.sources.arm();
        let more = self.backends.arm() | more;
        let timeout = if idle && !more {
            self.until_deadline()
        } else {
            Some(Duration::ZERO)
        };
        self.waiter.wait(timeout, ready)?;
        if timeout != Some(Duration::ZERO) {
            let slept = start.elapsed();
            let expired = timeout.is_some_and(|most| slept >= most);
            self.busy.on_sleep(slept, expired);
            trace::event(trace::Kind::Wake, TraceId::default(), 0);
        }
        self.sources.disarm();
        Ok(())
    }

    /// Returns how long to sleep at most; `None` is without a limit.
    fn until_deadline(&self) -> Option<Duration> {
        let deadlines = self
            .schedule
            .iter(List::Deadline)
            .filter_map(|slot| deadline(&self.queues, slot));
        let limit = deadlines.min().map(|at| {
            let left = at.saturating_sub(self.clock.now());
            Duration::from_nanos(left)
        });
        limit.into_iter().chain(self.sources.deadline()).min()
    }
}
