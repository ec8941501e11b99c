//! [`Remotes`]: the engines of remote disks, one for each such disk in a guest's memory, started for its
//! first queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ringvirtio::memory::GuestRam;
use ringvirtio::{Completion, ReadWidth, Waiter};

use crate::disk::Disk;
use crate::remote::{RemoteDisk, RemoteEngine};

struct Entry {
    disk: Arc<Disk>,
    ram: Arc<GuestRam>,
    engine: Box<dyn RemoteEngine>,
    users: usize,
    /// Its number among the watched descriptors.
    watch: usize,
    /// Open as long as it is watched.
    event: Arc<File>,
}

/// A reactor's engines of remote disks.
#[derive(Default)]
pub struct Remotes(Vec<Entry>);

impl Remotes {
    /// Starts an engine and watches its event, or counts one queue more.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn attach(
        &mut self,
        remote: &dyn RemoteDisk,
        disk: &Arc<Disk>,
        ram: &Arc<GuestRam>,
        waiter: &mut Waiter,
    ) -> io::Result<()> {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.is(disk, ram)) {
            entry.users += 1;
            return Ok(());
        }
        let engine = remote.start(ram)?;
        let event = engine.event();
        let watch = waiter.watch(event.as_raw_fd(), ReadWidth::Foreign)?;
        self.0.push(Entry {
            disk: disk.clone(),
            ram: ram.clone(),
            engine,
            users: 1,
            watch,
            event,
        });
        Ok(())
    }

    /// Counts one queue less; the engine is dropped with the last.
    pub fn detach(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>, waiter: &mut Waiter) {
        let Some(index) = self.0.iter().position(|entry| entry.is(disk, ram)) else {
            return;
        };
        if let Some(entry) = self.0.get_mut(index) {
            entry.users -= 1;
            if entry.users == 0 {
                let entry = self.0.swap_remove(index);
                waiter.unwatch(entry.watch, entry.event.as_raw_fd());
            }
        }
    }

    /// Returns the engine of a queue.
    pub fn get(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> Option<&mut dyn RemoteEngine> {
        let entry = self.0.iter_mut().find(|entry| entry.is(disk, ram))?;
        Some(&mut *entry.engine)
    }

    pub fn submit(&mut self) {
        self.0.iter_mut().for_each(|entry| entry.engine.submit());
    }

    pub fn reap(&mut self, done: &mut Vec<Completion>) {
        self.0.iter_mut().for_each(|entry| entry.engine.reap(done));
    }

    /// Returns whether one has completions.
    pub fn have_completions(&self) -> bool {
        self.0.iter().any(|entry| entry.engine.has_completions())
    }

    /// Arms all, even if one has completions already. Returns whether one has.
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
