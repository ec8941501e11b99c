//! From a zone's ring to its queues: what the reactor's thread does for EL2's events.
//!
//! [`Io`] is the control threads' side: zones come and go through it. [`bell`] is the reactor's side: it takes the
//! entries off the rings. Both meet in the [`Table`]. [`device`] knows which queues of a device are served and what
//! a change of its latched state asks for.

pub mod bell;
pub mod device;
mod drain;
mod first;
mod place;
pub mod report;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use ringblk::Disk;
use ringvirtio::{Commands, QueueId, RateLimits, Reactor, ReactorHandle, ReactorOptions};
use ringvisor::abi::{MAX_ZONES, shared};
use ringvisor::ring::Consumer;

use crate::console::Console;
use crate::hv::{Hypervisor, Refusal};
pub use bell::BellCounters;
use bell::{Interrupt, Rings};
pub use device::{DeviceIo, QueueSnapshots};
pub use report::QueueReport;

/// Called on the reactor's thread when a zone's state has changed; must not block.
pub type ZoneEvent = Box<dyn Fn() + Send>;

/// What the reactor knows of a zone.
pub struct ZoneIo {
    /// Its number.
    pub number: u8,
    /// Reads its ring.
    consumer: Consumer,
    /// Its devices.
    devices: Vec<DeviceIo>,
    /// Where its output goes.
    console: Arc<Console>,
    /// Tells whoever looks after the zone.
    changed: ZoneEvent,
    /// The ring was taken over: everything counts as changed.
    refresh: bool,
    /// Its queues are being taken away; nothing is added any more.
    closing: bool,
}

/// The zones there are, in no order: the reactor goes through them several times a round. It takes the lock each time, and
/// control threads take it briefly; the command slot's lock and consoles' locks are taken inside.
pub(crate) type Table = Mutex<Vec<ZoneIo>>;

pub(crate) fn lock(table: &Table) -> MutexGuard<'_, Vec<ZoneIo>> {
    table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The reactor as control threads see it.
pub struct Io {
    hv: Arc<dyn Hypervisor>,
    reactor: ReactorHandle,
    table: Arc<Table>,
    counters: Arc<BellCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Io {
    /// Starts the reactor on a thread of its own. The bell is not listened to before [`Self::listen`].
    ///
    /// # Errors
    /// No descriptors or threads are left.
    pub fn start(hv: Arc<dyn Hypervisor>, options: ReactorOptions) -> std::io::Result<Arc<Self>> {
        let (reactor, handle) = Reactor::new(options)?;
        let thread = std::thread::Builder::new()
            .name("reactor".into())
            .spawn(move || {
                if let Err(error) = reactor.run() {
                    // Without it no guest's disk works: end, so that a supervisor starts a new daemon.
                    tracing::error!(%error, "the reactor cannot sleep any more");
                    std::process::exit(70);
                }
            })?;
        let table = Arc::new(Mutex::new(Vec::with_capacity(MAX_ZONES)));
        Ok(Arc::new(Self {
            hv,
            reactor: handle,
            table,
            counters: Arc::default(),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Listens to the bell from now on. Zones that were taken over are added before.
    pub fn listen(&self, interrupt: Interrupt) {
        let Interrupt { fd, width, cpu } = interrupt;
        let rings = Rings::new(self.hv.clone(), self.table.clone(), self.counters.clone(), cpu);
        self.reactor.add_event_source(fd, width, Box::new(rings));
    }

    /// Serves a zone whose ring nobody has used yet, or with `takeover` one that an earlier daemon served.
    ///
    /// # Errors
    /// EL2 does not know the zone.
    pub fn add_zone(
        &self,
        number: u8,
        console: Arc<Console>,
        devices: Vec<DeviceIo>,
        changed: ZoneEvent,
        takeover: bool,
    ) -> Result<(), Refusal> {
        let hv: &dyn Hypervisor = &*self.hv;
        let head = hv.ring_head(number)?;
        let Some(window) = hv.shared().window(number) else {
            return Ok(());
        };
        let consumer = Consumer::attach(&window.ring(), head);
        let mut zone = ZoneIo {
            number,
            consumer,
            devices,
            console,
            changed,
            refresh: takeover,
            closing: false,
        };
        // The reactor may be asleep already: it is told of what comes from now on. Nothing is in a new ring.
        let _ = zone.consumer.prepare_to_sleep(&window.ring());
        let mut table = lock(&self.table);
        // At most one of a number.
        table.retain(|zone| zone.number != number);
        table.push(zone);
        drop(table);
        if takeover {
            // Nobody rings for what was there before.
            self.reactor.wake();
        }
        Ok(())
    }

    /// Takes all queues of the zone away and waits until nothing of them is in flight: from then on this daemon does
    /// not touch the zone's memory. [`Self::reopen`] lets queues be set up again.
    pub fn quiesce(&self, number: u8) {
        // All senders are gone when all queues are. Callbacks of a reactor that has ended are dropped as well.
        let (sender, receiver) = channel::<()>();
        self.with(number, |zone| {
            zone.closing = true;
            for device in &mut zone.devices {
                let sender = sender.clone();
                device.release(&mut self.reactor.clone(), Box::new(move || drop(sender)));
            }
        });
        drop(sender);
        let _ = receiver.recv();
    }

    /// Exchanges a device's image under its queues: what is in flight ends on the old one, what is held back goes on
    /// with the new one. The guest is shown the new capacity.
    ///
    /// # Errors
    /// EL2 refused to show it.
    pub fn exchange_disk(&self, number: u8, slot: u8, disk: Arc<Disk>) -> Result<(), Refusal> {
        match self.exchange_disk_if(number, slot, disk, || Ok::<(), std::convert::Infallible>(())) {
            Ok(shown) => shown,
        }
    }

    /// As [`Self::exchange_disk`], if `commit`, called while nothing is in flight, succeeds. Else the device goes on with what
    /// it has.
    ///
    /// # Errors
    /// What `commit` says; inside, EL2's refusal to show the new capacity.
    pub fn exchange_disk_if<E>(
        &self,
        number: u8,
        slot: u8,
        disk: Arc<Disk>,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), Refusal>, E> {
        self.hold(number, slot);
        let commited = commit();
        if let Err(error) = commited {
            let _ = self.go_on(number, slot, DeviceIo::go_on);
            return Err(error);
        }
        let shown = self.go_on(number, slot, |device| device.exchange(disk));
        Ok(shown.map_or(Ok(()), |(_, shown)| shown))
    }

    /// Calls `act` while nothing is in flight on a device, then shows the guest the image's capacity. `None`: there is
    /// no such device; else what `act` gave, and whether EL2 took the capacity.
    pub fn while_held<T>(
        &self,
        number: u8,
        slot: u8,
        act: impl FnOnce(&Disk) -> T,
    ) -> Option<(T, Result<(), Refusal>)> {
        self.hold(number, slot);
        let result = act(&*self.disk(number, slot)?);
        let (_, shown) = self.go_on(number, slot, DeviceIo::go_on)?;
        Some((result, shown))
    }

    /// Waits until nothing is in flight on a device; nothing more is taken from its queues.
    fn hold(&self, number: u8, slot: u8) {
        let (sender, receiver) = channel::<()>();
        self.with_device(number, slot, |device, _| {
            device.hold(&mut self.reactor.clone(), Box::new(move || drop(sender)));
        });
        let _ = receiver.recv();
    }

    /// Ends [`Self::hold`].
    fn go_on<T>(
        &self,
        number: u8,
        slot: u8,
        act: impl FnOnce(&mut DeviceIo) -> T,
    ) -> Option<(T, Result<(), Refusal>)> {
        self.with_device(number, slot, |device, closing| {
            let result = act(device);
            let shown = device.announce_capacity(&*self.hv);
            if !closing {
                device.refresh(&self.hv, &mut self.reactor.clone());
            }
            (result, shown)
        })
    }

    /// Shows the guest what a device's image can hold now.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn announce_capacity(&self, number: u8, slot: u8) -> Result<(), Refusal> {
        self.with_device(number, slot, |device, _| device.announce_capacity(&*self.hv))
            .unwrap_or(Ok(()))
    }

    /// How fast a disk may be from now on.
    pub fn set_limits(&self, number: u8, slot: u8, limits: RateLimits) {
        self.with_device(number, slot, |device, _| {
            device.disk().control().throttle.set_limits(limits);
            device.ids().for_each(|id| self.reactor.schedule(id));
        });
    }

    /// Tries again what the disk has stopped at.
    pub fn retry(&self, number: u8, slot: u8) {
        self.with_device(number, slot, |device, _| {
            device.ids().for_each(|id| self.reactor.retry(id));
        });
    }

    /// A device's image.
    #[must_use]
    pub fn disk(&self, number: u8, slot: u8) -> Option<Arc<Disk>> {
        self.with_device(number, slot, |device, _| device.disk().clone())
    }

    /// The zone begins anew: forgets what [`Self::quiesce`] stopped. `starts` counts the zone's starts.
    pub fn reopen(&self, number: u8, starts: u32) {
        self.with(number, |zone| {
            zone.closing = false;
            zone.devices
                .iter_mut()
                .for_each(|device| device.begin_anew(starts));
        });
    }

    /// Moves what is left in the zone's console ring and forgets the zone.
    pub fn remove_zone(&self, number: u8) {
        let mut table = lock(&self.table);
        let place = table.iter().position(|zone| zone.number == number);
        let zone = place.map(|place| table.swap_remove(place));
        drop(table);
        if let (Some(zone), Some(window)) = (zone, self.hv.shared().window(number)) {
            zone.console.pump(window);
        }
    }

    /// What the reactor has taken off the rings.
    #[must_use]
    pub fn bell_counters(&self) -> &BellCounters {
        &self.counters
    }

    /// Everything that is counted of the zone's queues.
    #[must_use]
    pub fn snapshots(&self, number: u8) -> Vec<QueueSnapshots> {
        let snapshots = self.with(number, |zone| {
            zone.devices.iter().flat_map(DeviceIo::snapshots).collect()
        });
        snapshots.unwrap_or_default()
    }

    /// Counters of the zone's queues.
    #[must_use]
    pub fn report(&self, number: u8) -> Vec<QueueReport> {
        let reports = self.with(number, |zone| {
            zone.devices.iter().flat_map(DeviceIo::report).collect()
        });
        reports.unwrap_or_default()
    }

    /// Ends the reactor: all queues come to rest.
    pub fn stop(&self) {
        self.reactor.stop();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Calls `act` on a device; `true`: its zone is being closed.
    fn with_device<T>(&self, number: u8, slot: u8, act: impl FnOnce(&mut DeviceIo, bool) -> T) -> Option<T> {
        self.with(number, |zone| {
            let closing = zone.closing;
            zone.devices
                .iter_mut()
                .find(|device| device.slot() == slot)
                .map(|device| act(device, closing))
        })?
    }

    fn with<T>(&self, number: u8, act: impl FnOnce(&mut ZoneIo) -> T) -> Option<T> {
        lock(&self.table)
            .iter_mut()
            .find(|zone| zone.number == number)
            .map(act)
    }
}

/// Where queues are added and taken away: on the reactor's thread its own list of commands, elsewhere its mailbox.
pub trait Queues {
    /// See [`Commands::add`].
    fn add(&mut self, queue: Box<dyn ringvirtio::QueueHandler>) -> QueueId;
    /// See [`Commands::schedule`].
    fn kick(&mut self, id: QueueId);
    /// See [`Commands::remove`].
    fn remove(&mut self, id: QueueId, then: ringvirtio::Callback);
}

impl Queues for Commands {
    fn add(&mut self, queue: Box<dyn ringvirtio::QueueHandler>) -> QueueId {
        Commands::add(self, queue)
    }

    fn kick(&mut self, id: QueueId) {
        Commands::schedule(self, id);
    }

    fn remove(&mut self, id: QueueId, then: ringvirtio::Callback) {
        Commands::remove(self, id, then);
    }
}

impl Queues for ReactorHandle {
    fn add(&mut self, queue: Box<dyn ringvirtio::QueueHandler>) -> QueueId {
        ReactorHandle::add(self, queue)
    }

    fn kick(&mut self, id: QueueId) {
        ReactorHandle::schedule(self, id);
    }

    fn remove(&mut self, id: QueueId, then: ringvirtio::Callback) {
        ReactorHandle::remove(self, id, then);
    }
}

/// Offset of a zone's armed flag in the shared page.
pub(crate) fn armed_offset(number: u8) -> Option<usize> {
    Some(shared::zone_window(number)? + shared::ARMED)
}
