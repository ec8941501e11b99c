//! [`BlockBackend`]: a reactor's engines for disks, and which of them a disk's operations go to.
//! [`Remotes`]: the engines of remote disks, one for each such disk in a guest's memory, started for its
//! first queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ringvirtio::memory::GuestRam;
use ringvirtio::{Completion, ReactorBackend, ReadWidth, Waiter};

use crate::disk::{Disk, EngineKind};
use crate::engine::Engine;
use crate::engine::threads::Threads;
use crate::engine::uring::{RingEngine, RingState};
use crate::remote::{RemoteDisk, RemoteEngine};

/// The engines of a reactor.
#[derive(Default)]
pub struct BlockBackend {
    ring: RingState,
    /// For disks that ask for threads, and for all without io_uring.
    pool: Option<Threads>,
    remotes: Remotes,
    #[cfg(any(test, feature = "fakes"))]
    fake: Option<Box<dyn Engine>>,
}

/// The engine that a disk's operations go to, for one call.
pub enum DiskEngine<'a> {
    /// The ring of the reactor.
    Ring(RingEngine<&'a mut ringvirtio::waiter::uring::Uring, &'a mut RingState>),
    /// The pool of threads.
    Threads(&'a mut Threads),
    /// The engine of a remote disk.
    Remote(&'a mut dyn RemoteEngine),
    /// That of [`BlockBackend::set_engine`].
    #[cfg(any(test, feature = "fakes"))]
    Fake(&'a mut dyn Engine),
}

impl DiskEngine<'_> {
    /// Returns it as any engine.
    pub fn get(&mut self) -> &mut dyn Engine {
        match self {
            Self::Ring(engine) => engine,
            Self::Threads(pool) => *pool,
            Self::Remote(engine) => *engine,
            #[cfg(any(test, feature = "fakes"))]
            Self::Fake(engine) => *engine,
        }
    }
}

impl BlockBackend {
    /// For simulations: all operations go to this engine.
    #[cfg(any(test, feature = "fakes"))]
    pub fn set_engine(&mut self, engine: Box<dyn Engine>) {
        self.fake = Some(engine);
    }

    /// Returns the engine that a disk asks for, or the one there is.
    pub fn engine<'a>(
        &'a mut self,
        waiter: &'a mut Waiter,
        disk: &Arc<Disk>,
        ram: &Arc<GuestRam>,
    ) -> Option<DiskEngine<'a>> {
        #[cfg(any(test, feature = "fakes"))]
        if let Some(engine) = &mut self.fake {
            return Some(DiskEngine::Fake(&mut **engine));
        }
        if disk.remote().is_some() {
            return self.remotes.get(disk, ram).map(DiskEngine::Remote);
        }
        let state = &mut self.ring;
        match (waiter, &mut self.pool, disk.config().engine) {
            (Waiter::Uring(ring), _, EngineKind::IoUring) | (Waiter::Uring(ring), None, _) => {
                Some(DiskEngine::Ring(RingEngine { ring, state }))
            }
            (_, Some(pool), _) => Some(DiskEngine::Threads(pool)),
            (Waiter::Epoll(_), None, _) => None,
        }
    }

    /// Starts what a queue of this disk needs.
    ///
    /// # Errors
    /// No threads or descriptors are left.
    pub fn attach(&mut self, waiter: &mut Waiter, disk: &Arc<Disk>, ram: &Arc<GuestRam>) -> io::Result<()> {
        if let Some(remote) = disk.remote() {
            return self.remotes.attach(&**remote, disk, ram, waiter);
        }
        let threads = disk.config().engine == EngineKind::Threads || waiter.ring().is_none();
        if threads && self.pool.is_none() {
            match self.start_pool(waiter) {
                Err(error) if waiter.ring().is_none() => return Err(error),
                // A ring serves these as well.
                Err(error) => tracing::error!(%error, "cannot start the thread pool"),
                Ok(()) => {}
            }
        }
        if let Some(DiskEngine::Ring(mut engine)) = self.engine(waiter, disk, ram) {
            engine.attach(disk.backing(), ram);
        }
        Ok(())
    }

    fn start_pool(&mut self, waiter: &mut Waiter) -> io::Result<()> {
        let pool = Threads::new()?;
        waiter.watch(pool.event().as_raw_fd(), ReadWidth::Eight)?;
        self.pool = Some(pool);
        Ok(())
    }

    /// Ends what [`Self::attach`] began, with nothing of the queue in flight.
    pub fn detach(&mut self, waiter: &mut Waiter, disk: &Arc<Disk>, ram: &Arc<GuestRam>) {
        if disk.remote().is_some() {
            self.remotes.detach(disk, ram, waiter);
        } else if let Some(DiskEngine::Ring(mut engine)) = self.engine(waiter, disk, ram) {
            engine.detach(disk.backing(), ram);
        }
    }

    /// Abandons the operations of a queue that leaves: those of a remote disk whose server is down, and
    /// copies that are not complete. `in_flight`: all of the queue's. Returns how many were abandoned.
    pub fn abandon(&mut self, disk: &Arc<Disk>, ram: &Arc<GuestRam>, tag_base: u64, in_flight: u16) -> u16 {
        match self.remotes.get(disk, ram) {
            Some(engine) => in_flight * u16::from(engine.abandon(tag_base)),
            None => self.ring.abandon(tag_base),
        }
    }
}

impl ReactorBackend for BlockBackend {
    fn submit(&mut self, waiter: &mut Waiter) {
        if let Waiter::Uring(ring) = waiter {
            self.ring.submit(ring);
        }
        if let Some(pool) = &mut self.pool {
            pool.submit();
        }
        self.remotes.submit();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.ring.reap(done);
        if let Some(pool) = &mut self.pool {
            pool.reap(done);
        }
        self.remotes.reap(done);
        #[cfg(any(test, feature = "fakes"))]
        if let Some(engine) = &mut self.fake {
            engine.reap(done);
        }
    }

    fn has_completions(&self) -> bool {
        self.ring.has_completions() || self.remotes.have_completions()
    }

    fn is_busy(&self) -> bool {
        self.ring.is_copying()
    }

    fn arm(&mut self) -> bool {
        self.remotes.arm() | self.ring.has_completions()
    }
}

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

    /// As [`ReactorBackend::submit`].
    pub fn submit(&mut self) {
        self.0.iter_mut().for_each(|entry| entry.engine.submit());
    }

    /// As [`ReactorBackend::reap`].
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
