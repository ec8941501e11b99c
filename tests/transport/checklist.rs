//! The statements of the virtio specification on transport and basic facilities, each under its number in
//! virtio-checklist, and what a guest must not be able to cause.

use ringvisor::syndrome::Width;
use ringvisor::virtio::features::{bit, missing_dependency};
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event, Rejected, Spec, SpecError, Transport};

use crate::bench::{ACKNOWLEDGE, Bench, DRIVER, DRIVER_OK, FEATURES, FEATURES_OK, NEEDS_RESET, block_spec};

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn line(level: bool) -> Effect {
    Effect {
        line: Some(level),
        ..Effect::default()
    }
}

// virtio-checklist 1, 2, 3
#[test]
fn identification() {
    let mut bench = Bench::new();
    for offset in [
        reg::MAGIC_VALUE,
        reg::VERSION_OFFSET,
        reg::DEVICE_ID,
        reg::VENDOR_ID,
    ] {
        bench.store_inert(offset, 0x5555_5555);
    }
    assert_eq!(bench.read(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(bench.read(reg::VERSION_OFFSET), 2);
    assert_eq!(bench.read(reg::DEVICE_ID), 2);
    assert_eq!(bench.read(reg::VENDOR_ID), 0x7276);
}

#[test]
fn an_empty_slot_has_device_0_and_ignores_stores() {
    let mut bench = Bench::new();
    bench.transport = Transport::empty();
    bench.transport.write_page(&bench.page);
    assert_eq!(bench.read(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(bench.read(reg::VERSION_OFFSET), 2);
    assert_eq!(bench.read(reg::DEVICE_ID), 0);
    let before = bench.dump();
    for offset in (0..0x1000).step_by(if cfg!(miri) { 31 } else { 1 }) {
        for value in [0, 1, 0xf, u32::MAX] {
            bench.store_inert(offset, value);
        }
    }
    assert_eq!(bench.transport.used_buffer(&bench.page), Effect::default());
    assert_eq!(bench.dump(), before);
}

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

// virtio-checklist 6; torture a8
#[test]
fn an_absent_queue_reads_zero_and_ignores_stores() {
    let mut bench = Bench::new();
    for (queue, max) in [(0, 256), (1, 8)] {
        bench.store_inert(reg::QUEUE_SEL, queue);
        assert_eq!(bench.read(reg::QUEUE_NUM_MAX), max);
    }
    for queue in [2, 15, 16, 0x1_0000, u32::MAX] {
        bench.store_inert(reg::QUEUE_SEL, queue);
        let before = bench.dump();
        assert_eq!(bench.read(reg::QUEUE_NUM_MAX), 0);
        for offset in (reg::QUEUE_NUM_MAX..=reg::QUEUE_READY).chain(reg::QUEUE_DESC_LOW..=reg::QUEUE_RESET) {
            for value in [0, 1, 8, 0x4000_0000] {
                bench.store_inert(offset, value);
            }
        }
        assert_eq!(bench.dump(), before);
    }
}

// virtio-checklist 7
#[test]
fn queue_ready_reads_the_last_value_written() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    assert_eq!(bench.make_ready(1, 8), Effect::default());
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    bench.store_inert(reg::QUEUE_SEL, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "each queue has its own");
    bench.store_inert(reg::QUEUE_SEL, 1);
    bench.store_inert(reg::QUEUE_READY, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    for value in [2, 3, u32::MAX] {
        bench.store_inert(reg::QUEUE_READY, value);
        assert_eq!(bench.read(reg::QUEUE_READY), 0, "{value:#x} means nothing");
    }
}

// virtio-checklist 7, 13: an active queue is stopped only when the daemon no longer uses it.
#[test]
fn queue_ready_0_waits_for_the_daemon() {
    let mut bench = Bench::active(bit::VERSION_1);
    bench.store_inert(reg::QUEUE_SEL, 1);
    let first = bench.store(reg::QUEUE_READY, 0);
    assert!(first.retry);
    assert_eq!(first.event, Some(Event::QueueStop { queue: 1 }));
    assert_eq!(
        bench.store(reg::QUEUE_READY, 0),
        Effect {
            retry: true,
            ..Effect::default()
        },
        "one event"
    );
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    assert_eq!(bench.state().queue[1].ready, 2);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    let generation = bench.state().reset_generation;
    assert_eq!(
        bench.transport.queue_quiesced(0, generation, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(
        bench.transport.queue_quiesced(1, generation + 1, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(
        bench.transport.queue_quiesced(99, generation, &bench.page),
        Err(Rejected::Stale)
    );
    assert_eq!(bench.transport.queue_quiesced(1, generation, &bench.page), Ok(()));
    assert_eq!(
        bench.state().queue[1].ready,
        0,
        "a new daemon does not use it either"
    );
    assert_eq!(
        bench.transport.queue_quiesced(1, generation, &bench.page),
        Err(Rejected::Stale)
    );
    bench.store_inert(reg::QUEUE_READY, 0);
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert_eq!(
        bench.store(reg::QUEUE_NOTIFY, 0).event,
        Some(Event::Notify { queue: 0 }),
        "the other one lives"
    );
    let again = bench.store(reg::QUEUE_READY, 1);
    assert_eq!(again.event, Some(Event::QueueReady { queue: 1 }));
    assert_eq!(bench.state().queue[1].desc, Bench::areas(1)[0]);
}

// virtio-checklist 8, 9, 10
#[test]
fn interrupt_status_stays_until_acknowledged() {
    let mut bench = Bench::active(bit::VERSION_1);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(bench.transport.used_buffer(&bench.page), line(true));
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 1);
    assert_eq!(bench.transport.used_buffer(&bench.page), Effect::default());
    bench.store_inert(reg::INTERRUPT_ACK, 2);
    bench.store_inert(reg::INTERRUPT_ACK, 0xffff_fffc);
    assert_eq!(
        bench.read(reg::INTERRUPT_STATUS),
        1,
        "other bits acknowledge nothing"
    );
    assert_eq!(
        bench.transport.config_changed(0, &[9], &bench.page),
        Ok(Effect::default())
    );
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 3);
    bench.store_inert(reg::INTERRUPT_ACK, 1);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(bench.store(reg::INTERRUPT_ACK, u32::MAX), line(false));
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    bench.store_inert(reg::INTERRUPT_STATUS, 3);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0, "read-only");
}

// virtio-checklist 11, 12, 23, 24
#[test]
fn reset_clears_everything_and_stops_the_device() {
    let mut bench = Bench::active(bit::VERSION_1);
    let _ = bench.transport.used_buffer(&bench.page);
    let first = bench.store(reg::STATUS, 0);
    assert_eq!(first.event, Some(Event::Reset { generation: 1 }));
    assert!(first.retry);
    assert_eq!(bench.read(reg::STATUS), LIVE, "not before the daemon has let go");
    assert_eq!(bench.state().reset_pending, 1);
    bench.store_inert(reg::QUEUE_NOTIFY, 0);
    assert_eq!(bench.transport.quiesced(0, &bench.page), Err(Rejected::Stale));
    assert_eq!(bench.transport.quiesced(1, &bench.page), Ok(()));
    assert_eq!(bench.transport.quiesced(1, &bench.page), Err(Rejected::Stale));
    assert_eq!(
        bench.read(reg::STATUS),
        LIVE,
        "not before the driver's store is retried"
    );
    assert_eq!(
        bench.state().status,
        0,
        "but a new daemon finds nothing to work on"
    );
    assert_eq!(bench.state().queue[0].ready, 0);
    assert_eq!(bench.store(reg::STATUS, 0), line(false));
    assert_eq!(bench.read(reg::STATUS), 0);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    for queue in 0..2 {
        bench.store_inert(reg::QUEUE_SEL, queue);
        assert_eq!(bench.read(reg::QUEUE_READY), 0);
        bench.store_inert(reg::QUEUE_NOTIFY, queue);
    }
    assert_eq!(bench.transport.used_buffer(&bench.page), Effect::default());
    assert_eq!(bench.transport.needs_reset(&bench.page), Effect::default());
    assert_eq!(bench.read(reg::STATUS), 0);
}

// virtio-checklist 13
#[test]
fn a_queue_that_is_not_ready_is_not_notified() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(0, 8);
    let _ = bench.store(reg::STATUS, LIVE);
    assert_eq!(
        bench.store(reg::QUEUE_NOTIFY, 0).event,
        Some(Event::Notify { queue: 0 })
    );
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert_eq!(bench.state().queue[1].ready, 0);
}

// virtio-checklist 14, 15
#[test]
fn config_generation_changes_with_the_configuration_and_only_then() {
    let mut bench = Bench::active(bit::VERSION_1);
    let before = bench.read(reg::CONFIG_GENERATION);
    let _ = bench.transport.used_buffer(&bench.page);
    let _ = bench.store(reg::INTERRUPT_ACK, 1);
    bench.reset();
    bench.activate(bit::VERSION_1);
    assert_eq!(
        bench.transport.config_changed(0, &[1, 2, 3], &bench.page),
        Ok(Effect::default()),
        "the same bytes"
    );
    assert_eq!(
        bench.transport.config_changed(60, &[0; 5], &bench.page),
        Err(Rejected::OutOfConfig)
    );
    assert_eq!(
        bench.transport.config_changed(u16::MAX, &[0], &bench.page),
        Err(Rejected::OutOfConfig)
    );
    assert_eq!(bench.read(reg::CONFIG_GENERATION), before);
    assert_eq!(
        bench.transport.config_changed(0, &[7; 8], &bench.page),
        Ok(line(true))
    );
    assert_ne!(bench.read(reg::CONFIG_GENERATION), before);
    assert_eq!(bench.read(reg::CONFIG), 0x0707_0707);
    assert_eq!(
        bench.read(reg::CONFIG + 8),
        0x0c0b_0a09,
        "the neighbours are untouched"
    );
}

// virtio-checklist 16
#[test]
fn status_0_resets_an_inactive_device_at_once() {
    let mut bench = Bench::new();
    let fresh = bench.page.clone();
    bench.store_inert(reg::DEVICE_FEATURES_SEL, 1);
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(0, 8);
    bench.store_inert(reg::STATUS, 0);
    assert_eq!(bench.page, fresh, "selectors too are as after power-on");
    assert_eq!(bench.state().features, 0);
}

// virtio-checklist 17
#[test]
fn the_line_follows_interrupt_status() {
    let mut bench = Bench::active(bit::VERSION_1);
    assert!(!bench.transport.line());
    let _ = bench.transport.used_buffer(&bench.page);
    let _ = bench.transport.config_changed(1, &[0xff], &bench.page);
    assert!(bench.transport.line());
    bench.store_inert(reg::INTERRUPT_ACK, 2);
    assert!(bench.transport.line(), "one event is left");
    assert_eq!(bench.store(reg::INTERRUPT_ACK, 1), line(false));
    assert!(!bench.transport.line());
}

// virtio-checklist 18
#[test]
fn there_is_no_shared_memory() {
    let mut bench = Bench::new();
    for sel in [0, 1, u32::MAX] {
        bench.store_inert(reg::SHM_SEL, sel);
        for offset in [
            reg::SHM_LEN_LOW,
            reg::SHM_LEN_HIGH,
            reg::SHM_BASE_LOW,
            reg::SHM_BASE_HIGH,
        ] {
            bench.store_inert(offset, 0);
            assert_eq!(bench.read(offset), u32::MAX);
        }
    }
}

// virtio-checklist 19, 36
#[test]
fn queue_reset() {
    let mut bench = Bench::active(bit::VERSION_1 | bit::RING_RESET);
    bench.store_inert(reg::QUEUE_SEL, 1);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0);
    bench.store_inert(reg::QUEUE_RESET, 0);
    bench.store_inert(reg::QUEUE_RESET, 2);
    assert_eq!(
        bench.store(reg::QUEUE_RESET, 1),
        Effect {
            event: Some(Event::QueueStop { queue: 1 }),
            ..Effect::default()
        },
        "the store itself does not wait"
    );
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (1, 1),
        "as long as it lasts"
    );
    bench.store_inert(reg::QUEUE_RESET, 1);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    assert!(bench.store(reg::QUEUE_READY, 0).retry);
    bench.store_inert(reg::QUEUE_SEL, 0);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0, "the other queue is not");
    bench.store_inert(reg::QUEUE_SEL, 1);
    let generation = bench.state().reset_generation;
    bench
        .transport
        .queue_quiesced(1, generation, &bench.page)
        .unwrap();
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (0, 0)
    );
    bench.store_inert(reg::QUEUE_READY, 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
    // Its setup is cleared: making it ready without a new one is an error, a new one works.
    let mut forgotten = Bench {
        transport: bench.transport.clone(),
        page: bench.page.clone(),
    };
    assert_eq!(
        forgotten.store(reg::QUEUE_READY, 1).event,
        Some(Event::NeedsReset)
    );
    assert_eq!(bench.make_ready(1, 4).event, Some(Event::QueueReady { queue: 1 }));
    assert_eq!(bench.state().queue[1].size, 4);
    assert_eq!(bench.read(reg::QUEUE_RESET), 0);
}

// virtio-checklist 19
#[test]
fn queue_reset_of_a_queue_that_was_being_stopped() {
    let mut bench = Bench::active(bit::VERSION_1 | bit::RING_RESET);
    let generation = bench.state().reset_generation;
    bench.store_inert(reg::QUEUE_SEL, 0);
    let _ = bench.store(reg::QUEUE_READY, 0);
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.read(reg::QUEUE_RESET), 1);
    bench
        .transport
        .queue_quiesced(0, generation, &bench.page)
        .unwrap();
    assert_eq!(bench.read(reg::QUEUE_READY), 0);
    // After the stop and before the store is retried: at once.
    bench.store_inert(reg::QUEUE_SEL, 1);
    let _ = bench.store(reg::QUEUE_READY, 0);
    bench
        .transport
        .queue_quiesced(1, generation, &bench.page)
        .unwrap();
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(
        (bench.read(reg::QUEUE_RESET), bench.read(reg::QUEUE_READY)),
        (0, 0)
    );
}

// virtio-checklist 19: only if negotiated, and only for existing queues.
#[test]
fn queue_reset_not_negotiated_is_inert() {
    let mut bench = Bench::active(bit::VERSION_1);
    let before = bench.dump();
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.dump(), before);
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1 | bit::RING_RESET);
    let _ = bench.make_ready(0, 8);
    bench.store_inert(reg::QUEUE_RESET, 1);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "not live: at once");
}

// virtio-checklist 20, 54
#[test]
fn configuration_space_is_little_endian_bytes_and_its_tail_zero() {
    let bench = Bench::new();
    assert_eq!(bench.read(reg::CONFIG), 0x0403_0201);
    assert_eq!(bench.read(reg::CONFIG + 32), 0x2423_2201, "writeback is 1");
    for offset in (reg::CONFIG + 64..reg::END).step_by(4) {
        assert_eq!(bench.read(offset), 0);
    }
    // Bytes that the daemon leaves past its own length are not visible.
    let mut spec = block_spec();
    spec.config = [0xff; 256];
    spec.config_len = 61;
    let bench = Bench::with(&spec);
    assert_eq!(bench.read(reg::CONFIG + 60), 0xff);
    assert_eq!(bench.read(reg::CONFIG + 64), 0);
}

// virtio-checklist 21; torture a2
#[test]
fn undefined_and_read_only_registers_ignore_stores() {
    let writable = [
        reg::DEVICE_FEATURES_SEL,
        reg::DRIVER_FEATURES,
        reg::DRIVER_FEATURES_SEL,
        reg::QUEUE_SEL,
        reg::QUEUE_NUM,
        reg::QUEUE_READY,
        reg::QUEUE_NOTIFY,
        reg::INTERRUPT_ACK,
        reg::STATUS,
        reg::QUEUE_DESC_LOW,
        reg::QUEUE_DESC_HIGH,
        reg::QUEUE_DRIVER_LOW,
        reg::QUEUE_DRIVER_HIGH,
        reg::QUEUE_DEVICE_LOW,
        reg::QUEUE_DEVICE_HIGH,
        reg::SHM_SEL,
        reg::QUEUE_RESET,
    ];
    let mut bench = Bench::active(FEATURES);
    let before = bench.dump();
    for offset in (0..0x1000).step_by(if cfg!(miri) { 31 } else { 1 }) {
        for width in Width::ALL {
            if width == Width::Word && writable.contains(&offset) {
                continue;
            }
            if width == Width::Byte && offset == reg::CONFIG + 32 {
                continue;
            }
            for value in [0, 1, 2, 0x4000_0000, u64::MAX] {
                assert_eq!(
                    bench.store_width(offset, width, value),
                    Effect::default(),
                    "{offset:#x} {width:?}"
                );
            }
        }
    }
    assert_eq!(bench.dump(), before);
}

// virtio-checklist 21
#[test]
fn write_only_registers_read_zero() {
    let mut bench = Bench::active(bit::VERSION_1);
    bench.store_inert(reg::QUEUE_SEL, 1);
    let _ = bench.store(reg::QUEUE_NOTIFY, 1);
    for offset in [
        reg::DEVICE_FEATURES_SEL,
        reg::DRIVER_FEATURES,
        reg::DRIVER_FEATURES_SEL,
        reg::QUEUE_SEL,
        reg::QUEUE_NUM,
        reg::QUEUE_NOTIFY,
        reg::INTERRUPT_ACK,
        reg::QUEUE_DESC_LOW,
        reg::QUEUE_DESC_HIGH,
        reg::QUEUE_DRIVER_LOW,
        reg::QUEUE_DRIVER_HIGH,
        reg::QUEUE_DEVICE_LOW,
        reg::QUEUE_DEVICE_HIGH,
        reg::SHM_SEL,
    ] {
        assert_eq!(bench.read(offset), 0, "{offset:#x}");
    }
}

// virtio-checklist 22; torture a7
#[test]
fn a_ready_queue_keeps_its_size_and_addresses() {
    for active in [false, true] {
        let mut bench = Bench::new();
        bench.negotiate(bit::VERSION_1);
        let _ = bench.make_ready(0, 8);
        if active {
            let _ = bench.store(reg::STATUS, LIVE);
        }
        bench.set_up(0, 16, [0x4010_0000, 0, u64::MAX]);
        bench.store_inert(reg::QUEUE_READY, 1);
        if !active {
            let _ = bench.store(reg::STATUS, LIVE);
        }
        let queue = bench.state().queue[0];
        assert_eq!((queue.size, queue.ready), (8, 1));
        assert_eq!([queue.desc, queue.driver, queue.device], Bench::areas(0));
    }
}

// virtio-checklist 25, 26
#[test]
fn nothing_happens_before_driver_ok() {
    let mut bench = Bench::new();
    bench.store_inert(reg::QUEUE_NOTIFY, 0);
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(0, 8);
    bench.store_inert(reg::QUEUE_NOTIFY, 0);
    assert_eq!(bench.transport.used_buffer(&bench.page), Effect::default());
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(
        bench.state().queue[0].ready,
        0,
        "a daemon that attaches sees no queue either"
    );
    let _ = bench.store(reg::STATUS, LIVE);
    assert_eq!(bench.state().queue[0].ready, 1);
    assert_eq!(
        bench.store(reg::QUEUE_NOTIFY, 0).event,
        Some(Event::Notify { queue: 0 })
    );
    assert_eq!(bench.transport.used_buffer(&bench.page), line(true));
}

// virtio-checklist 27, 28
#[test]
fn a_fatal_error_sets_needs_reset_and_interrupts() {
    let mut bench = Bench::active(bit::VERSION_1);
    assert_eq!(bench.transport.needs_reset(&bench.page), line(true));
    assert_eq!(bench.read(reg::STATUS), LIVE | NEEDS_RESET);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
    bench.store_inert(reg::QUEUE_NOTIFY, 0);
    let _ = bench.store(reg::INTERRUPT_ACK, 2);
    assert_eq!(
        bench.transport.needs_reset(&bench.page),
        Effect::default(),
        "once"
    );
    bench.store_inert(reg::STATUS, LIVE);
    assert_eq!(bench.read(reg::STATUS), LIVE | NEEDS_RESET, "only a reset helps");
    bench.reset();
    assert_eq!(bench.read(reg::STATUS), 0);
    bench.activate(bit::VERSION_1);
}

// virtio-checklist 27, 28: before DRIVER_OK there is no notification.
#[test]
fn an_error_before_driver_ok_only_sets_needs_reset() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    assert_eq!(bench.make_ready(0, 3), Effect::default());
    assert_eq!(
        bench.read(reg::STATUS),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | NEEDS_RESET
    );
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    bench.store_inert(reg::STATUS, LIVE);
    assert_eq!(bench.read(reg::STATUS) & DRIVER_OK, 0);
    bench.store_inert(reg::STATUS, 0);
    assert_eq!(bench.read(reg::STATUS), 0, "never active: reset at once");
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

// virtio-checklist 33
#[test]
fn configuration_is_readable_from_the_start_and_not_writable() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(reg::CONFIG), 0x0403_0201);
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Byte, 0),
        Effect::default()
    );
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 1);
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

// virtio-checklist 52, 53
#[test]
fn writeback_is_the_one_field_a_driver_writes() {
    let wce = bit::VERSION_1 | bit::BLK_FLUSH | bit::BLK_CONFIG_WCE;
    let mut bench = Bench::active(wce);
    let event = Event::ConfigWrite { offset: 32, value: 0 };
    let effect = bench.store_width(reg::CONFIG + 32, Width::Byte, 0);
    assert_eq!(
        effect,
        Effect {
            event: Some(event),
            ..Effect::default()
        }
    );
    assert_eq!(bench.read(reg::CONFIG + 32), 0x2423_2200);
    assert_eq!(bench.state().config[32], 0);
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Byte, 0),
        Effect::default(),
        "changes nothing"
    );
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Byte, 2),
        Effect::default(),
        "means nothing"
    );
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Word, 1),
        Effect::default(),
        "not an 8-bit store"
    );
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 0);
    bench.reset();
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 1, "as it was after power-on");

    let mut bench = Bench::active(bit::VERSION_1 | bit::BLK_FLUSH);
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Byte, 0),
        Effect::default(),
        "not negotiated"
    );
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 1);

    let mut bench = Bench::active(bit::VERSION_1 | bit::BLK_CONFIG_WCE);
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 0, "without FLUSH it reads 0");
    assert_eq!(
        bench.store_width(reg::CONFIG + 32, Width::Byte, 1),
        Effect::default()
    );
    assert_eq!(bench.read(reg::CONFIG + 32) & 0xff, 0);
}
