//! [`Queues`]: where a device's queues are added and removed, on the reactor's thread or from another.

use ringblk::{Callback, Commands, QueueId, ReactorHandle};

use crate::device::QueueHandler;

/// Where queues are added and removed: on the reactor's thread its own list of commands, elsewhere its mailbox.
pub trait Queues {
    /// See [`Commands::add`].
    fn add(&mut self, queue: QueueHandler) -> QueueId;
    /// See [`Commands::kick`].
    fn schedule(&mut self, id: QueueId);
    /// See [`Commands::remove`].
    fn remove(&mut self, id: QueueId, then: Callback);
}

impl Queues for Commands {
    fn add(&mut self, queue: QueueHandler) -> QueueId {
        Commands::add(self, queue)
    }

    fn schedule(&mut self, id: QueueId) {
        Commands::kick(self, id);
    }

    fn remove(&mut self, id: QueueId, then: Callback) {
        Commands::remove(self, id, then);
    }
}

impl Queues for ReactorHandle {
    fn add(&mut self, queue: QueueHandler) -> QueueId {
        ReactorHandle::add(self, queue)
    }

    fn schedule(&mut self, id: QueueId) {
        ReactorHandle::kick(self, id);
    }

    fn remove(&mut self, id: QueueId, then: Callback) {
        ReactorHandle::remove(self, id, then);
    }
}
