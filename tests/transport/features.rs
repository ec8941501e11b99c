//! Statements of the virtio specification on feature negotiation, each under its number in virtio-checklist.

use ringvisor::virtio::features::{bit, missing_dependency};
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Spec, SpecError};

use crate::bench::{ACKNOWLEDGE, Bench, DRIVER, FEATURES, FEATURES_OK, LIVE, block_spec};

// virtio-checklist 4
#[test]
fn device_features_follow_their_selector() {
    let mut bench = Bench::new();
    for (sel, word) in [
        (1, FEATURES >> 32),
        (0, FEATURES & 0xffff_ffff),
        (2, 0),
        (3, 0),
        (u32::MAX, 0),
    ] {
        bench.store_inert(reg::DEVICE_FEATURES_SEL, sel);
        assert_eq!(u64::from(bench.read(reg::DEVICE_FEATURES)), word, "word {sel}");
    }
    bench.store_inert(reg::DEVICE_FEATURES_SEL, 0);
    bench.store_inert(reg::DRIVER_FEATURES_SEL, 1);
    assert_eq!(
        u64::from(bench.read(reg::DEVICE_FEATURES)),
        FEATURES & 0xffff_ffff,
        "not the driver's selector"
    );
}

// virtio-checklist 5
#[test]
fn driver_features_follow_their_own_selector() {
    let mut bench = Bench::new();
    bench.store_inert(reg::DEVICE_FEATURES_SEL, 1);
    bench.negotiate(bit::VERSION_1 | bit::BLK_FLUSH);
    assert_eq!(bench.state().features, bit::VERSION_1 | bit::BLK_FLUSH);
}

// virtio-checklist 29, 34, 66
#[test]
fn contradictory_devices_are_refused() {
    let refused = |change: &dyn Fn(&mut ringvisor::abi::command::DeviceSpec)| {
        let mut spec = block_spec();
        change(&mut spec);
        Spec::try_from(&spec).err()
    };
    assert_eq!(refused(&|_| {}), None);
    assert_eq!(refused(&|spec| spec.device_id = 0), Some(SpecError::DeviceId));
    assert_eq!(refused(&|spec| spec.queues = 0), Some(SpecError::QueueCount(0)));
    assert_eq!(refused(&|spec| spec.queues = 17), Some(SpecError::QueueCount(17)));
    assert_eq!(
        refused(&|spec| spec.queues = u32::MAX),
        Some(SpecError::QueueCount(u32::MAX))
    );
    assert_eq!(
        refused(&|spec| spec.queues = 3),
        Some(SpecError::QueueMax { queue: 2, max: 0 })
    );
    assert_eq!(
        refused(&|spec| spec.queue_max[1] = 3),
        Some(SpecError::QueueMax { queue: 1, max: 3 })
    );
    assert_eq!(
        refused(&|spec| spec.config_len = 257),
        Some(SpecError::ConfigLen(257))
    );
    assert_eq!(
        refused(&|spec| spec.features &= !bit::VERSION_1),
        Some(SpecError::NotVersion1)
    );
    assert_eq!(
        refused(&|spec| spec.features &= !bit::BLK_FLUSH),
        Some(SpecError::Dependency(11))
    );
    for unsupported in [24, 27, 30, 31, 33, 34, 37, 38, 39, 41, 42, 49] {
        assert_eq!(
            refused(&|spec| spec.features |= 1 << unsupported),
            Some(SpecError::Unsupported(1 << unsupported))
        );
    }
}

// virtio-checklist 29, 30
#[test]
fn feature_dependencies() {
    let net = |features: u64| missing_dependency(1, features);
    assert_eq!(net(0), None);
    assert_eq!(net(1 << 11), Some(11), "HOST_TSO4 without CSUM");
    assert_eq!(net(1 << 11 | 1), None);
    assert_eq!(net(1 << 13 | 1), Some(13), "HOST_ECN without either TSO");
    assert_eq!(net(1 << 13 | 1 << 12 | 1), None);
    assert_eq!(net(1 << 22), Some(22), "MQ without CTRL_VQ");
    assert_eq!(
        missing_dependency(2, 1 << 11),
        None,
        "numbers are the device type's own"
    );

    let mut spec = block_spec();
    spec.device_id = 1;
    spec.features = bit::VERSION_1 | 1 << 11 | 1;
    let mut bench = Bench::with(&spec);
    bench.negotiate(bit::VERSION_1 | 1 << 11);
    assert_eq!(bench.read(reg::STATUS) & FEATURES_OK, 0);
    bench.accept(bit::VERSION_1 | 1 << 11 | 1);
    bench.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(bench.read(reg::STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

// virtio-checklist 30, 34
#[test]
fn features_ok_only_for_a_valid_subset() {
    for (features, fine) in [
        (bit::VERSION_1, true),
        (FEATURES, true),
        (FEATURES & !bit::VERSION_1, false),
        (0, false),
        (bit::VERSION_1 | 1, false),
        (bit::VERSION_1 | 1 << 34, false),
        (bit::VERSION_1 | 1 << 63, false),
    ] {
        let mut bench = Bench::new();
        bench.negotiate(features);
        assert_eq!(bench.read(reg::STATUS) & FEATURES_OK != 0, fine, "{features:#x}");
        bench.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER);
        if !fine {
            bench.store_inert(reg::STATUS, LIVE);
            assert_eq!(
                bench.read(reg::STATUS),
                ACKNOWLEDGE | DRIVER,
                "nor DRIVER_OK then"
            );
        }
    }
    // Bits that cannot be offered.
    for sel in [2, 3, u32::MAX] {
        let mut bench = Bench::new();
        bench.store_inert(reg::DRIVER_FEATURES_SEL, sel);
        bench.store_inert(reg::DRIVER_FEATURES, 0);
        let mut harmless = Bench {
            transport: bench.transport.clone(),
            page: bench.page.clone(),
        };
        harmless.negotiate(bit::VERSION_1);
        assert_ne!(harmless.read(reg::STATUS) & FEATURES_OK, 0);
        bench.store_inert(reg::DRIVER_FEATURES, 0x80);
        bench.negotiate(bit::VERSION_1);
        assert_eq!(bench.read(reg::STATUS) & FEATURES_OK, 0);
        bench.store_inert(reg::STATUS, 0);
        bench.negotiate(bit::VERSION_1);
        assert_ne!(bench.read(reg::STATUS) & FEATURES_OK, 0, "forgotten by reset");
    }
}

// virtio-checklist 30: features are final.
#[test]
fn features_are_fixed_by_features_ok() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1 | bit::BLK_FLUSH);
    bench.accept(FEATURES);
    assert_eq!(bench.state().features, bit::VERSION_1 | bit::BLK_FLUSH);
}

// virtio-checklist 32
#[test]
fn the_same_features_are_accepted_again() {
    let mut bench = Bench::active(FEATURES);
    for _ in 0..3 {
        bench.reset();
        bench.activate(FEATURES);
        assert_eq!(bench.state().features, FEATURES);
    }
}

// virtio-checklist 35: the transport only carries the bit to the daemon.
#[test]
fn in_order_reaches_the_daemon_only_if_negotiated() {
    assert_ne!(
        Bench::active(bit::VERSION_1 | bit::IN_ORDER).state().features & bit::IN_ORDER,
        0
    );
    assert_eq!(Bench::active(bit::VERSION_1).state().features & bit::IN_ORDER, 0);
}
