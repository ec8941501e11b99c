//! [`ServedRing`]: the daemon's side of a queue that a server serves on the driver's ring. It forwards
//! notifications, and touches the ring itself only where the specification leaves it to the device as a
//! whole: not at all.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use ringvirtio::{
    Context, GuestRam, PollState, Polls, QueueHandler, QueueSetup, RingAddresses, SetupError, VirtQueue,
};
use vmm_sys_util::eventfd::EventFd;

use super::call::Call;
use super::descriptors::{Descriptors, FrontOptions};
use super::link::{Link, Wanted};
use crate::front::kick::{Kick, Threads};

/// What the queues of a device have in common.
#[derive(Clone)]
pub struct ServedDevice {
    /// The connection's thread.
    pub link: Arc<Link>,
    /// Where event descriptors come from.
    pub descriptors: Arc<dyn Descriptors>,
    /// How the server is used.
    pub options: FrontOptions,
    /// Counts the threads that kick it without an io_uring.
    pub threads: Threads,
}

/// See the module.
pub struct ServedRing {
    queue: VirtQueue,
    number: u16,
    device: ServedDevice,
    /// What the server gets, until it has it.
    wanted: Option<(RingAddresses, u64, u64, Arc<GuestRam>)>,
    attached: Option<(Kick, Call)>,
    poll: PollState,
}

impl ServedRing {
    pub(super) fn new(device: ServedDevice, number: u16, setup: QueueSetup) -> Result<Self, SetupError> {
        let wanted = (setup.ring, setup.features, setup.epoch, setup.ram.clone());
        let mut queue = VirtQueue::new(setup)?;
        queue.name = device.options.name.clone();
        // The server pops.
        queue.stopped = true;
        Ok(Self {
            queue,
            number,
            device,
            wanted: Some(wanted),
            attached: None,
            poll: PollState::default(),
        })
    }

    fn kick(&self) -> io::Result<Kick> {
        let event = self.device.descriptors.kick(self.number)?;
        // SAFETY: nothing else owns the descriptor any more.
        let event = unsafe { EventFd::from_raw_fd(event.into_raw_fd()) };
        Kick::of(event, self.device.options.io_uring, &self.device.threads)
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        let (Some((_, call)), Some((polls, waiter))) = (&self.attached, cx.backend::<Polls>()) else {
            return;
        };
        let tag = self.poll.begin(self.queue.tag_base);
        if let Err(error) = polls.poll_in(waiter, call.fd(), tag) {
            self.poll.take();
            tracing::error!(device = self.queue.name, %error, "cannot wait for interrupts of a queue");
        }
    }
}

impl QueueHandler for ServedRing {
    fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    fn queue_mut(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    fn attach(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        cx.make_backend::<Polls>();
        let call = Call::new(self.device.descriptors.call(self.number)?)?;
        let theirs = call.event().try_clone()?;
        self.attached = Some((self.kick()?, call));
        if let Some((ring, features, epoch, ram)) = self.wanted.take() {
            self.device.link.serve(Wanted {
                number: self.number,
                ring,
                features,
                epoch,
                ram,
                kick: self.kick()?,
                call: theirs,
            });
        }
        self.poll(cx);
        // What the server did while there was no daemon.
        self.queue.raise();
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context<'_>) {
        if let Some(tag) = self.poll.take()
            && let Some((polls, waiter)) = cx.backend::<Polls>()
        {
            polls.cancel(waiter, tag);
        }
    }

    /// The driver has notified, or may have.
    fn service(&mut self, _cx: &mut Context<'_>) {
        self.queue.begin_service();
        if let Some((kick, _)) = &mut self.attached {
            kick.kick();
        }
    }

    fn complete(&mut self, tag: u64, _result: i32, cx: &mut Context<'_>) {
        if self.poll.complete(tag) {
            if let Some((_, call)) = &self.attached
                && call.take()
            {
                self.queue.raise();
            }
            self.poll(cx);
        }
    }
}
