//! A virtio-mmio slot by its registers (4.2.2), for accesses that a driver's transport would not make.

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

use crate::machine::{Device, Machine};
use crate::{attempt, registers};

/// Offsets of registers.
#[allow(missing_docs)]
pub mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN: u64 = 0x0b0;
    pub const SHM_BASE: u64 = 0x0b8;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}
use register::{
    DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, DRIVER_FEATURES, DRIVER_FEATURES_SEL, STATUS,
};

/// Status bits (2.1).
#[allow(missing_docs)]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// Network device id.
pub const NET: u32 = 1;
/// Block device id.
pub const BLOCK: u32 = 2;
/// Console device id.
pub const CONSOLE: u32 = 3;
/// Entropy device id.
pub const RNG: u32 = 4;

/// One slot.
#[derive(Clone, Copy)]
pub struct Slot {
    /// Registers and interrupt.
    pub device: Device,
}

impl Slot {
    /// Returns all slots that have a block device.
    pub fn blocks(machine: &Machine) -> impl Iterator<Item = Self> + '_ {
        Self::with(machine, BLOCK)
    }

    /// Returns all slots that have a device with this id.
    pub fn with(machine: &Machine, id: u32) -> impl Iterator<Item = Self> + '_ {
        machine
            .virtio
            .iter()
            .map(|device| Self { device: *device })
            .filter(move |slot| slot.read(DEVICE_ID) == id)
    }

    /// Reads a register by a plain 32-bit load.
    pub fn read(&self, offset: u64) -> u32 {
        registers::read(self.device.base + offset)
    }

    /// Writes a register by a plain 32-bit store.
    pub fn write(&self, offset: u64, value: u32) {
        registers::write(self.device.base + offset, value);
    }

    /// Writes a pair of registers.
    pub fn write_address(&self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// Reads one byte.
    pub fn read_byte(&self, offset: u64) -> u8 {
        attempt!(self.device.base + offset, 0, "ldrb {x:w}, [{a}]").value as u8
    }

    /// Writes one byte.
    pub fn write_byte(&self, offset: u64, value: u8) {
        let _ = attempt!(self.device.base + offset, value.into(), "strb {x:w}, [{a}]");
    }

    /// Resets the device. Returns whether the reset completed within a second.
    pub fn reset(&self) -> bool {
        self.write(STATUS, 0);
        crate::time::wait(1000, || self.read(STATUS) == 0)
    }

    /// Returns the features that the device offers.
    pub fn features(&self) -> u64 {
        self.write(DEVICE_FEATURES_SEL, 0);
        let low = self.read(DEVICE_FEATURES);
        self.write(DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    /// Resets the device, then negotiates these features up to FEATURES_OK. Returns the status read back.
    pub fn negotiate(&self, features: u64) -> u32 {
        self.reset();
        self.write(STATUS, status::ACKNOWLEDGE);
        self.write(STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.write(DRIVER_FEATURES_SEL, 0);
        self.write(DRIVER_FEATURES, features as u32);
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, (features >> 32) as u32);
        self.write(STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.read(STATUS)
    }

    /// Returns everything that can be read without a side effect: all registers and the configuration space.
    pub fn dump(&self) -> [u32; 128] {
        core::array::from_fn(|index| self.read(index as u64 * 4))
    }

    /// Returns a transport for virtio-drivers.
    pub fn transport(&self) -> Option<MmioTransport<'static>> {
        let header = NonNull::new(self.device.base as *mut VirtIOHeader)?;
        // SAFETY: a slot is here according to the device tree; it is mapped as device memory and never
        // unmapped.
        unsafe { MmioTransport::new(header, self.device.size as usize) }.ok()
    }
}
