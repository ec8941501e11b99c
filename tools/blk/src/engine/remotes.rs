//! The engines of disks in other processes: one for each such disk in a guest's memory, made for its first queue.

use std::fs::File;
use std::sync::Arc;

use crate::disk::Disk;
use crate::engine::IoDone;
use crate::memory::GuestRam;
use crate::remote::RemoteEngine;

struct Entry {
    disk: Arc<Disk>,
    ram: Arc<GuestRam>,
    engine: Box<dyn RemoteEngine>,
    users: usize,
    /// Its number among the watched descriptors.
    watch: usize,
    /// Open as long as it is watched.
    _event: Arc<File>,
}

/// All of a reactor's.
#[derive(Default)]
pub(super) struct Remotes(Vec<Entry>);

impl Remotes {
    /// Another queue uses the disk; `false`: there is no engine yet.
    pub fn attach(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> bool {
        match self.0.iter_mut().find(|entry| entry.is(disk, ram)) {
            Some(entry) => {
                entry.users += 1;
                true
            }
            None => false,
        }
    }

    /// An engine for the first queue.
    pub fn add(
        &mut self,
        disk: &Arc<Disk>,
        ram: &Arc<GuestRam>,
        engine: Box<dyn RemoteEngine>,
        watch: usize,
    ) {
        self.0.push(Entry {
            disk: disk.clone(),
            ram: ram.clone(),
            _event: engine.event(),
            engine,
            users: 1,
            watch,
        });
    }

    /// One queue less. Gives the watch of an engine that has gone with the last.
    pub fn detach(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> Option<(usize, Arc<File>)> {
        let index = self.0.iter().position(|entry| entry.is(disk, ram))?;
        let entry = self.0.get_mut(index)?;
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        let gone = self.0.swap_remove(index);
        Some((gone.watch, gone._event))
    }

    /// The engine of a queue.
    pub fn get(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> Option<&mut dyn RemoteEngine> {
        let entry = self.0.iter_mut().find(|entry| entry.is(disk, ram))?;
        Some(&mut *entry.engine)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn submit(&mut self) {
        self.0.iter_mut().for_each(|entry| entry.engine.submit());
    }

    pub fn reap(&mut self, done: &mut Vec<IoDone>) {
        self.0.iter_mut().for_each(|entry| entry.engine.reap(done));
    }

    /// Whether one has something.
    pub fn look(&self) -> bool {
        self.0.iter().any(|entry| entry.engine.has_completions())
    }

    /// All are asked to wake the thread, even if one has something already.
    pub fn arm(&mut self) -> bool {
        self.0
            .iter_mut()
            .fold(false, |more, entry| entry.engine.arm() | more)
    }
}

impl Entry {
    fn is(&self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> bool {
        Arc::ptr_eq(&self.disk, disk) && Arc::ptr_eq(&self.ram, ram)
    }
}
