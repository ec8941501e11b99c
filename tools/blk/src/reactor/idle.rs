//! How a round ends: with interrupts that wait for more to signal, with a look at the rings, or asleep.

use std::io;
use std::time::{Duration, Instant};

use super::wait::{Ready, Sleep, Sleeper};
use super::{Core, Entry, poll};
use crate::engine::Engine;
use crate::queue::Queue;
use crate::trace::{self, TraceId};

impl Core {
    /// While interrupts are owed, looks for more that they may signal, with everything submitted. `true`: something has
    /// happened; else none is owed any more.
    pub(super) fn coalesce(&mut self) -> bool {
        if self.owing.is_empty() {
            return false;
        }
        if let Sleeper::Uring(ring) = &mut self.sleeper {
            ring.submit();
        }
        let start = Instant::now();
        let clock = self.clock.clone();
        let mut found = false;
        while !found {
            let now = clock.now();
            let Some(until) = self.signal(Some(now)) else {
                break;
            };
            // What a limit keeps waiting goes on at its moment.
            let limit = self.until_deadline();
            let until = limit.at_most().map_or(until, |limit| {
                until.min(now.saturating_add(limit.as_nanos() as u64))
            });
            found = limit == Sleep::Not || poll::look(|| self.look(), || clock.now() >= until);
        }
        self.looked(found, start.elapsed())
    }

    /// Raises the owed interrupts that are overdue `now`, or all of them. Gives when the next one is due.
    pub(super) fn signal(&mut self, now: Option<u64>) -> Option<u64> {
        let mut next: Option<u64> = None;
        let (queues, mut crowded) = (&mut self.queues, None);
        self.owing.retain(|id| {
            let Some(entry) = queues.get_mut(id) else {
                return false;
            };
            let due = entry.queue.interrupt_due();
            entry.owing = due.is_some() && due > now && now.is_some();
            if entry.owing {
                next = due.min(next.or(due));
                return true;
            }
            match now {
                Some(_) => entry.queue.signal_overdue(),
                None => entry.queue.signal(),
            }
            crowded = crowded.max(entry.queue.take_crowded());
            false
        });
        self.note_crowded(crowded);
        next
    }

    /// Drivers were told of requests in this round; whether one of them has several under way.
    pub(super) fn note_crowded(&mut self, crowded: Option<bool>) {
        self.told = self.told.max(crowded);
        self.crowded = self.told.unwrap_or(self.crowded);
    }

    /// Whether there is something to do.
    fn look(&mut self) -> bool {
        let queues = &self.queues;
        let available = |id| {
            queues
                .get(id)
                .is_some_and(|entry: &Entry| entry.queue.has_available())
        };
        let ended = match &mut self.sleeper {
            Sleeper::Uring(ring) => ring.is_ready(),
            Sleeper::Epoll(_) => false,
        };
        ended
            || self.quiet.iter().any(available)
            || self.bells.iter().any(|registered| registered.bell.look())
            || self.remotes.look()
    }

    /// Looks on for a while, with everything submitted. `true`: something has happened.
    pub(super) fn look_on(&mut self) -> bool {
        let Sleeper::Uring(ring) = &mut self.sleeper else {
            return false;
        };
        if !self.polling.is_worth_it() || self.crowded {
            return false;
        }
        ring.submit();
        // What a limit keeps waiting goes on at a known moment, until which there is no need to be awake.
        let limit = self.until_deadline().at_most();
        if limit.is_some_and(|limit| limit <= self.polling.window()) {
            return false;
        }
        let polling = self.polling;
        let (found, time) = polling.look_on(|| self.look());
        self.looked(found, time)
    }

    /// It was looked for so long, and something was there or not.
    fn looked(&mut self, found: bool, time: Duration) -> bool {
        for registered in &mut self.bells {
            registered.bell.looked(found, time);
        }
        if found {
            self.kick_quiet(|queue| queue.has_available());
        }
        found
    }

    /// Kicks those quiet queues of which `which` says so.
    pub(super) fn kick_quiet(&mut self, which: impl Fn(&mut Queue) -> bool) {
        debug_assert!(self.quiet.len() <= self.queues.len());
        for id in &self.quiet {
            if let Some(entry) = self.queues.get_mut(id)
                && which(&mut entry.queue)
                && !entry.kicked
            {
                entry.kicked = true;
                self.kicked.push(*id);
            }
        }
    }

    /// Arms the bells and sleeps, if there is nothing else to do, until something happens.
    pub(super) fn sleep(&mut self, idle: bool, ready: &mut Vec<Ready>) -> io::Result<()> {
        let start = Instant::now();
        if idle {
            // Drivers notify from here on, and what came before that is found.
            self.kick_quiet(|queue| queue.wants_to_listen() && queue.listen());
            for id in self.quiet.drain(..) {
                if let Some(entry) = self.queues.get_mut(&id) {
                    entry.quiet = false;
                }
            }
        }
        let idle = idle && self.kicked.is_empty();
        // Every bell is armed, even if one has more already.
        let more = self
            .bells
            .iter_mut()
            .fold(false, |more, registered| registered.bell.arm() | more);
        let more = self.remotes.arm() | more;
        let sleep = if idle && !more {
            self.until_deadline()
        } else {
            Sleep::Not
        };
        self.sleeper.wait(sleep, ready)?;
        if sleep != Sleep::Not {
            let slept = start.elapsed();
            let whole = sleep.at_most().is_some_and(|most| slept >= most);
            self.polling.slept(slept, whole);
            trace::event(trace::Kind::Wake, TraceId::default(), 0);
        }
        for registered in &mut self.bells {
            registered.bell.disarm();
        }
        Ok(())
    }

    /// How long to sleep at most.
    fn until_deadline(&self) -> Sleep {
        let deadlines = self
            .waiting
            .iter()
            .filter_map(|id| self.queues.get(id)?.queue.deadline());
        match deadlines.min() {
            None => Sleep::Forever,
            Some(at) => match at.saturating_sub(self.clock.now()) {
                0 => Sleep::Not,
                left => Sleep::AtMost(Duration::from_nanos(left)),
            },
        }
    }
}
