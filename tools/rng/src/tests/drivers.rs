//! The entropy driver of the `virtio-drivers` crate as the guest, on a transport that adds its queues to a
//! reactor.

use std::sync::Arc;

use ringvirtio::fake::{FakeDevice, FakeTransport, Ram, with_reactor};
use ringvirtio::{QueueHandler, QueueSetup};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::{MAX_BYTES, QUEUE_SIZE_MAX, Rng, RngQueue, features};

/// The device under test.
struct Tested(Arc<Rng>);

impl FakeDevice for Tested {
    const TYPE: DeviceType = DeviceType::EntropySource;
    const QUEUE_SIZE_MAX: u16 = QUEUE_SIZE_MAX;

    fn features(&self) -> u64 {
        features()
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn queue(&self, number: u16, setup: QueueSetup) -> Box<dyn QueueHandler> {
        assert_eq!(number, 0);
        Box::new(RngQueue::new(self.0.clone(), setup).unwrap())
    }
}

#[test]
fn a_driver_gets_random_bytes() {
    for io_uring in [true, false] {
        with_reactor(io_uring, |handle| {
            let transport = FakeTransport::new(Tested(Rng::new()), handle);
            let mut driver = VirtIORng::<Ram, _>::new(transport).unwrap();
            let (mut ones, mut total) = (0, 0);
            for round in 0..500 {
                let mut bytes = vec![0; 1 + round % 300];
                let filled = driver.request_entropy(&mut bytes).unwrap();
                assert_eq!(filled, bytes.len().min(MAX_BYTES));
                ones += bytes[..filled].iter().map(|byte| byte.count_ones()).sum::<u32>();
                total += filled as u32 * 8;
            }
            // Half of some 500 000 bits, within 20 standard deviations.
            assert!(
                (ones as f64 / total as f64 - 0.5).abs() < 0.015,
                "{ones} of {total}"
            );
        });
    }
}
