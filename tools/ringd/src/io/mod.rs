//! The reactor: EL2's events, the zones' rings and the queues of their devices.
//!
//! [`Io`] is the control threads' side: zones come and go through it. [`rings`] is the reactor's side: it
//! takes the events off the rings. Both meet in the [`table`] of zones. [`served`] knows which queues of
//! a device are served and what a change of its latched state asks for; [`drain`] adds and removes them
//! and waits for those that leave, [`budget`] limits the events of each zone, [`affinity`] is the CPU to
//! run on, [`counters`] what came off the rings.

mod affinity;
mod budget;
pub mod counters;
mod drain;
mod rings;
pub mod served;
pub mod table;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use ringvirtio::{Reactor, ReactorHandle, ReactorOptions};
use ringvisor::ring::Consumer;

use crate::console::Console;
use crate::device::backend::{Device, QueueSnapshot};
use crate::hv::{Hypervisor, Interrupt, Refusal};
use budget::Budget;
use counters::RingCounters;
use rings::Rings;
use served::ServedDevice;
use table::{Table, Wakes, ZoneIo};

/// The reactor as control threads see it.
pub struct Io {
    hv: Arc<dyn Hypervisor>,
    reactor: ReactorHandle,
    table: Arc<Table>,
    /// What the reactor has taken off the rings.
    pub counters: Arc<RingCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Io {
    /// Makes a reactor and starts it ([`Self::run`]).
    ///
    /// # Errors
    /// No descriptors or threads are left.
    pub fn start(hv: Arc<dyn Hypervisor>, options: ReactorOptions) -> std::io::Result<Arc<Self>> {
        Self::run(hv, Reactor::new(options)?)
    }

    /// Starts the reactor on a thread of its own. It takes no interrupts before [`Self::listen`].
    ///
    /// # Errors
    /// No threads are left.
    pub fn run(
        hv: Arc<dyn Hypervisor>,
        (reactor, handle): (Reactor, ReactorHandle),
    ) -> std::io::Result<Arc<Self>> {
        let thread = std::thread::Builder::new()
            .name("reactor".into())
            .spawn(move || reactor.run_or_exit())?;
        let table = Arc::new(Table::default());
        Ok(Arc::new(Self {
            hv,
            reactor: handle,
            table,
            counters: Arc::default(),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Takes EL2's interrupts from now on. Zones that were taken over are added before.
    pub fn listen(&self, interrupt: Interrupt) {
        let Interrupt { fd, width, cpu } = interrupt;
        let rings = Rings::new(self.hv.clone(), self.table.clone(), self.counters.clone(), cpu);
        self.reactor.add_event_source(fd, width, Box::new(rings));
    }

    /// Serves a zone whose ring has not been used yet, or with `takeover` one that an earlier daemon served.
    ///
    /// # Errors
    /// EL2 does not know the zone.
    pub fn add_zone(
        &self,
        number: u8,
        console: Arc<Console>,
        devices: Vec<ServedDevice>,
        wakes: Wakes,
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
            wakes,
            refresh: takeover,
            closing: false,
            budget: Budget::default(),
        };
        // The reactor may be asleep already: EL2 raises the interrupt for what comes from now on. A new ring
        // is empty.
        let _ = zone.consumer.prepare_to_sleep(&window.ring());
        self.table.insert(zone);
        if takeover {
            // No interrupt comes for what was there before.
            self.reactor.wake();
        }
        Ok(())
    }

    /// Removes all queues of the zone and waits until nothing of them is in flight: from then on this daemon
    /// does not use the zone's memory. [`Self::reopen`] lets queues be set up again.
    pub fn quiesce(&self, number: u8) {
        // All senders are gone when all queues are. Callbacks of a reactor that has ended are dropped as
        // well.
        let (sender, receiver) = channel::<()>();
        self.with(number, |zone| {
            zone.closing = true;
            for device in &mut zone.devices {
                let sender = sender.clone();
                self.reactor
                    .command(|commands| device.remove_queues(commands, Box::new(move || drop(sender))));
            }
        });
        drop(sender);
        let _ = receiver.recv();
    }

    /// Replaces a device under its queues: what is in flight completes on the old one, what is outstanding is
    /// served by the new one. The guest is shown the new configuration space.
    ///
    /// # Errors
    /// EL2 refused to show it.
    pub fn exchange(&self, number: u8, slot: u8, device: Device) -> Result<(), Refusal> {
        match self.exchange_if(number, slot, device, || Ok::<(), Infallible>(())) {
            Ok(shown) => shown,
        }
    }

    /// As [`Self::exchange`], if `commit`, called while nothing is in flight, succeeds. Else the old device
    /// stays.
    ///
    /// # Errors
    /// The error of `commit`; inside, EL2's refusal to show the new configuration space.
    pub fn exchange_if<E>(
        &self,
        number: u8,
        slot: u8,
        device: Device,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), Refusal>, E> {
        self.quiesce_device(number, slot);
        if let Err(error) = commit() {
            let _ = self.unquiesce(number, slot, ServedDevice::unquiesce);
            return Err(error);
        }
        let shown = self.unquiesce(number, slot, |served| served.exchange(device));
        Ok(shown.map_or(Ok(()), |(_, shown)| shown))
    }

    /// Calls `act` while nothing is in flight on a device, then shows the guest its configuration space.
    /// Returns `None` if there is no such device; else the result of `act`, and whether EL2 showed the
    /// configuration space.
    pub fn while_quiesced<T>(
        &self,
        number: u8,
        slot: u8,
        act: impl FnOnce() -> T,
    ) -> Option<(T, Result<(), Refusal>)> {
        self.device(number, slot)?;
        self.quiesce_device(number, slot);
        let result = act();
        let (_, shown) = self.unquiesce(number, slot, ServedDevice::unquiesce)?;
        Some((result, shown))
    }

    /// Waits until nothing is in flight on a device; nothing more is popped from its queues.
    fn quiesce_device(&self, number: u8, slot: u8) {
        let (sender, receiver) = channel::<()>();
        self.with_device(number, slot, |device, _| {
            self.reactor
                .command(|commands| device.quiesce(commands, Box::new(move || drop(sender))));
        });
        let _ = receiver.recv();
    }

    /// Ends [`Self::quiesce_device`].
    fn unquiesce<T>(
        &self,
        number: u8,
        slot: u8,
        act: impl FnOnce(&mut ServedDevice) -> T,
    ) -> Option<(T, Result<(), Refusal>)> {
        self.with_device(number, slot, |device, closing| {
            let result = act(device);
            let shown = device.show_config(&*self.hv);
            if !closing {
                self.reactor
                    .command(|commands| device.refresh(&self.hv, commands));
            }
            (result, shown)
        })
    }

    /// Shows the guest the field of a device's configuration space that may have changed.
    ///
    /// # Errors
    /// EL2 refused.
    pub fn show_config(&self, number: u8, slot: u8) -> Result<(), Refusal> {
        self.with_device(number, slot, |device, _| device.show_config(&*self.hv))
            .unwrap_or(Ok(()))
    }

    /// Schedules the queues of a device: something else than its driver may let requests continue.
    pub fn schedule(&self, number: u8, slot: u8) {
        self.with_device(number, slot, |device, _| {
            device.ids().for_each(|id| self.reactor.schedule(id));
        });
    }

    /// Retries the requests at which a device has stopped.
    pub fn retry(&self, number: u8, slot: u8) {
        self.with_device(number, slot, |device, _| {
            self.reactor
                .command(|commands| device.ids().for_each(|id| commands.retry(id)));
        });
    }

    /// Returns an open device.
    pub fn device(&self, number: u8, slot: u8) -> Option<Device> {
        self.with_device(number, slot, |device, _| device.device().clone())
    }

    /// Ends [`Self::quiesce`] when the zone starts again. `starts` counts the zone's starts.
    pub fn reopen(&self, number: u8, starts: u32) {
        self.with(number, |zone| {
            zone.closing = false;
            zone.devices.iter_mut().for_each(|device| device.restart(starts));
        });
    }

    /// Removes the zone, after its last console output.
    pub fn remove_zone(&self, number: u8) {
        if let (Some(zone), Some(window)) = (self.table.remove(number), self.hv.shared().window(number)) {
            zone.console.pump(window);
        }
    }

    /// Returns the queues of a device with their counters.
    pub fn snapshots(&self, number: u8, slot: u8) -> Vec<QueueSnapshot> {
        self.with_device(number, slot, |device, _| device.snapshots())
            .unwrap_or_default()
    }

    /// Ends the reactor; all queues are quiesced before.
    pub fn stop(&self) {
        self.reactor.stop();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Calls `act` on a device, with whether its zone is being closed.
    fn with_device<T>(
        &self,
        number: u8,
        slot: u8,
        act: impl FnOnce(&mut ServedDevice, bool) -> T,
    ) -> Option<T> {
        self.with(number, |zone| {
            let closing = zone.closing;
            zone.device(slot).map(|device| act(device, closing))
        })?
    }

    fn with<T>(&self, number: u8, act: impl FnOnce(&mut ZoneIo) -> T) -> Option<T> {
        self.table.with(number, act)
    }
}
