//! A reactor's [`Commands`], and [`EventSource`], which issues them on the reactor's own thread.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::id::QueueId;
use crate::handler::QueueHandler;
use crate::waiter::ReadWidth;

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
    AddEventSource {
        fd: OwnedFd,
        width: ReadWidth,
        source: Box<dyn EventSource>,
    },
    Add {
        id: QueueId,
        handler: Box<dyn QueueHandler>,
    },
    Schedule(QueueId),
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

/// What an event source wants done; carried out in order as soon as it returns.
pub struct Commands {
    list: VecDeque<Message>,
    ids: Arc<AtomicU64>,
}

impl Commands {
    pub(super) fn new(ids: Arc<AtomicU64>) -> Self {
        Self {
            list: VecDeque::new(),
            ids,
        }
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        self.list.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn extend(&mut self, messages: impl Iterator<Item = Message>) {
        self.list.extend(messages);
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
