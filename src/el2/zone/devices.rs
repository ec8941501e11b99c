//! The virtio slots of a zone.
//!
//! The effect of a call of a transport is applied under the slot's lock ([`Zone::apply_effect`]), so that
//! levels and events keep their order. What can wait is done after its release ([`Zone::run_deferred`]):
//! kicks and the daemon's interrupt wait for the interrupt controller, and other CPUs want the slot
//! meanwhile.

use ringvisor::abi::command::{CommandStatus, DeviceSpec};
use ringvisor::abi::counters::{CpuEvent, DeviceEvent};
use ringvisor::abi::machine::{GPIO_SPI, RTC_SPI, UART_SPI, VIRTIO_BASE, VIRTIO_SPI, VIRTIO_STRIDE};
use ringvisor::abi::trace::Kind;
use ringvisor::addr::{Ipa, PAGE_SIZE};
use ringvisor::pl061::Gpio;
use ringvisor::ring::{Entry, Wakeup};
use ringvisor::stage2::{Access, Stage2};
use ringvisor::syndrome::Width;
use ringvisor::virtio::{Effect, Event, RegisterPage, Spec, Transport, registers};

use super::Zone;
use crate::el2::channel::{Refusal, function};
use crate::el2::mm::frames::{FrameBox, RegisterFrame, Tables};
use crate::el2::owner::TrapOutcome;
use crate::el2::{arch, stats};

/// The register page that the guest reads.
pub struct Page(pub RegisterFrame);

impl RegisterPage for Page {
    fn set32(&self, offset: u16, value: u32) {
        self.0.set32(usize::from(offset), value);
        // Complete before the vCPU continues: the guest's load must see it.
        arch::dsb_ishst();
    }
}

/// One device.
pub struct Device {
    /// The state of the registers.
    pub transport: Transport,
    /// The copy that the guest reads.
    pub page: Page,
}

impl Device {
    /// Builds a device after power-on, its page filled. Returns `None` if there is no memory.
    pub fn new(spec: &Spec) -> Option<FrameBox<Self>> {
        let page = Page(RegisterFrame::new()?);
        let device = FrameBox::reserve()?.fill(Self {
            transport: Transport::new(spec),
            page,
        });
        device.transport.write_page(&device.page);
        Some(device)
    }

    /// Replaces the device in the same slot, or empties the slot; the page stays mapped.
    pub fn replace(&mut self, transport: Transport) {
        self.transport = transport;
        self.transport.write_page(&self.page);
    }
}

/// What is left to do after the slot's lock is released.
#[derive(Clone, Copy, Default)]
#[must_use = "an interrupt of the guest's or the daemon's is lost"]
struct Deferred {
    /// Propagate the level of the slot's line.
    propagate: bool,
    /// Wake the daemon.
    wake: bool,
}

impl Zone {
    /// Emulates a store to a slot's page, or a load from a slot that has no page yet.
    pub(super) fn virtio(&self, slot: usize, offset: u16, width: Width, stored: Option<u64>) -> TrapOutcome {
        let Some(place) = self.slots.get(slot) else {
            return TrapOutcome::Abort;
        };
        let mut guard = place.lock();
        let Some(device) = guard.as_deref_mut() else {
            let value = match (offset, width) {
                _ if stored.is_some() => 0,
                (registers::MAGIC_VALUE, Width::Word) => registers::MAGIC,
                (registers::VERSION_OFFSET, Width::Word) => registers::VERSION,
                _ => 0,
            };
            return TrapOutcome::Done(u64::from(value));
        };
        match stored {
            Some(value) => {
                match offset {
                    registers::QUEUE_NOTIFY => {
                        stats::count(CpuEvent::Notifications);
                        self.counters.count(slot, DeviceEvent::Notifications);
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
                if let Some(Event::EmergencyWrite { byte }) = effect.event {
                    drop(guard);
                    self.print(byte);
                    return TrapOutcome::Done(0);
                }
                let deferred = self.apply_effect(slot, effect);
                drop(guard);
                self.run_deferred(slot, deferred);
                if effect.retry {
                    TrapOutcome::Retry
                } else {
                    TrapOutcome::Done(0)
                }
            }
            // The page was mapped since the fault: the load is executed again and succeeds.
            None => TrapOutcome::Retry,
        }
    }

    /// Applies the effect of a transport's call: latches the level, adds the event to the ring. The caller
    /// holds the slot's lock.
    #[inline(never)]
    fn apply_effect(&self, slot: usize, effect: Effect) -> Deferred {
        let mut deferred = Deferred::default();
        if let Some(level) = effect.line {
            if level {
                self.counters.count(slot, DeviceEvent::Interrupts);
            }
            deferred.propagate = self.latch_level(spi(slot), level);
        }
        if let Some(event) = effect.event {
            let entry = match event {
                Event::Notify { queue } => Entry::Notify {
                    slot: slot as u8,
                    queue,
                },
                _ => Entry::Device { slot: slot as u8 },
            };
            let wakeup = notify(self, entry);
            if wakeup.is_none() && matches!(entry, Entry::Notify { .. }) {
                stats::count(CpuEvent::NotificationsPending);
                self.counters.count(slot, DeviceEvent::NotificationsPending);
            }
            deferred.wake = wakeup == Some(Wakeup::Required);
        }
        deferred
    }

    /// Does what [`Self::apply_effect`] deferred. The caller does not hold the slot's lock.
    #[inline(never)]
    fn run_deferred(&self, slot: usize, deferred: Deferred) {
        if deferred.propagate {
            self.propagate_level(spi(slot));
        }
        if deferred.wake {
            function::assert_intx();
        }
    }

    /// Calls `f` with a slot's device and applies its effect.
    fn change_device(
        &self,
        slot: usize,
        f: impl FnOnce(&mut Device) -> Result<Effect, Refusal>,
    ) -> Result<(), Refusal> {
        let deferred = self.with_device(slot, |device| {
            f(device).map(|effect| self.apply_effect(slot, effect))
        })??;
        self.run_deferred(slot, deferred);
        Ok(())
    }

    /// Calls `f` with a slot's device.
    pub fn with_device<T>(&self, slot: usize, f: impl FnOnce(&mut Device) -> T) -> Result<T, Refusal> {
        let no_device = (CommandStatus::NoSuchDevice, slot as u64);
        let mut guard = self.slots.get(slot).ok_or(no_device)?.lock();
        guard.as_deref_mut().map(f).ok_or(no_device)
    }

    /// Sends the used buffer notification that the daemon asks for.
    pub fn used_buffer(&self, slot: usize) {
        let Some(place) = self.slots.get(slot) else { return };
        let mut guard = place.lock();
        let Some(device) = guard.as_deref_mut() else {
            return;
        };
        self.counters.count(slot, DeviceEvent::Doorbells);
        let effect = device.transport.used_buffer(&device.page);
        let deferred = self.apply_effect(slot, effect);
        drop(guard);
        self.run_deferred(slot, deferred);
    }

    /// Sets DEVICE_NEEDS_RESET.
    pub fn device_needs_reset(&self, slot: usize) -> Result<(), Refusal> {
        self.change_device(slot, |device| Ok(device.transport.needs_reset(&device.page)))
    }

    /// Changes the device's configuration space. The page is unmapped meanwhile, so that no vCPU reads half
    /// of a change.
    pub fn device_config(&self, slot: usize, offset: u16, bytes: &[u8]) -> Result<(), Refusal> {
        self.change_device(slot, |device| {
            let effect = self.with_page_unmapped(slot, device, |device| {
                device.transport.config_changed(offset, bytes, &device.page)
            })?;
            effect.map_err(|_| (CommandStatus::BadArgument, u64::from(offset)))
        })
    }

    /// Calls `change` while the slot's page is not mapped. A load that a vCPU executes meanwhile faults,
    /// waits for the lock of the slot or of stage 2 (in [`Self::virtio`] or `Owner::is_mapped_for_reads`),
    /// which the caller and this function hold, and is executed again.
    fn with_page_unmapped<T>(
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
        // The table of the page still exists: no frame is needed.
        show_page(stage2, slot, device)?;
        Ok(result)
    }

    /// Adds a device to an empty slot.
    pub fn add_device(&self, slot: usize, spec: &DeviceSpec) -> Result<(), Refusal> {
        let no_slot = (CommandStatus::NoSuchDevice, slot as u64);
        let spec = Spec::try_from(spec).map_err(|error| (CommandStatus::BadDevice, error.detail()))?;
        let mut guard = self.slots.get(slot).ok_or(no_slot)?.lock();
        if let Some(device) = guard.as_mut() {
            if !device.transport.is_empty() {
                return Err((CommandStatus::SlotInUse, slot as u64));
            }
            self.counters.restart(slot);
            device.replace(Transport::new(&spec));
            return Ok(());
        }
        let device = Device::new(&spec).ok_or((CommandStatus::OutOfMemory, 2))?;
        show_page(self.stage2.lock().as_mut().ok_or(no_slot)?, slot, &device)?;
        *guard = Some(device);
        Ok(())
    }

    /// Empties a slot. Its page stays mapped and shows device ID 0: no device (virtio 1.2, 4.2.2).
    pub fn remove_device(&self, slot: usize) -> Result<(), Refusal> {
        self.change_device(slot, |device| {
            device.replace(Transport::empty());
            Ok(Effect {
                line: Some(false),
                ..Effect::default()
            })
        })
    }

    /// Resets all devices. No vCPU is inside and the daemon holds no buffer.
    pub(super) fn reset_devices(&self) {
        for (slot, place) in self.slots.iter().enumerate() {
            let deferred = match place.lock().as_deref_mut() {
                Some(device) => {
                    let effect = device.transport.power_cycle(&device.page);
                    self.apply_effect(slot, effect)
                }
                None => continue,
            };
            self.run_deferred(slot, deferred);
        }
        let mut uart = self.uart.lock();
        uart.reset();
        self.unlock_with_level(uart, UART_SPI, false);
        let mut rtc = self.rtc.lock();
        rtc.reset();
        self.unlock_with_level(rtc, RTC_SPI, false);
        let mut gpio = self.gpio.lock();
        *gpio = Gpio::new();
        self.unlock_with_level(gpio, GPIO_SPI, false);
        self.reset_flash();
        self.gic.lock().reset();
    }
}

/// Returns the guest's address of a slot's page.
const fn slot_ipa(slot: usize) -> Ipa {
    Ipa(VIRTIO_BASE + slot as u64 * VIRTIO_STRIDE)
}

/// Maps a device's page into its slot.
fn show_page(stage2: &mut Stage2, slot: usize, device: &Device) -> Result<(), Refusal> {
    let (ipa, page) = (slot_ipa(slot), device.page.0.pa());
    stage2
        .map(&mut Tables, ipa, page, PAGE_SIZE, Access::DeviceReadOnly)
        .map_err(|_| (CommandStatus::OutOfMemory, 1))?;
    arch::dsb_ish();
    Ok(())
}

/// Returns the SPI of a slot, counted from the first.
const fn spi(slot: usize) -> u32 {
    VIRTIO_SPI + slot as u32
}

/// Adds a device's event to the zone's ring, as [`Zone::add_event`]. Its own function so that a debugger can
/// stop here, between the driver's store and the daemon.
#[inline(never)]
fn notify(zone: &Zone, entry: Entry) -> Option<Wakeup> {
    zone.add_event(entry)
}
