//! The device sides of the virtqueues: [`ConsoleQueue`], and a [`Direction`] for what each is for.
//!
//! A queue starts one head at a time, which the in-flight log has. What of it is done stands beside the
//! port's rings, so that the next daemon neither repeats nor leaves out a byte.

mod control;
mod receive;
mod transmit;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::buffers::Buffers;
use ringvirtio::{Context, Polls, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use crate::config::{Role, role};
use crate::device::{Console, MadeQueue};
use crate::stats::ConsoleStats;
use control::{ControlReceive, ControlTransmit};
use receive::Receive;
use transmit::Transmit;

/// Bytes copied at once.
const STEP: usize = 4096;

/// What a virtqueue is for.
trait Direction: Send {
    /// Services the queue.
    ///
    /// # Errors
    /// The driver broke the queue.
    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<(), QueueFault>;
}

/// What all queues have.
struct Common {
    queue: VirtQueue,
    console: Arc<Console>,
    stats: Arc<ConsoleStats>,
    readable: Buffers,
    writable: Buffers,
    /// Heads that are popped and not complete: those of an earlier daemon, or one that is being appended.
    started: VecDeque<u16>,
    /// Asks for another service at once.
    woken: bool,
}

/// A head that is to be serviced.
#[derive(Clone, Copy)]
struct Next {
    head: u16,
    /// It is still in the available ring.
    pop: bool,
}

impl Common {
    /// Returns the next head, with its buffers in `readable` and `writable`. [`VirtQueue::begin_round`] comes
    /// before.
    ///
    /// # Errors
    /// The chain is malformed.
    fn next(&mut self) -> Result<Option<Next>, QueueFault> {
        let next = match self.started.front() {
            Some(&head) => Next { head, pop: false },
            None if self.queue.has_next() => Next {
                head: self.queue.peek()?,
                pop: true,
            },
            None => return Ok(None),
        };
        self.readable.clear();
        self.writable.clear();
        self.queue
            .walk(next.head, &mut self.readable, &mut self.writable)?;
        Ok(Some(next))
    }

    /// Starts a head, unless an earlier daemon has.
    fn start(&mut self, next: Next) {
        if next.pop {
            self.queue.accept(next.head);
            self.started.push_back(next.head);
        }
    }

    /// Completes the head that [`Self::start`] started last.
    fn complete(&mut self, next: Next, len: usize) {
        self.started.pop_front();
        self.queue.start();
        self.queue.complete(next.head, len as u32);
        self.stats.chains.add(1);
        // Kernels wait for a console's output with a lock held, and users for their echo.
        self.queue.set_urgent();
    }

    /// There is no buffer: the driver is to notify of the next one.
    fn starve(&mut self) {
        self.queue.stopped = false;
        self.stats.no_buffers.add(1);
    }
}

/// The device side of a virtqueue.
struct ConsoleQueue {
    common: Common,
    direction: Box<dyn Direction>,
    /// It is woken with its device.
    is_woken: bool,
}

impl Console {
    /// Makes the device side of virtqueue `number`, with its counters.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn queue(self: &Arc<Self>, number: u16, setup: QueueSetup) -> MadeQueue {
        let role = role(number);
        self.negotiated(&setup, role);
        let ram = setup.ram.clone();
        let mut queue = VirtQueue::new(setup)?;
        queue.name = self.name().to_owned();
        let started: VecDeque<u16> = queue.take_restart().into();
        let stats = Arc::new(ConsoleStats {
            queue: queue.stats().clone(),
            ..ConsoleStats::default()
        });
        stats.queue.restarted.add(started.len() as u64);
        let port = |port: usize| self.ports().get(port).cloned().ok_or(SetupError::NoQueue(number));
        let direction: Box<dyn Direction> = match role {
            Role::Receive(of) => Box::new(Receive::new(port(of)?, &started)),
            Role::Transmit(of) => Box::new(Transmit::new(port(of)?, &started)),
            Role::ControlReceive => Box::new(ControlReceive),
            Role::ControlTransmit => Box::new(ControlTransmit),
        };
        let common = Common {
            queue,
            console: self.clone(),
            stats: stats.clone(),
            readable: Buffers::new(ram.clone()),
            writable: Buffers::new(ram),
            started,
            woken: false,
        };
        let queue = ConsoleQueue {
            common,
            direction,
            is_woken: role == Role::ControlReceive,
        };
        Ok((Box::new(queue), stats))
    }
}

impl QueueHandler for ConsoleQueue {
    fn queue(&self) -> &VirtQueue {
        &self.common.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.common.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some((polls, _)) = cx.make_backend::<Polls>()
            && self.is_woken
        {
            polls.attach(self.common.console.group(), self.common.queue.tag_base);
        }
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        if let Some((polls, _)) = cx.backend::<Polls>() {
            polls.detach(self.common.queue.tag_base);
        }
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        let Self {
            common, direction, ..
        } = self;
        common.woken = false;
        common.queue.begin_service();
        if common.queue.paused || common.queue.is_broken() {
            return;
        }
        if let Err(fault) = direction.run(common, cx) {
            common.queue.fail(fault);
        }
        common.queue.end_service(0);
    }

    /// The device has something to say.
    fn complete(&mut self, _tag: u64, _result: i32, _cx: &mut Context<'_>) {
        self.common.woken = true;
    }

    fn wants_service(&self) -> bool {
        self.common.woken
    }
}
