//! Popping: takes requests off the available ring, as many as one round and the disk's limits allow, and
//! parses them.

use std::mem;

use ringvirtio::QueueFault;

use super::block_queue::BlockQueue;
use crate::engine::Engine;
use crate::request::{Header, Plan, plan};

impl BlockQueue {
    /// Pops the requests that are available and starts them. Returns how many.
    pub fn service(&mut self, engine: &mut dyn Engine) -> u16 {
        self.queue.begin_service();
        if self.disk.is_closed() {
            self.stats.held.set(self.queue.restarts() as u64);
            return 0;
        }
        if self.cache.is_turned_off(&self.disk) {
            self.make_durable(engine);
        }
        if self.queue.paused {
            return 0;
        }
        if mem::take(&mut self.retry_requested) {
            self.retry_held(engine);
        }
        if self.queue.stopped {
            return 0;
        }
        let restarted = if self.queue.restarts() > 0 {
            self.run_again(engine)
        } else {
            0
        };
        if !self.queue.is_broken() {
            self.pop_round(engine);
        }
        // Those of a round whose end is malformed, too: they are in the log.
        self.submit_batch(engine);
        self.queue.end_service(restarted)
    }

    /// Runs what an earlier daemon had started, in its order. Returns how many requests that were.
    fn run_again(&mut self, engine: &mut dyn Engine) -> u16 {
        let mut count = 0;
        self.stats.held.set(0);
        for head in self.queue.take_restart() {
            match self.parse(head) {
                Ok(plan) => self.start(head, plan, engine),
                Err(fault) => {
                    self.queue.fail(fault);
                    break;
                }
            }
            self.stats.queue.restarted.add(1);
            count += 1;
        }
        count
    }

    fn pop_round(&mut self, engine: &mut dyn Engine) {
        self.queue.begin_round();
        while self.queue.has_next() {
            if let Some(deadline) = self.disk.control().throttle.wait(self.queue.now()) {
                self.queue.wait_until(deadline);
                break;
            }
            let popped = self.queue.peek().and_then(|head| Ok((head, self.parse(head)?)));
            match popped {
                Ok((head, plan)) => {
                    self.queue.accept(head);
                    self.start(head, plan, engine);
                }
                Err(fault) => {
                    self.queue.fail(fault);
                    break;
                }
            }
        }
        self.queue.end_round();
    }

    /// Reads the chain, once, into the head's slot.
    fn parse(&mut self, head: u16) -> Result<Plan, QueueFault> {
        let slot = self.slots.at_mut(head);
        let now = self.queue.now();
        slot.clear(now, self.queue.available_at());
        self.queue.walk(head, &mut slot.readable, &mut slot.writable)?;
        let mut header = [0; Header::SIZE];
        if !slot.readable.take_front(&mut header) {
            return Err(QueueFault::Request(head, "header shorter than 16 bytes"));
        }
        if !slot.writable.take_last() {
            return Err(QueueFault::Request(head, "no room for the status"));
        }
        let (readable, writable) = (slot.readable.total(), slot.writable.total());
        let plan = plan(
            Header::parse(header),
            readable,
            writable,
            self.disk.limits(),
            self.negotiated,
        );
        let bytes = match plan {
            Plan::Read(_) => writable,
            Plan::Write(_) => readable,
            // Ranges are not read yet. One that is refused costs its chain and a status.
            Plan::Flush | Plan::Ranges(..) | Plan::GetId | Plan::Complete(_) => 0,
        };
        self.disk.control().throttle.take(now, bytes);
        Ok(plan)
    }
}
