//! `virtio-drivers`' view of the device: loads from the page, stores that trap to EL2. A store that EL2 holds
//! back is tried again after a turn of the device side, as by a vCPU that EL2 returns to the same
//! instruction.

use ringvisor::syndrome::Width;
use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::options::Sabotage;
use crate::world::SharedWorld;

/// Turns after which a store that is held back is reported as hanging.
const TURN_LIMIT: u32 = 20_000;

/// See the module.
pub struct SimTransport {
    /// The device side and the scheduler.
    pub world: SharedWorld,
}

impl SimTransport {
    /// Loads a register.
    pub fn load(&self, offset: u16) -> u32 {
        self.world.borrow().el2.load(offset)
    }

    /// Stores to a register, and returns when the store has taken effect.
    pub fn store(&mut self, offset: u16, value: u32) {
        let el2 = self.world.borrow().el2.clone();
        for waited in 1..TURN_LIMIT {
            if !el2.store(offset, Width::Word, value.into()) {
                return;
            }
            let mut world = self.world.borrow_mut();
            world.wait(waited);
            if world.failure.is_some() {
                return;
            }
        }
        self.world
            .borrow_mut()
            .fail(format!("a store of {value} to register {offset:#x} hangs"));
    }

    /// Negotiates the features of the run's rings and those in `more` that are wanted, from a reset to
    /// FEATURES_OK (virtio 1.2, 3.1.1). Returns whether the device accepts them; if not, the run has failed.
    pub fn negotiate(&mut self, more: &[(bool, u64)]) -> bool {
        let (event_idx, indirect) = {
            let profile = &self.world.borrow().profile;
            (profile.event_idx, profile.indirect)
        };
        let rings = [(event_idx, bit::EVENT_IDX), (indirect, bit::INDIRECT_DESC)];
        let wanted = rings.iter().chain(more).filter(|(want, _)| *want);
        let wanted = wanted.fold(bit::VERSION_1 | bit::RING_RESET, |all, (_, feature)| {
            all | feature
        });
        self.set_status(DeviceStatus::empty());
        let found = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set_status(found);
        let offered = self.read_device_features();
        self.write_driver_features(offered & wanted);
        self.set_status(found | DeviceStatus::FEATURES_OK);
        let accepted = self.get_status().contains(DeviceStatus::FEATURES_OK);
        if wanted & !offered != 0 || !accepted {
            let why = format!("features {wanted:#x} of {offered:#x} that are offered: accepted {accepted}");
            self.world.borrow_mut().fail(why);
        }
        self.world.borrow().failure.is_none()
    }

    /// Sets DRIVER_OK, after [`Self::negotiate`].
    pub fn set_driver_ok(&mut self) {
        self.set_status(self.get_status() | DeviceStatus::DRIVER_OK);
    }

    /// Waits until the reset of the selected queue has completed. Returns false if the run has failed.
    pub fn await_queue_reset(&mut self) -> bool {
        for left in (0..TURN_LIMIT).rev() {
            if self.load(reg::QUEUE_RESET) == 0 {
                return true;
            }
            let mut world = self.world.borrow_mut();
            world.wait(left);
            if left == 0 {
                world.fail("a queue reset hangs");
            }
            if world.failure.is_some() {
                return false;
            }
        }
        false
    }

    fn store_address(&mut self, low: u16, address: PhysAddr) {
        self.store(low, address as u32);
        self.store(low + 4, (address >> 32) as u32);
    }
}

impl Transport for SimTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        self.store(reg::DEVICE_FEATURES_SEL, 0);
        let low = self.load(reg::DEVICE_FEATURES);
        self.store(reg::DEVICE_FEATURES_SEL, 1);
        u64::from(self.load(reg::DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, features: u64) {
        self.store(reg::DRIVER_FEATURES_SEL, 0);
        self.store(reg::DRIVER_FEATURES, features as u32);
        self.store(reg::DRIVER_FEATURES_SEL, 1);
        self.store(reg::DRIVER_FEATURES, (features >> 32) as u32);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.store(reg::QUEUE_SEL, queue.into());
        self.load(reg::QUEUE_NUM_MAX)
    }

    fn notify(&mut self, queue: u16) {
        {
            let mut world = self.world.borrow_mut();
            if world.profile.sabotage == Sabotage::LostNotification && world.rng.chance(50) {
                world.el2.lose_notification();
            }
        }
        self.store(reg::QUEUE_NOTIFY, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.load(reg::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.store(reg::STATUS, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.store(reg::QUEUE_SEL, queue.into());
        self.store(reg::QUEUE_NUM, size);
        self.store_address(reg::QUEUE_DESC_LOW, desc);
        self.store_address(reg::QUEUE_DRIVER_LOW, driver);
        self.store_address(reg::QUEUE_DEVICE_LOW, device);
        self.store(reg::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.store(reg::QUEUE_SEL, queue.into());
        self.store(reg::QUEUE_READY, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.store(reg::QUEUE_SEL, queue.into());
        self.load(reg::QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.load(reg::INTERRUPT_STATUS);
        self.store(reg::INTERRUPT_ACK, status);
        InterruptStatus::from_bits_truncate(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.load(reg::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let bytes: Vec<u8> = (offset..offset + size_of::<T>())
            .map(|at| {
                let word = self.load(reg::CONFIG + (at as u16 & !3));
                word.to_le_bytes()[at % 4]
            })
            .collect();
        T::read_from_bytes(&bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        let el2 = self.world.borrow().el2.clone();
        for (at, byte) in (offset..).zip(value.as_bytes()) {
            // A store to the configuration space is never held back.
            let held = el2.store(reg::CONFIG + at as u16, Width::Byte, u64::from(*byte));
            if held {
                return Err(Error::NotReady);
            }
        }
        Ok(())
    }
}
