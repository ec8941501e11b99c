//! A guest's accesses to its devices: which device an address belongs to, and the GIC, UART, RTC and GPIO
//! controller; [`super::flash`] has flash and firmware configuration. The UART is a PL011, whose other end
//! are the zone's console rings.

use ringvisor::abi::MAX_SLOTS;
use ringvisor::abi::machine::{
    FLASH_BASE, FLASH_SIZE, FW_CFG_BASE, FW_CFG_SIZE, GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE,
    GPIO_BASE, GPIO_SPI, RTC_BASE, RTC_SPI, UART_BASE, UART_SPI, VIRTIO_BASE, VIRTIO_STRIDE,
};
use ringvisor::addr::{Ipa, PAGE_SIZE};
use ringvisor::pl011;
use ringvisor::ring::console::{InputConsumer, OutputProducer};
use ringvisor::ring::{Entry, ZoneWindow};
use ringvisor::syndrome::Width;
use ringvisor::vgic::Frame;

use super::{Zone, seconds};
use crate::el2::cpu;
use crate::el2::owner::TrapOutcome;

impl Zone {
    /// Emulates an access that stage 2 did not permit. `ipa` is aligned to `width`.
    pub(super) fn emulate(&self, ipa: Ipa, width: Width, stored: Option<u64>) -> TrapOutcome {
        let at = ipa.0;
        let frames = GICR_STRIDE * self.cpus.len() as u64;
        let slots = VIRTIO_STRIDE * MAX_SLOTS as u64;
        let within = |base: u64, size: u64| at.checked_sub(base).filter(|offset| *offset < size);
        if let Some(offset) = within(VIRTIO_BASE, slots) {
            self.virtio(
                (offset / VIRTIO_STRIDE) as usize,
                (offset % VIRTIO_STRIDE) as u16,
                width,
                stored,
            )
        } else if let Some(offset) = within(UART_BASE, PAGE_SIZE) {
            self.uart_access(offset as u16, width, stored)
        } else if let Some(offset) = within(GICD_BASE, GICD_SIZE) {
            self.gic_access(Frame::Distributor, offset, width, stored)
        } else if let Some(offset) = within(GICR_BASE, frames) {
            let frame = Frame::Redistributor((offset / GICR_STRIDE) as usize);
            self.gic_access(frame, offset % GICR_STRIDE, width, stored)
        } else if let Some(offset) = within(RTC_BASE, PAGE_SIZE) {
            self.rtc_access(offset as u16, width, stored)
        } else if let Some(offset) = within(GPIO_BASE, PAGE_SIZE) {
            self.gpio_access(offset as u16, width, stored)
        } else if let Some(offset) = within(FLASH_BASE, 2 * FLASH_SIZE) {
            self.flash_access(offset, width, stored)
        } else if let Some(offset) = within(FW_CFG_BASE, FW_CFG_SIZE) {
            self.fw_cfg_access(offset as u16, width, stored)
        } else {
            TrapOutcome::Abort
        }
    }

    fn gic_access(&self, frame: Frame, offset: u64, width: Width, stored: Option<u64>) -> TrapOutcome {
        let (vcpu, bytes) = (cpu::this().vcpu(), width.bytes() as u32);
        let value = self.with_synced_gic(|gic| gic.access(vcpu, frame, offset as u32, bytes, stored));
        value.map_or(TrapOutcome::Retry, TrapOutcome::Done)
    }

    fn rtc_access(&self, offset: u16, width: Width, stored: Option<u64>) -> TrapOutcome {
        let mut rtc = self.rtc.lock();
        let now = seconds();
        let value = match stored {
            Some(value) => {
                rtc.write(offset, width, value, now);
                0
            }
            None => rtc.read(offset, width, now),
        };
        let level = rtc.line();
        self.unlock_with_level(rtc, RTC_SPI, level);
        TrapOutcome::Done(u64::from(value))
    }

    fn uart_access(&self, offset: u16, width: Width, stored: Option<u64>) -> TrapOutcome {
        let mut uart = self.uart.lock();
        let (value, wrote) = uart.access(self.window, offset, width, stored);
        let level = uart.line();
        self.unlock_with_level(uart, UART_SPI, level);
        if wrote {
            self.send_event(Entry::Console);
        }
        TrapOutcome::Done(u64::from(value))
    }

    /// Appends a byte to the output of the UART, from another device.
    pub(super) fn print(&self, byte: u8) {
        self.uart.lock().output.write(&self.window.output(), &[byte]);
        self.send_event(Entry::Console);
    }

    fn gpio_access(&self, offset: u16, width: Width, stored: Option<u64>) -> TrapOutcome {
        let mut gpio = self.gpio.lock();
        let value = match stored {
            Some(value) => {
                gpio.write(offset, width, value);
                0
            }
            None => gpio.read(offset, width),
        };
        let level = gpio.line();
        self.unlock_with_level(gpio, GPIO_SPI, level);
        TrapOutcome::Done(u64::from(value))
    }

    /// Presses or releases the power key.
    pub fn set_power_key(&self, pressed: bool) {
        let mut gpio = self.gpio.lock();
        gpio.set_power_key(pressed);
        let level = gpio.line();
        self.unlock_with_level(gpio, GPIO_SPI, level);
    }

    /// Receives what the daemon has put into the console input ring.
    pub fn console_input(&self) {
        let mut uart = self.uart.lock();
        uart.receive(self.window);
        let level = uart.line();
        self.unlock_with_level(uart, UART_SPI, level);
    }
}

/// The device and its ends of the console rings.
pub struct Uart {
    device: pl011::Uart,
    output: OutputProducer,
    input: InputConsumer,
}

impl Uart {
    /// Returns a device after power-on, with empty rings.
    pub fn new() -> Self {
        Self {
            device: pl011::Uart::new(),
            output: OutputProducer::new(),
            input: InputConsumer::new(),
        }
    }

    /// Resets the device; what is in the rings stays.
    pub fn reset(&mut self) {
        self.device = pl011::Uart::new();
    }

    /// Returns the level of its interrupt line.
    pub fn line(&self) -> bool {
        self.device.line()
    }

    /// Emulates a register access. Returns the value of a load, and whether output was written to the ring.
    pub fn access(
        &mut self,
        window: &ZoneWindow,
        offset: u16,
        width: Width,
        stored: Option<u64>,
    ) -> (u32, bool) {
        let Some(value) = stored else {
            let mut source = || self.input.pop(&window.input());
            return (self.device.read(offset, width, &mut source), false);
        };
        let mut wrote = false;
        let mut sink = |byte| {
            self.output.write(&window.output(), &[byte]);
            wrote = true;
        };
        let mut source = || self.input.pop(&window.input());
        self.device.write(offset, width, value, &mut source, &mut sink);
        (0, wrote)
    }

    /// Receives what is in the input ring, as far as the FIFO has room.
    pub fn receive(&mut self, window: &ZoneWindow) {
        self.device.poll(&mut || self.input.pop(&window.input()));
    }
}
