//! A transport with its page, a driver that stores to it, and RAM.

use ringvisor::abi::MAX_QUEUES;
use ringvisor::abi::command::{DeviceSpec, DeviceState};
use ringvisor::syndrome::Width;
use ringvisor::virtio::fake::{FakePage, FakeRam};
use ringvisor::virtio::features::{bit, device};
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event, Spec, Transport};

/// Two ranges of RAM with a hole between them, and one at the end of the address space.
pub const RAM: FakeRam<'static> = FakeRam(&[
    (0x4000_0000, 0x10_0000),
    (0x4020_0000, 0x10_0000),
    (u64::MAX - 0xfff, 0xfff),
]);

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
pub const FAILED: u32 = 0x80;
/// Status of a device that its driver uses.
pub const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Returns the effect of a call that only drives the interrupt line.
pub fn line(level: bool) -> Effect {
    Effect {
        line: Some(level),
        ..Effect::default()
    }
}

/// All feature bits that a block device can offer here.
pub const FEATURES: u64 = bit::VERSION_1
    | bit::EVENT_IDX
    | bit::INDIRECT_DESC
    | bit::IN_ORDER
    | bit::RING_RESET
    | bit::BLK_FLUSH
    | bit::BLK_CONFIG_WCE;

/// A block device with two queues, 64 bytes of configuration and `writeback` 1.
pub fn block_spec() -> DeviceSpec {
    let mut config = [0; 256];
    for (index, byte) in config.iter_mut().take(64).enumerate() {
        *byte = index as u8 + 1;
    }
    config[32] = 1;
    let mut queue_max = [0; MAX_QUEUES];
    queue_max[0] = 256;
    queue_max[1] = 8;
    DeviceSpec {
        device_id: device::BLOCK,
        vendor_id: 0x7276,
        features: FEATURES,
        queues: 2,
        config_len: 64,
        queue_max,
        config,
    }
}

pub struct Bench {
    pub transport: Transport,
    pub page: FakePage,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(&block_spec())
    }

    pub fn with(spec: &DeviceSpec) -> Self {
        let transport = Transport::new(&Spec::try_from(spec).unwrap());
        let page = FakePage::default();
        transport.write_page(&page);
        Self { transport, page }
    }

    /// Executes a 32-bit store.
    pub fn store(&mut self, offset: u16, value: u32) -> Effect {
        self.store_width(offset, Width::Word, value.into())
    }

    pub fn store_width(&mut self, offset: u16, width: Width, value: u64) -> Effect {
        self.transport.write(offset, width, value, &RAM, &self.page)
    }

    /// Executes a store that must have no effect outside the registers.
    pub fn store_inert(&mut self, offset: u16, value: u32) {
        assert_eq!(
            self.store(offset, value),
            Effect::default(),
            "{offset:#x} = {value:#x}"
        );
    }

    pub fn read(&self, offset: u16) -> u32 {
        self.page.read32(offset)
    }

    /// Returns everything that the guest can read and the daemon can see.
    pub fn dump(&self) -> (Vec<u32>, Vec<u8>, bool) {
        use zerocopy::IntoBytes;
        (
            self.page.dump().to_vec(),
            self.transport.state().as_bytes().to_vec(),
            self.transport.line(),
        )
    }

    pub fn state(&self) -> DeviceState {
        self.transport.state()
    }

    /// Initializes the device up to FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        self.store_inert(reg::STATUS, ACKNOWLEDGE);
        self.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        self.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    pub fn accept(&mut self, features: u64) {
        self.store_inert(reg::DRIVER_FEATURES_SEL, 0);
        self.store_inert(reg::DRIVER_FEATURES, features as u32);
        self.store_inert(reg::DRIVER_FEATURES_SEL, 1);
        self.store_inert(reg::DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Writes size and addresses of a queue.
    pub fn set_up(&mut self, queue: u32, size: u32, [desc, driver, dev]: [u64; 3]) {
        self.store_inert(reg::QUEUE_SEL, queue);
        self.store_inert(reg::QUEUE_NUM, size);
        for (low, address) in [
            (reg::QUEUE_DESC_LOW, desc),
            (reg::QUEUE_DRIVER_LOW, driver),
            (reg::QUEUE_DEVICE_LOW, dev),
        ] {
            self.store_inert(low, address as u32);
            self.store_inert(low + 4, (address >> 32) as u32);
        }
    }

    /// Returns valid addresses for a queue.
    pub fn areas(queue: u32) -> [u64; 3] {
        let base = 0x4000_0000 + u64::from(queue) * 0x1_0000;
        [base, base + 0x4000, base + 0x8000]
    }

    /// Makes a queue ready.
    pub fn make_ready(&mut self, queue: u32, size: u32) -> Effect {
        self.set_up(queue, size, Self::areas(queue));
        self.store(reg::QUEUE_READY, 1)
    }

    /// Returns an active device with both queues ready.
    pub fn active(features: u64) -> Self {
        let mut bench = Self::new();
        bench.activate(features);
        bench
    }

    pub fn activate(&mut self, features: u64) {
        self.negotiate(features);
        for queue in 0..2 {
            assert_eq!(self.make_ready(queue, 8), Effect::default());
        }
        let effect = self.store(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(
            effect,
            Effect {
                event: Some(Event::Activated),
                ..Effect::default()
            }
        );
    }

    /// Resets an active device, with the daemon's answer.
    pub fn reset(&mut self) {
        let effect = self.store(reg::STATUS, 0);
        assert!(effect.retry);
        let Some(Event::Reset { generation }) = effect.event else {
            panic!("{effect:?}")
        };
        self.transport.quiesced(generation, &self.page).unwrap();
        assert!(!self.store(reg::STATUS, 0).retry);
    }
}
