//! [`Ring`]: one virtqueue of a front end: its set-up, and its thread while it runs.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use ringvirtio::inflight::InflightLog;
use ringvirtio::{
    Commands, EventSource, InflightArea, QueueHandler, QueueId, QueueSetup, Reactor, ReactorHandle,
    ReactorOptions, ReadWidth, RingAddresses, SetupError,
};

use super::device::Served;
use super::inflight::{self, Region};
use super::memory::FrontMemory;

/// Epoch of all logs: after a reset the front end passes a new region, or none.
const EPOCH: u64 = 1;

/// An event descriptor that can be replaced while the queue runs.
#[derive(Clone, Default)]
pub struct Signal(Arc<Mutex<Option<File>>>);

impl Signal {
    /// Replaces the descriptor.
    pub fn set(&self, file: Option<File>) {
        *self.0.lock() = file;
    }

    /// Signals the descriptor, if there is one.
    pub fn raise(&self) {
        if let Some(mut file) = self.0.lock().as_ref() {
            // A full counter is a signal already.
            let _ = file.write(&1_u64.to_ne_bytes());
        }
    }
}

/// What a queue needs from its session.
pub struct RingContext<'a, D> {
    pub device: &'a Arc<D>,
    pub memory: &'a FrontMemory,
    pub region: Option<&'a Region>,
    pub features: u64,
    pub reactor: ReactorOptions,
}

struct Running {
    handle: ReactorHandle,
    id: QueueId,
    thread: JoinHandle<()>,
    area: InflightArea,
}

/// One queue.
#[derive(Default)]
pub struct Ring {
    pub size: u16,
    /// Of descriptor table, available and used ring in the front end's address space.
    pub addresses: Option<[u64; 3]>,
    /// Index of the next available entry; set when the queue stops.
    pub base: u16,
    pub kick: Option<File>,
    pub call: Signal,
    pub error: Signal,
    pub enabled: bool,
    running: Option<Running>,
}

impl Ring {
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Schedules the queue without a kick.
    pub fn schedule(&self) {
        if let Some(running) = &self.running {
            running.handle.schedule(running.id);
        }
    }

    /// Starts the queue, if its set-up is complete.
    ///
    /// # Errors
    /// The set-up, the region or the log is invalid, or no threads or descriptors are left.
    pub fn start<D: Served>(
        &mut self,
        index: usize,
        context: &RingContext<'_, D>,
    ) -> Result<(), Box<dyn Error>> {
        let (Some([desc, avail, used]), Some(kick), true) = (self.addresses, &self.kick, self.enabled) else {
            return Ok(());
        };
        if self.is_running() || self.size == 0 {
            return Ok(());
        }
        let at = |user| {
            let found = context.memory.guest_address(user);
            found.ok_or_else(|| {
                format!("ring at {user:#x} of the front end's addresses is not in the memory that it shares")
            })
        };
        let ring = RingAddresses {
            size: self.size,
            desc: at(desc)?,
            avail: at(avail)?,
            used: at(used)?,
        };
        let area = match context.region {
            Some(region) => region.area(index, self.size)?,
            None => inflight::private(self.size)?,
        };
        let (_, past) = InflightLog::open(&area, self.size, EPOCH)?;
        if past.restart.is_empty() && past.done.is_empty() && past.republish.is_none() {
            // Nothing is in flight. The front end knows where to begin, unless it has lost the last server:
            // then the log does. If the used index equals the front end's base, the ring has been set up
            // anew.
            let used = context.memory.ram().slots::<AtomicU16>(ring.used, 2);
            let used = used
                .ok()
                .and_then(|used| used.get(1).map(|idx| idx.load(Ordering::Relaxed)));
            if past.fresh || used.map(u16::from_le) == Some(self.base) {
                InflightLog::begin_at(&area, self.size, EPOCH, self.base)?;
            }
        } else {
            let (restart, done) = (past.restart.len(), past.done.len());
            tracing::info!(queue = index, restart, done, "resuming the requests in flight");
        }
        let queue = self.queue(index, ring, area.clone(), context)?;
        let kick = OwnedFd::from(kick.try_clone()?);
        let (reactor, handle) = Reactor::new(context.reactor)?;
        let thread = std::thread::Builder::new()
            .name(format!("queue {index}"))
            .spawn(move || reactor.run_or_exit())?;
        let id = handle.add(queue);
        handle.add_event_source(kick, ReadWidth::Foreign, Box::new(Kick { id, kicked: false }));
        self.running = Some(Running {
            handle,
            id,
            thread,
            area,
        });
        Ok(())
    }

    fn queue<D: Served>(
        &self,
        index: usize,
        ring: RingAddresses,
        inflight: InflightArea,
        context: &RingContext<'_, D>,
    ) -> Result<Box<dyn QueueHandler>, SetupError> {
        let (call, error) = (self.call.clone(), self.error.clone());
        let setup = QueueSetup {
            ram: context.memory.ram().clone(),
            ring,
            features: context.features,
            inflight,
            epoch: EPOCH,
            notify_driver: Box::new(move || call.raise()),
            needs_reset: Box::new(move |fault| {
                tracing::warn!("queue {index}: driver violated the virtio specification: {fault}");
                error.raise();
            }),
        };
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        context.device.queue(number, setup)
    }

    /// Stops the queue: afterwards nothing is in flight, and everything is published. Records where to
    /// resume.
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        running.handle.stop();
        // It ends the process if it fails.
        let _ = running.thread.join();
        match InflightLog::open(&running.area, self.size, EPOCH) {
            Ok((_, past)) => self.base = past.next_avail,
            Err(error) => tracing::error!(%error, "a queue's in-flight log was damaged"),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The front end's event descriptor.
struct Kick {
    id: QueueId,
    kicked: bool,
}

impl EventSource for Kick {
    fn on_wakeup(&mut self) {
        self.kicked = true;
    }

    fn collect(&mut self, commands: &mut Commands) {
        if std::mem::take(&mut self.kicked) {
            commands.schedule(self.id);
        }
    }
}
