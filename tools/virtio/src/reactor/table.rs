//! [`QueueTable`]: a reactor's queues, by slot and by id.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::commands::Callback;
use super::id::{IdHasher, QueueId};
use super::schedule::Slot;
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
    ids: HashMap<QueueId, Slot, BuildHasherDefault<IdHasher>>,
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    leaving: usize,
}

impl QueueTable {
    /// Adds a queue and returns its slot.
    pub fn insert(&mut self, entry: Entry) -> Slot {
        let slot = self.free.pop().unwrap_or(Slot(self.entries.len() as u32));
        self.ids.insert(entry.id, slot);
        match self.entries.get_mut(slot.0 as usize) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        slot
    }

    /// Removes a queue; its slot is used again.
    pub fn remove(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.entries.get_mut(slot.0 as usize)?.take()?;
        self.ids.remove(&entry.id);
        self.free.push(slot);
        self.leaving -= usize::from(entry.leaving);
        Some(entry)
    }

    /// Marks a queue as leaving, once.
    pub fn set_leaving(&mut self, slot: Slot) {
        if let Some(Some(entry)) = self.entries.get_mut(slot.0 as usize)
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

    /// Returns the slot of a queue.
    #[inline]
    pub fn slot(&self, id: QueueId) -> Option<Slot> {
        self.ids.get(&id).copied()
    }

    /// Returns the queue in a slot.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.0 as usize)?.as_ref()
    }

    /// Returns the queue in a slot, to be changed.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.0 as usize)?.as_mut()
    }

    /// Returns all queues with their slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Entry)> {
        (0..)
            .map(Slot)
            .zip(&mut self.entries)
            .filter_map(|(slot, entry)| Some((slot, entry.as_mut()?)))
    }

    /// Returns how many queues there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}
