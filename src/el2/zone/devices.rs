//! The virtio slots of a zone.
//!
//! What a call of a transport leads to is noted under the slot's lock ([`Zone::note`]), so that levels and events keep their
//! order, and carried out when that is free again ([`Zone::carry_out`]): kicks and the bell wait for the interrupt
//! controller, and other CPUs want the slot meanwhile.

use ringvisor::syndrome::Width;
use ringvisor::virtio::{Event, registers};

use super::*;
use crate::el2::traps::Outcome;

/// What remains to be done without the slot's lock.
#[derive(Clone, Copy, Default)]
#[must_use = "an interrupt or the daemon's bell is lost"]
struct Rest {
    /// The slot's line has another level.
    line: bool,
    /// The daemon sleeps.
    bell: bool,
}

impl Zone {
    /// A store to a slot's page, or a load from a slot that has no page yet.
    pub(super) fn virtio(&self, slot: usize, offset: u16, width: Width, stored: Option<u64>) -> Outcome {
        let Some(place) = self.slots.get(slot) else {
            return Outcome::Abort;
        };
        let mut guard = place.lock();
        let Some(device) = guard.as_deref_mut() else {
            let value = match (offset, width) {
                _ if stored.is_some() => 0,
                (registers::MAGIC_VALUE, Width::Word) => registers::MAGIC,
                (registers::VERSION_OFFSET, Width::Word) => registers::VERSION,
                _ => 0,
            };
            return Outcome::Done(u64::from(value));
        };
        match stored {
            Some(value) => {
                match offset {
                    registers::QUEUE_NOTIFY => {
                        stats::count(CpuEvent::Notifications);
                        self.counters.count(self.number, slot, DeviceEvent::Notifications);
                        stats::record_trap(Kind::Notify, self.number, slot as u8, value as u8);
                    }
                    registers::INTERRUPT_ACK => {
                        stats::record_trap(Kind::Acknowledge, self.number, slot as u8, 0);
                    }
                    _ => {}
                }
                let effect = device
                    .transport
                    .write(offset, width, value, &self.ram(), &device.page);
                let rest = self.note(slot, effect);
                drop(guard);
                self.carry_out(slot, rest);
                if effect.retry {
                    Outcome::Again
                } else {
                    Outcome::Done(0)
                }
            }
            // The page was mapped between the fault and now: the load will find it.
            None => Outcome::Again,
        }
    }

    /// Notes what a transport's call asks for. Under the slot's lock.
    #[inline(never)]
    fn note(&self, slot: usize, effect: Effect) -> Rest {
        let mut rest = Rest::default();
        if let Some(level) = effect.line {
            if level {
                self.counters.count(self.number, slot, DeviceEvent::Interrupts);
            }
            rest.line = self.latch_level(spi(slot), level);
        }
        if let Some(event) = effect.event {
            let slot_number = slot as u8;
            let entry = match event {
                Event::Notify { queue } => Entry::Notify {
                    slot: slot_number,
                    queue,
                },
                _ => Entry::Device { slot: slot_number },
            };
            let bell = notify(self, entry);
            if bell.is_none() && matches!(entry, Entry::Notify { .. }) {
                stats::count(CpuEvent::NotificationsPending);
                self.counters
                    .count(self.number, slot, DeviceEvent::NotificationsPending);
            }
            rest.bell = bell == Some(Wakeup::Required);
        }
        rest
    }

    /// Does what is left. Without the slot's lock.
    #[inline(never)]
    fn carry_out(&self, slot: usize, rest: Rest) {
        if rest.line {
            self.propagate_level(spi(slot));
        }
        if rest.bell {
            control::ring_bell();
        }
    }

    /// Calls `f` on a slot's device, and does what follows from it.
    fn change_device(
        &self,
        slot: usize,
        f: impl FnOnce(&mut Device) -> Result<Effect, Refusal>,
    ) -> Result<(), Refusal> {
        let rest = self.with_device(slot, |device| f(device).map(|effect| self.note(slot, effect)))??;
        self.carry_out(slot, rest);
        Ok(())
    }

    /// Calls `f` on a slot's device.
    pub fn with_device<T>(&self, slot: usize, f: impl FnOnce(&mut Device) -> T) -> Result<T, Refusal> {
        let no_device = (CommandStatus::NoSuchDevice, slot as u64);
        let mut guard = self.slots.get(slot).ok_or(no_device)?.lock();
        guard.as_deref_mut().map(f).ok_or(no_device)
    }

    /// The daemon has put used buffers into a queue.
    pub fn used_buffer(&self, slot: usize) {
        let Some(place) = self.slots.get(slot) else { return };
        let mut guard = place.lock();
        let Some(device) = guard.as_deref_mut() else {
            return;
        };
        self.counters.count(self.number, slot, DeviceEvent::Doorbells);
        let effect = device.transport.used_buffer(&device.page);
        let rest = self.note(slot, effect);
        drop(guard);
        self.carry_out(slot, rest);
    }

    /// The daemon's device cannot go on.
    pub fn device_needs_reset(&self, slot: usize) -> Result<(), Refusal> {
        self.change_device(slot, |device| Ok(device.transport.needs_reset(&device.page)))
    }

    /// The device changes its configuration space. No vCPU sees half of it: the page is away meanwhile.
    pub fn device_config(&self, slot: usize, offset: u16, bytes: &[u8]) -> Result<(), Refusal> {
        self.change_device(slot, |device| {
            let effect = self.while_hidden(slot, device, |device| {
                device.transport.config_changed(offset, bytes, &device.page)
            })?;
            effect.map_err(|_| (CommandStatus::BadArgument, u64::from(offset)))
        })
    }

    /// Calls `change` while the slot's page is not mapped. A load that comes meanwhile faults, waits for the slot's
    /// lock or that of stage 2 (in [`Self::virtio`] or [`Self::shows`]), which the caller and this function hold, and
    /// is executed again.
    fn while_hidden<T>(
        &self,
        slot: usize,
        device: &mut Device,
        change: impl FnOnce(&mut Device) -> T,
    ) -> Result<T, Refusal> {
        let mut guard = self.stage2.lock();
        let stage2 = guard.as_mut().ok_or((CommandStatus::NoSuchDevice, slot as u64))?;
        let ipa = slot_ipa(slot);
        stage2.unmap(&mut Tables, ipa, PAGE_SIZE);
        arch::tlbi_ipa(self.vttbr, ipa);
        let result = change(device);
        // The table that the page was in is still there: no frame is needed.
        stage2
            .map(
                &mut Tables,
                ipa,
                device.page.0.pa(),
                PAGE_SIZE,
                Access::DeviceReadOnly,
            )
            .map_err(|_| (CommandStatus::OutOfMemory, 1))?;
        arch::dsb_ish();
        Ok(result)
    }

    /// Whether something is mapped at `ipa`.
    pub fn shows(&self, ipa: Ipa) -> bool {
        let guard = self.stage2.lock();
        guard
            .as_ref()
            .is_some_and(|stage2| stage2.translate(&Tables, ipa).is_some())
    }

    /// Puts a device into a slot that has none.
    pub fn add_device(&self, slot: usize, spec: &DeviceSpec) -> Result<(), Refusal> {
        let no_slot = (CommandStatus::NoSuchDevice, slot as u64);
        let spec = Spec::try_from(spec).map_err(|error| (CommandStatus::BadDevice, error.detail()))?;
        let mut guard = self.slots.get(slot).ok_or(no_slot)?.lock();
        if let Some(device) = guard.as_mut() {
            if !device.transport.is_empty() {
                return Err((CommandStatus::SlotInUse, slot as u64));
            }
            self.counters.restart(self.number, slot);
            device.replace(Transport::new(&spec));
            return Ok(());
        }
        let device = Device::new(&spec).ok_or((CommandStatus::OutOfMemory, 2))?;
        let page = device.page.0.pa();
        let mut stage2 = self.stage2.lock();
        let stage2 = stage2.as_mut().ok_or(no_slot)?;
        stage2
            .map(
                &mut Tables,
                slot_ipa(slot),
                page,
                PAGE_SIZE,
                Access::DeviceReadOnly,
            )
            .map_err(|_| (CommandStatus::OutOfMemory, 1))?;
        arch::dsb_ish();
        *guard = Some(device);
        Ok(())
    }

    /// Empties a slot. Its page stays mapped and shows no device.
    pub fn remove_device(&self, slot: usize) -> Result<(), Refusal> {
        self.change_device(slot, |device| {
            device.replace(Transport::empty());
            Ok(Effect {
                line: Some(false),
                ..Effect::default()
            })
        })
    }

    /// Everything as after power-on. No vCPU is inside and the daemon holds no buffer.
    pub(super) fn reset_devices(&self) {
        for (slot, place) in self.slots.iter().enumerate() {
            let rest = match place.lock().as_deref_mut() {
                Some(device) => {
                    let effect = device.transport.power_cycle(&device.page);
                    self.note(slot, effect)
                }
                None => continue,
            };
            self.carry_out(slot, rest);
        }
        let mut uart = self.uart.lock();
        uart.reset();
        self.let_go(uart, machine::UART_SPI, false);
        let mut rtc = self.rtc.lock();
        rtc.reset();
        self.let_go(rtc, machine::RTC_SPI, false);
        self.gic.lock().reset();
    }
}

/// Where the guest sees a slot.
const fn slot_ipa(slot: usize) -> Ipa {
    Ipa(machine::VIRTIO_BASE + slot as u64 * machine::VIRTIO_STRIDE)
}

/// The SPI of a slot, counted from the first.
const fn spi(slot: usize) -> u32 {
    machine::VIRTIO_SPI + slot as u32
}

/// An event of a virtqueue reaches the ring: the doorbell's way from the guest's store to the daemon. Its own
/// function so that a debugger can stop at it. `None` if the daemon had been told and has not looked yet.
#[inline(never)]
fn notify(zone: &Zone, entry: Entry) -> Option<Wakeup> {
    zone.offer(entry)
}
