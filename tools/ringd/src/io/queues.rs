//! [`Queues`]: where a device's queues are added and removed, on the reactor's thread or from another.

use ringvirtio::{Callback, Commands, QueueHandler, QueueId, ReactorHandle};

/// Where queues are added and removed: on the reactor's thread its own list of commands, elsewhere its
/// mailbox.
pub trait Queues {
    /// See [`Commands::add`].
    fn add(&mut self, queue: Box<dyn QueueHandler>) -> QueueId;
    /// See [`Commands::schedule`].
    fn schedule(&mut self, id: QueueId);
    /// See [`Commands::remove`].
    fn remove(&mut self, id: QueueId, then: Callback);
}

impl Queues for Commands {
    fn add(&mut self, queue: Box<dyn QueueHandler>) -> QueueId {
        Commands::add(self, queue)
    }

    fn schedule(&mut self, id: QueueId) {
        Commands::schedule(self, id);
    }

    fn remove(&mut self, id: QueueId, then: Callback) {
        Commands::remove(self, id, then);
    }
}

impl Queues for ReactorHandle {
    fn add(&mut self, queue: Box<dyn QueueHandler>) -> QueueId {
        ReactorHandle::add(self, queue)
    }

    fn schedule(&mut self, id: QueueId) {
        ReactorHandle::schedule(self, id);
    }

    fn remove(&mut self, id: QueueId, then: Callback) {
        ReactorHandle::remove(self, id, then);
    }
}
