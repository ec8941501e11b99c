//! The statements of the virtio specification on transport and basic facilities, each under its number in
//! virtio-checklist, and what a guest must not be able to cause.

use ringvisor::syndrome::Width;
use ringvisor::virtio::features::{bit, device};
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event, Rejected, Transport};

use crate::bench::{
    ACKNOWLEDGE, Bench, DRIVER, DRIVER_OK, FEATURES, FEATURES_OK, LIVE, NEEDS_RESET, block_spec, line,
};

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

// Virtio 1.2, 5.3.4.1: without negotiation, before DRIVER_OK and after; nothing else is written.
#[test]
fn emergency_writes_of_a_console() {
    let mut spec = block_spec();
    (spec.device_id, spec.features) = (device::CONSOLE, bit::VERSION_1 | bit::CONSOLE_EMERG_WRITE);
    let emergency = Effect {
        event: Some(Event::EmergencyWrite { byte: 0x41 }),
        ..Effect::default()
    };
    let mut bench = Bench::with(&spec);
    let before = bench.dump();
    assert_eq!(bench.store(reg::CONFIG + 8, 0x3_0041), emergency);
    assert_eq!(bench.dump(), before);
    bench.activate(bit::VERSION_1);
    let before = bench.dump();
    for width in [Width::Byte, Width::Half, Width::Word] {
        assert_eq!(bench.store_width(reg::CONFIG + 8, width, 0x41), emergency);
    }
    for offset in [0, 4, 9, 12] {
        assert_eq!(
            bench.store_width(reg::CONFIG + offset, Width::Byte, 0x41),
            Effect::default()
        );
    }
    assert_eq!(bench.dump(), before);
    // Not offered, and of another device.
    let mut others = [spec, spec];
    others[0].features = bit::VERSION_1;
    others[1].device_id = device::BLOCK;
    for spec in others {
        assert_eq!(Bench::with(&spec).store(reg::CONFIG + 8, 0x41), Effect::default());
    }
}
