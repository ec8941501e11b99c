//! Messages to a reactor, from its own thread ([`Commands`]) and from others ([`ReactorHandle`]).

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Bell;
use super::wait::{ReadWidth, eventfd};
use crate::queue::Queue;

/// Runs on the reactor's thread when what was asked for has come true; must not block.
pub type Callback = Box<dyn FnOnce() + Send>;

/// Names a queue of a reactor, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct QueueId(u64);

impl QueueId {
    /// For simulations that number queues themselves.
    #[cfg(feature = "fakes")]
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[cfg(feature = "fakes")]
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The tag of its operations: 16 bits are the queue's, the top two are the sleeper's.
    pub(super) fn tag(self) -> u64 {
        self.0 << 16
    }

    pub(super) fn from_tag(tag: u64) -> Self {
        Self(tag >> 16)
    }
}

/// Numbers are unique, so they hash as themselves: [`IdHasher`].
impl Hash for QueueId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

#[derive(Default)]
pub(super) struct IdHasher(u64);

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

pub(super) enum Message {
    Bell {
        fd: OwnedFd,
        width: ReadWidth,
        bell: Box<dyn Bell>,
    },
    Add {
        id: QueueId,
        queue: Box<Queue>,
    },
    Kick(QueueId),
    Notified {
        id: QueueId,
        ago: u64,
    },
    Quiesce {
        id: QueueId,
        then: Callback,
    },
    Resume(QueueId),
    Retry(QueueId),
    Remove {
        id: QueueId,
        then: Callback,
    },
    Stop,
}

/// What a bell wants done; obeyed in order as soon as it returns.
pub struct Commands {
    list: VecDeque<Message>,
    ids: Arc<AtomicU64>,
}

impl Commands {
    pub(super) fn pop(&mut self) -> Option<Message> {
        self.list.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Serves a queue from now on, beginning with what is in it already.
    pub fn add(&mut self, queue: Queue) -> QueueId {
        let id = next_id(&self.ids);
        self.list.push_back(Message::Add {
            id,
            queue: Box::new(queue),
        });
        id
    }

    /// The driver has notified the queue.
    pub fn kick(&mut self, id: QueueId) {
        self.list.push_back(Message::Kick(id));
    }

    /// As [`Self::kick`], with how long ago the driver did so, in nanoseconds: requests are timed from there.
    pub fn notified(&mut self, id: QueueId, ago: u64) {
        self.list.push_back(Message::Notified { id, ago });
    }

    /// Takes nothing more from the queue; calls `then` when nothing of it is in flight and all is published.
    pub fn quiesce(&mut self, id: QueueId, then: Callback) {
        self.list.push_back(Message::Quiesce { id, then });
    }

    /// Goes on after [`Self::quiesce`].
    pub fn resume(&mut self, id: QueueId) {
        self.list.push_back(Message::Resume(id));
    }

    /// Tries requests again that failed and have stopped the queue.
    pub fn retry(&mut self, id: QueueId) {
        self.list.push_back(Message::Retry(id));
    }

    /// As [`Self::quiesce`], then drops the queue before it calls `then`. For a queue that is gone already, `then` is
    /// called at once.
    pub fn remove(&mut self, id: QueueId, then: Callback) {
        self.list.push_back(Message::Remove { id, then });
    }
}

/// Talks to a reactor from any thread. Messages to one that has ended vanish.
#[derive(Clone)]
pub struct ReactorHandle {
    messages: Sender<Message>,
    event: Arc<File>,
    ids: Arc<AtomicU64>,
}

impl ReactorHandle {
    fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            // A full counter means that it is about to wake anyway.
            let _ = (&*self.event).write(&1_u64.to_ne_bytes());
        }
    }

    /// Lets the thread go round once, so that bells are looked at though nobody rang.
    pub fn wake(&self) {
        let _ = (&*self.event).write(&1_u64.to_ne_bytes());
    }

    /// Listens to a peer. `fd` is read, `width` bytes at a time, whenever it is readable; it is made blocking.
    pub fn add_bell(&self, fd: OwnedFd, width: ReadWidth, bell: Box<dyn Bell>) {
        self.send(Message::Bell { fd, width, bell });
    }

    /// As [`Commands::add`].
    pub fn add(&self, queue: Queue) -> QueueId {
        let id = next_id(&self.ids);
        self.send(Message::Add {
            id,
            queue: Box::new(queue),
        });
        id
    }

    /// As [`Commands::kick`].
    pub fn kick(&self, id: QueueId) {
        self.send(Message::Kick(id));
    }

    /// As [`Commands::quiesce`].
    pub fn quiesce(&self, id: QueueId, then: Callback) {
        self.send(Message::Quiesce { id, then });
    }

    /// As [`Commands::resume`].
    pub fn resume(&self, id: QueueId) {
        self.send(Message::Resume(id));
    }

    /// As [`Commands::retry`].
    pub fn retry(&self, id: QueueId) {
        self.send(Message::Retry(id));
    }

    /// As [`Commands::remove`].
    pub fn remove(&self, id: QueueId, then: Callback) {
        self.send(Message::Remove { id, then });
    }

    /// Quiesces all queues, then ends the reactor.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }
}

/// The reactor's end.
pub(super) struct Mailbox {
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
        Ok((
            Self {
                messages: receiver,
                event,
                ids,
            },
            handle,
        ))
    }

    /// Readable when there may be messages.
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// An empty list of commands with the same numbering.
    pub fn commands(&self) -> Commands {
        Commands {
            list: VecDeque::new(),
            ids: self.ids.clone(),
        }
    }

    /// Moves all messages to `commands`.
    pub fn take(&self, commands: &mut Commands) {
        commands.list.extend(self.messages.try_iter());
    }
}

fn next_id(ids: &AtomicU64) -> QueueId {
    QueueId(ids.fetch_add(1, Ordering::Relaxed))
}
