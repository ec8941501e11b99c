//! [`QueueTable`]: a reactor's queues, by index and by ID.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::commands::{Callback, IdHasher, QueueId};
use super::schedule::QueueIndex;
use crate::handler::QueueHandler;

/// A queue of the reactor.
pub struct Entry {
    pub id: QueueId,
    pub handler: Box<dyn QueueHandler>,
    /// Called when nothing is in flight any more.
    pub quiesced: Vec<Callback>,
    /// Removed when nothing is in flight any more.
    pub leaving: bool,
    /// The handler could be attached: the queue is serviced.
    pub attached: bool,
}

/// The queues.
#[derive(Default)]
pub struct QueueTable {
    ids: HashMap<QueueId, QueueIndex, BuildHasherDefault<IdHasher>>,
    entries: Vec<Option<Entry>>,
    free: Vec<QueueIndex>,
    leaving: usize,
}

impl QueueTable {
    /// Adds a queue and returns its index.
    pub fn insert(&mut self, entry: Entry) -> QueueIndex {
        let index = self.free.pop().unwrap_or(QueueIndex(self.entries.len() as u32));
        self.ids.insert(entry.id, index);
        match self.entries.get_mut(index.0 as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        index
    }

    /// Removes a queue; its index is used again.
    pub fn remove(&mut self, index: QueueIndex) -> Option<Entry> {
        let entry = self.entries.get_mut(index.0 as usize)?.take()?;
        self.ids.remove(&entry.id);
        self.free.push(index);
        self.leaving -= usize::from(entry.leaving);
        Some(entry)
    }

    /// Marks a queue as leaving, once.
    pub fn set_leaving(&mut self, index: QueueIndex) {
        if let Some(Some(entry)) = self.entries.get_mut(index.0 as usize)
            && !entry.leaving
        {
            entry.leaving = true;
            self.leaving += 1;
        }
    }

    /// Returns whether a queue is leaving.
    #[inline]
    pub fn has_leaving(&self) -> bool {
        self.leaving > 0
    }

    /// Returns the index of a queue.
    #[inline]
    pub fn index(&self, id: QueueId) -> Option<QueueIndex> {
        self.ids.get(&id).copied()
    }

    /// Returns the queue at an index.
    #[inline]
    pub fn get(&self, index: QueueIndex) -> Option<&Entry> {
        self.entries.get(index.0 as usize)?.as_ref()
    }

    /// Returns the queue at an index, to be changed.
    #[inline]
    pub fn get_mut(&mut self, index: QueueIndex) -> Option<&mut Entry> {
        self.entries.get_mut(index.0 as usize)?.as_mut()
    }

    /// Returns all queues with their indices.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (QueueIndex, &mut Entry)> {
        (0..)
            .map(QueueIndex)
            .zip(&mut self.entries)
            .filter_map(|(index, entry)| Some((index, entry.as_mut()?)))
    }

    /// Returns how many queues there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}
