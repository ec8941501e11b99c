//! [`ReactorHandle`]: commands to a reactor from other threads, by way of a [`Mailbox`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::commands::{Callback, Commands, EventSource, Message, next_id};
use super::id::QueueId;
use crate::handler::QueueHandler;
use crate::waiter::{ReadWidth, eventfd};

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
        commands.extend(self.messages.try_iter());
    }
}
