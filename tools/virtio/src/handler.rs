//! What a device implements: [`QueueHandler`] for each of its queues, [`ReactorBackend`] for what a reactor
//! owns of its kind.
//!
//! The reactor holds `Box<dyn QueueHandler>` and drives them on its own thread. A handler reaches the
//! reactor's waiter and its kind's back end through the [`Context`] of each call. [`Completion`] is how
//! an operation that was submitted for a queue has ended.

use std::any::{Any, TypeId};
use std::io;

use crate::queue::VirtQueue;
use crate::waiter::Waiter;

/// The device side of one virtqueue, driven by one reactor's thread.
pub trait QueueHandler: Send {
    /// Returns the queue.
    fn queue(&self) -> &VirtQueue;

    /// Returns the queue, to be changed.
    fn queue_mut(&mut self) -> &mut VirtQueue;

    /// The queue comes to a reactor: called once, before the first [`Self::service`].
    ///
    /// # Errors
    /// The queue cannot be served: it is never serviced, but may be quiesced and removed.
    fn attach(&mut self, _cx: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    /// The queue leaves the reactor that it was attached to, with nothing in flight.
    fn detach(&mut self, _cx: &mut Context<'_>) {}

    /// Pops at most one round of requests and starts them, unless the queue is paused.
    fn service(&mut self, cx: &mut Context<'_>);

    /// Handles the completion of an operation that was submitted with this tag: the queue's
    /// [tag base](VirtQueue::tag_base) and 16 bits of the handler's own.
    fn complete(&mut self, tag: u64, result: i32, cx: &mut Context<'_>);

    /// Returns whether the queue is to be serviced again without a notification; asked after each
    /// [`Self::service`] and [`Self::complete`]. A receive queue's packets arrive by completions, and its
    /// driver may make buffers available just before it is asked to notify of them.
    fn wants_service(&self) -> bool {
        false
    }

    /// The queue leaves, with requests in flight: abandons what waits for another process or was not begun.
    /// Returns whether there was any.
    fn abandon(&mut self, _cx: &mut Context<'_>) -> bool {
        false
    }

    /// The next [`Self::service`] retries the requests that have stopped the queue.
    fn retry(&mut self) {}
}

/// What a reactor owns for one kind of device beside its waiter: thread pools, engines. Made at its first
/// use.
pub trait ReactorBackend: Any {
    /// Starts all that was pushed. Called once per round, before the reactor waits.
    fn submit(&mut self, waiter: &mut Waiter);

    /// Appends what has completed to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Returns whether there is something to reap, without a system call: asked often while the reactor
    /// busy-polls.
    fn has_completions(&self) -> bool;

    /// Returns whether there is work left for the reactor's own thread, which then must not sleep.
    fn is_busy(&self) -> bool {
        false
    }

    /// The thread is about to sleep: asks peers to wake it. Returns whether there is something to reap
    /// already.
    fn arm(&mut self) -> bool {
        self.has_completions()
    }
}

/// The back ends of a reactor, by their types.
#[derive(Default)]
pub struct Backends(Vec<(TypeId, Box<dyn ReactorBackend>)>);

impl Backends {
    /// Makes the back end of type `B`, unless there is one.
    pub fn add<B: ReactorBackend + Default>(&mut self) {
        let id = TypeId::of::<B>();
        if self.0.iter().all(|(known, _)| *known != id) {
            self.0.push((id, Box::new(B::default())));
        }
    }

    /// Returns the back end of type `B`, if it was made.
    #[inline]
    pub fn get<B: ReactorBackend>(&mut self) -> Option<&mut B> {
        let id = TypeId::of::<B>();
        let (_, backend) = self.0.iter_mut().find(|(known, _)| *known == id)?;
        let backend: &mut dyn Any = &mut **backend;
        backend.downcast_mut()
    }

    /// Calls [`ReactorBackend::submit`] of all.
    pub fn submit(&mut self, waiter: &mut Waiter) {
        self.0.iter_mut().for_each(|(_, backend)| backend.submit(waiter));
    }

    /// Calls [`ReactorBackend::reap`] of all.
    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        self.0.iter_mut().for_each(|(_, backend)| backend.reap(done));
    }

    /// Returns whether one has something to reap.
    pub fn have_completions(&self) -> bool {
        self.0.iter().any(|(_, backend)| backend.has_completions())
    }

    /// Returns whether one has work left for the reactor's thread.
    pub fn are_busy(&self) -> bool {
        self.0.iter().any(|(_, backend)| backend.is_busy())
    }

    /// Arms all, even if one has something to reap already. Returns whether one has.
    pub fn arm(&mut self) -> bool {
        self.0
            .iter_mut()
            .fold(false, |more, (_, backend)| backend.arm() | more)
    }
}

/// What a handler reaches while the reactor calls it.
pub struct Context<'a> {
    waiter: &'a mut Waiter,
    backends: &'a mut Backends,
}

impl<'a> Context<'a> {
    /// For one call of a handler.
    pub fn new(waiter: &'a mut Waiter, backends: &'a mut Backends) -> Self {
        Self { waiter, backends }
    }

    /// Returns the back end of type `B`, made now if it is the first use, and the waiter. For
    /// [`QueueHandler::attach`].
    pub fn make_backend<B: ReactorBackend + Default>(&mut self) -> Option<(&mut B, &mut Waiter)> {
        self.backends.add::<B>();
        self.backend()
    }

    /// Returns the back end of type `B`, if a handler has made it, and the waiter.
    #[inline]
    pub fn backend<B: ReactorBackend>(&mut self) -> Option<(&mut B, &mut Waiter)> {
        Some((self.backends.get()?, self.waiter))
    }
}

/// The end of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The tag it was submitted with: a queue's tag base and 16 bits of the queue's own.
    pub tag: u64,
    /// Bytes transferred, maybe fewer than asked for; 0 for what is no transfer; or `-errno`.
    pub result: i32,
}

impl Completion {
    /// Returns the completion of an operation that was carried out by system calls.
    #[inline]
    pub fn new(tag: u64, outcome: io::Result<usize>) -> Self {
        let result = match outcome {
            // The kernel transfers at most 0x7ffff000 bytes at once, devices less; the rest follows.
            Ok(transferred) => i32::try_from(transferred).unwrap_or(i32::MAX),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        Self { tag, result }
    }
}
