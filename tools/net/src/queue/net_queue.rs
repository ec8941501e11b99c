//! [`NetQueue`]: what the device sides of all virtqueues have in common; a [`Role`] says what one is for.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringvirtio::{Context, PollState, Polls, QueueFault, QueueHandler, QueueSetup, SetupError, VirtQueue};

use crate::device::{Net, View};
use crate::stats::NetStats;

/// What a virtqueue is for.
pub trait Role: Send + Sized {
    /// Whether the queue is serviced when the device changes.
    const FOLLOWS_CHANGES: bool = false;
    /// Whether heads that were complete and not published by an earlier daemon are run again, too.
    const RESTARTS_COMPLETED: bool = false;

    /// Returns the role of a queue of a device, before the queue is served.
    fn new(net: &Net, setup: &QueueSetup) -> Self;

    /// Services the queue. Returns how many heads of an earlier daemon were run again.
    ///
    /// # Errors
    /// The driver broke the queue.
    fn run(&mut self, common: &mut Common, cx: &mut Context<'_>) -> Result<u16, QueueFault>;

    /// The device has changed; `common` has its new view.
    fn changed(&mut self, _common: &Common) {}
}

/// What a role works with.
pub struct Common {
    /// The queue.
    pub queue: VirtQueue,
    /// Its device.
    pub net: Arc<Net>,
    /// The device as it is in this service.
    pub view: View,
    /// The pair that the queue belongs to; 0 for the control queue.
    pub pair: u16,
    /// Counters.
    pub stats: Arc<NetStats>,
    /// Asks for another service at once.
    pub woken: bool,
    /// Heads that an earlier daemon had popped.
    restart: VecDeque<u16>,
    version: u64,
    poll: PollState,
}

impl Common {
    /// Returns the next head that an earlier daemon had popped. It stays the next one until
    /// [`Self::restarted`].
    pub fn next_restart(&self) -> Option<u16> {
        self.restart.front().copied()
    }

    /// The next head of an earlier daemon is run again.
    pub fn restarted(&mut self) {
        self.restart.pop_front();
        self.stats.queue.restarted.add(1);
    }

    /// Returns whether the device has changed since the view was taken.
    pub fn has_changed(&self) -> bool {
        self.net.version() != self.version
    }

    /// Takes the device's view if it has changed. Returns whether it has.
    fn refresh(&mut self, cx: &mut Context<'_>) -> bool {
        let version = self.net.version();
        if version == self.version {
            return false;
        }
        (self.version, self.view) = (version, self.net.view());
        // The poll may be of another descriptor.
        self.cancel(cx);
        true
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        let armed = self.poll.take();
        if let Some((backend, waiter)) = cx.backend::<Polls>() {
            match armed {
                Some(tag) => backend.cancel(waiter, tag),
                None => backend.forget(waiter, self.queue.tag_base),
            }
        }
    }

    /// Waits until the port can be read.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn poll_in(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let fd = self.view.port.as_ref().and_then(|port| port.fd(self.pair));
        let (Some(fd), Some((backend, waiter))) = (fd, cx.backend::<Polls>()) else {
            return Ok(());
        };
        let tag = self.poll.begin(self.queue.tag_base);
        backend.poll_in(waiter, fd, tag).inspect_err(|_| {
            self.poll.take();
        })
    }

    /// Waits until the port can be written. Returns `false` if the reactor cannot.
    pub fn poll_out(&mut self, cx: &mut Context<'_>) -> bool {
        let fd = self.view.port.as_ref().and_then(|port| port.fd(self.pair));
        let tag = self.poll.begin(self.queue.tag_base);
        let polled = match (fd, cx.backend::<Polls>()) {
            (Some(fd), Some((backend, waiter))) => backend.poll_out(waiter, fd, tag),
            _ => false,
        };
        if !polled {
            self.poll.take();
        }
        polled
    }
}

/// The device side of a virtqueue.
pub struct NetQueue<R> {
    common: Common,
    role: R,
}

impl<R: Role> NetQueue<R> {
    /// Creates a queue of `pair`. What the log has in flight is run first.
    ///
    /// # Errors
    /// Invalid addresses, size or log.
    pub fn new(net: Arc<Net>, pair: u16, setup: QueueSetup) -> Result<Self, SetupError> {
        let role = R::new(&net, &setup);
        let mut queue = VirtQueue::new(setup)?;
        queue.name = net.config().name.clone();
        if R::RESTARTS_COMPLETED {
            queue.restart_completed();
        }
        let stats = NetStats {
            queue: queue.stats().clone(),
            ..NetStats::default()
        };
        let common = Common {
            stats: Arc::new(stats),
            restart: queue.take_restart().into(),
            version: net.version(),
            view: net.view(),
            queue,
            net,
            pair,
            woken: false,
            poll: PollState::default(),
        };
        Ok(Self { common, role })
    }

    /// Returns the counters, which stay readable after the queue is gone.
    #[must_use]
    pub fn stats(&self) -> &Arc<NetStats> {
        &self.common.stats
    }
}

impl<R: Role> QueueHandler for NetQueue<R> {
    fn queue(&self) -> &VirtQueue {
        &self.common.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.common.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let backend = cx.make_backend::<Polls>();
        if R::FOLLOWS_CHANGES
            && let Some((backend, _)) = backend
        {
            backend.attach(self.common.net.group(), self.common.queue.tag_base);
        }
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        self.common.cancel(cx);
        if let Some((backend, _)) = cx.backend::<Polls>() {
            backend.detach(self.common.queue.tag_base);
        }
    }

    fn service(&mut self, cx: &mut Context<'_>) {
        let Self { common, role } = self;
        common.woken = false;
        common.queue.begin_service();
        if common.queue.paused || common.queue.is_broken() {
            return;
        }
        if common.refresh(cx) {
            role.changed(common);
        } else if common.poll.is_armed() {
            // It waits for the port, whatever the driver notifies of.
            return;
        }
        let restarted = role.run(common, cx).unwrap_or_else(|fault| {
            common.queue.fail(fault);
            0
        });
        common.queue.end_service(restarted);
    }

    fn complete(&mut self, tag: u64, _result: i32, _cx: &mut Context<'_>) {
        self.common.woken |= self.common.poll.complete(tag);
    }

    fn wants_service(&self) -> bool {
        self.common.woken
    }
}
