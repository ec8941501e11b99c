//! A reactor's [`Commands`], and [`EventSource`], which issues them on the reactor's own thread.
//! [`ReactorHandle`]: commands from other threads, by way of a [`Mailbox`]. [`QueueId`]: names a queue,
//! to its owner and in the tags of its operations.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::handler::QueueHandler;
use crate::waiter::{ReadWidth, eventfd};

/// Runs on the reactor's thread when what was asked for is done; must not block.
pub type Callback = Box<dyn FnOnce() + Send>;

/// Wakes a reactor and feeds it commands: EL2 through `/dev/uioN`, an `eventfd` in tests. All calls come on
/// the reactor's thread and must not block.
pub trait EventSource: Send {
    /// The descriptor was read: the source woke the reactor. An interrupt that masks itself is unmasked here.
    fn on_wakeup(&mut self) {}

    /// Returns, after [`Self::on_wakeup`], the CPU on which the thread is best off: there it is kept, or
    /// anywhere on `Some(None)`. `None`: no change.
    fn preferred_cpu(&mut self) -> Option<Option<usize>> {
        None
    }

    /// Collects the source's events as commands. Called in every round.
    fn collect(&mut self, commands: &mut Commands);

    /// Returns whether there are events, without collecting them. Called often while the thread busy-polls.
    fn has_events(&self) -> bool {
        false
    }

    /// Returns after what time [`Self::collect`] is to be called even if nothing wakes the thread.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// The thread has busy-polled for `time`; `found`: it found work.
    fn on_busy_poll(&mut self, _found: bool, _time: Duration) {}

    /// The thread is about to sleep: asks to be woken from now on, then checks for events once more. Returns
    /// whether there are any; [`Self::collect`] is called again then.
    fn arm(&mut self) -> bool {
        false
    }

    /// The thread is awake and need not be woken.
    fn disarm(&mut self) {}
}

/// One command.
pub enum Message {
    /// See [`ReactorHandle::add_event_source`].
    AddEventSource {
        /// Becomes readable.
        fd: OwnedFd,
        /// How it is read.
        width: ReadWidth,
        /// The source.
        source: Box<dyn EventSource>,
    },
    /// See [`Commands::add`].
    Add {
        /// Its number.
        id: QueueId,
        /// The queue.
        handler: Box<dyn QueueHandler>,
    },
    /// See [`Commands::schedule`].
    Schedule(QueueId),
    /// See [`Commands::notified`].
    Notified {
        /// The queue.
        id: QueueId,
        /// Nanoseconds.
        ago: u64,
    },
    /// See [`Commands::quiesce`].
    Quiesce {
        /// The queue.
        id: QueueId,
        /// Called at the end.
        then: Callback,
    },
    /// See [`Commands::resume`].
    Resume(QueueId),
    /// See [`Commands::retry`].
    Retry(QueueId),
    /// See [`Commands::remove`].
    Remove {
        /// The queue.
        id: QueueId,
        /// Called at the end.
        then: Callback,
    },
    /// See [`ReactorHandle::stop`].
    Stop,
}

/// What an event source wants done; carried out in order as soon as it returns.
#[derive(Default)]
pub struct Commands {
    /// Oldest first.
    pub list: VecDeque<Message>,
    ids: Arc<AtomicU64>,
}

impl Commands {
    pub(super) fn new(ids: Arc<AtomicU64>) -> Self {
        Self {
            list: VecDeque::new(),
            ids,
        }
    }

    /// Serves a queue from now on, beginning with what is in it already.
    pub fn add(&mut self, handler: Box<dyn QueueHandler>) -> QueueId {
        let id = next_id(&self.ids);
        self.list.push_back(Message::Add { id, handler });
        id
    }

    /// Services the queue: the driver has notified it.
    pub fn schedule(&mut self, id: QueueId) {
        self.list.push_back(Message::Schedule(id));
    }

    /// As [`Self::schedule`], with how long ago the driver notified, in nanoseconds: requests are timed from
    /// there.
    pub fn notified(&mut self, id: QueueId, ago: u64) {
        self.list.push_back(Message::Notified { id, ago });
    }

    /// Quiesces the queue: pops nothing more; calls `then` when nothing of it is in flight and all is
    /// published.
    pub fn quiesce(&mut self, id: QueueId, then: Callback) {
        self.list.push_back(Message::Quiesce { id, then });
    }

    /// Continues after [`Self::quiesce`].
    pub fn resume(&mut self, id: QueueId) {
        self.list.push_back(Message::Resume(id));
    }

    /// Retries requests that failed and have stopped the queue.
    pub fn retry(&mut self, id: QueueId) {
        self.list.push_back(Message::Retry(id));
    }

    /// As [`Self::quiesce`], then drops the queue before it calls `then`. For a queue that is gone already,
    /// `then` is called at once.
    pub fn remove(&mut self, id: QueueId, then: Callback) {
        self.list.push_back(Message::Remove { id, then });
    }
}

/// Returns an id that was not used before.
pub(super) fn next_id(ids: &AtomicU64) -> QueueId {
    QueueId::from_number(ids.fetch_add(1, Ordering::Relaxed))
}

/// Names a queue of a reactor, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(u64);

impl QueueId {
    /// Returns the id with this number. Simulations number queues themselves; else only the reactor does.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the tag base of its operations: 16 bits are the handler's, the top bit is the waiter's.
    pub const fn tag(self) -> u64 {
        self.0 << 16
    }

    /// Returns the id of the queue that an operation belongs to.
    pub const fn from_tag(tag: u64) -> Self {
        Self(tag >> 16)
    }
}

/// Hashes a number by one multiplication: numbers are unique.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table takes its bits from both ends.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Talks to a reactor from any thread. Messages to one that has ended are dropped.
#[derive(Clone)]
pub struct ReactorHandle {
    messages: Sender<Message>,
    event: Arc<File>,
    ids: Arc<AtomicU64>,
}

impl ReactorHandle {
    fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            self.wake();
        }
    }

    /// Wakes the thread for one round, so that event sources are collected without an event.
    pub fn wake(&self) {
        // A full counter means that it is about to wake anyway.
        let _ = (&*self.event).write(&1_u64.to_ne_bytes());
    }

    /// Adds an event source. `fd` is read, `width` bytes at a time, whenever it is readable; it is made
    /// blocking.
    pub fn add_event_source(&self, fd: OwnedFd, width: ReadWidth, source: Box<dyn EventSource>) {
        self.send(Message::AddEventSource { fd, width, source });
    }

    /// As [`Commands::add`].
    pub fn add(&self, handler: Box<dyn QueueHandler>) -> QueueId {
        let id = next_id(&self.ids);
        self.send(Message::Add { id, handler });
        id
    }

    /// As [`Commands::schedule`].
    pub fn schedule(&self, id: QueueId) {
        self.send(Message::Schedule(id));
    }

    /// Gives several commands, or such as have no method here, in order.
    pub fn command<T>(&self, give: impl FnOnce(&mut Commands) -> T) -> T {
        let mut commands = Commands::new(self.ids.clone());
        let result = give(&mut commands);
        for message in commands.list {
            self.send(message);
        }
        result
    }

    /// Quiesces and removes all queues, then ends the reactor.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }
}

/// The reactor's end.
pub struct Mailbox {
    messages: Receiver<Message>,
    event: Arc<File>,
    ids: Arc<AtomicU64>,
}

impl Mailbox {
    pub fn new() -> io::Result<(Self, ReactorHandle)> {
        let (sender, receiver) = channel();
        let event = Arc::new(File::from(eventfd()?));
        let ids = Arc::new(AtomicU64::new(0));
        let handle = ReactorHandle {
            messages: sender,
            event: event.clone(),
            ids: ids.clone(),
        };
        let mailbox = Self {
            messages: receiver,
            event,
            ids,
        };
        Ok((mailbox, handle))
    }

    /// Returns a descriptor that is readable when there may be messages.
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Returns an empty list of commands with the same numbering.
    pub fn commands(&self) -> Commands {
        Commands::new(self.ids.clone())
    }

    /// Appends all messages to `commands`.
    pub fn take(&self, commands: &mut Commands) {
        commands.list.extend(self.messages.try_iter());
    }
}
