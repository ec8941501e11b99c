//! Stores of a hostile guest to its registers.

use ringvisor::virtio::features::bit;
use ringvisor::virtio::registers as reg;
use ringvisor::virtio::{Effect, Event};

use crate::bench::{ACKNOWLEDGE, Bench, DRIVER, DRIVER_OK, FAILED, FEATURES, FEATURES_OK, NEEDS_RESET};

const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Sets up queue 0 with these values, once before and once after DRIVER_OK: refused, and never visible to the
/// daemon.
fn refused(size: u32, areas: [u64; 3]) {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    bench.set_up(0, size, areas);
    bench.store_inert(reg::QUEUE_READY, 1);
    assert_eq!(bench.read(reg::QUEUE_READY), 0, "{size} {areas:x?}");
    assert_ne!(bench.read(reg::STATUS) & NEEDS_RESET, 0, "{size} {areas:x?}");

    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(1, 8);
    let _ = bench.store(reg::STATUS, LIVE);
    bench.set_up(0, size, areas);
    let expected = Effect {
        event: Some(Event::NeedsReset),
        line: Some(true),
        retry: false,
    };
    assert_eq!(bench.store(reg::QUEUE_READY, 1), expected);
    assert_eq!(bench.read(reg::STATUS), LIVE | NEEDS_RESET);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(bench.state().queue[0].ready, 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 0);
    bench.store_inert(reg::QUEUE_NOTIFY, 1);
}

// torture a5
#[test]
fn bad_sizes() {
    for size in [0, 3, 255, 257, 512, 0x1_0000, 0x8000_0000, u32::MAX] {
        refused(size, Bench::areas(0));
    }
}

// torture a6
#[test]
fn misaligned_areas() {
    let [desc, driver, device] = Bench::areas(0);
    for off in [1, 2, 4, 8, 15] {
        refused(8, [desc + off, driver, device]);
    }
    refused(8, [desc, driver + 1, device]);
    for off in [1, 2, 3] {
        refused(8, [desc, driver, device + off]);
    }
}

// torture a6: before, after, across the end, across the hole, wrapping, in device space.
#[test]
fn areas_outside_ram() {
    let good = Bench::areas(0);
    // Of 256 entries: 4096, 518 and 2054 bytes.
    let parts = [(0, 4096), (1, 518), (2, 2054)];
    for (part, len) in parts.into_iter().take(if cfg!(miri) { 1 } else { 3 }) {
        let last = (0x4010_0000 - len) & !15;
        for bad in [
            0,
            0x0800_0000,
            0x0a00_0000,
            0x3fff_fff0,
            last + 16,
            0x4010_0000,
            0x401f_fff0,
            0x4030_0000,
            0x1_4000_0000,
            !15,
            u64::MAX - 0xfff + 16,
        ] {
            let mut areas = good;
            areas[part] = bad;
            if part > 0 && bad == u64::MAX - 0xfff + 16 {
                continue; // it fits there
            }
            refused(256, areas);
        }
        let mut areas = good;
        areas[part] = last;
        let mut bench = Bench::new();
        bench.negotiate(bit::VERSION_1);
        bench.set_up(0, 256, areas);
        bench.store_inert(reg::QUEUE_READY, 1);
        assert_eq!(bench.read(reg::QUEUE_READY), 1, "the last place that fits");
    }
}

// torture a6
#[test]
fn overlapping_areas_are_accepted() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    bench.set_up(0, 256, [0x4000_0000; 3]);
    bench.store_inert(reg::QUEUE_READY, 1);
    assert_eq!(bench.read(reg::QUEUE_READY), 1);
    assert_eq!(bench.read(reg::STATUS) & NEEDS_RESET, 0);
}

// torture a7: halves of addresses written while the queue is ready have no effect later either.
#[test]
fn addresses_written_while_ready_are_ignored() {
    let mut bench = Bench::new();
    bench.negotiate(bit::VERSION_1);
    let _ = bench.make_ready(0, 8);
    bench.store_inert(reg::QUEUE_DESC_HIGH, 0xffff_ffff);
    bench.store_inert(reg::QUEUE_READY, 0);
    bench.store_inert(reg::QUEUE_READY, 1);
    let _ = bench.store(reg::STATUS, LIVE);
    assert_eq!(bench.state().queue[0].desc, Bench::areas(0)[0]);
}

// torture a9: whatever else two vCPUs do, Status reads 0 only after the daemon no longer uses the device.
#[test]
fn resets_from_two_vcpus() {
    let mut bench = Bench::active(bit::VERSION_1);
    let mut events = 0;
    for round in 0..if cfg!(miri) { 3 } else { 10_000u64 } {
        // Both store 0; the second finds the first one's reset pending.
        for _ in 0..2 {
            let effect = bench.store(reg::STATUS, 0);
            assert!(effect.retry);
            events += u64::from(effect.event.is_some());
        }
        assert_eq!(events, round + 1, "the daemon gets one event");
        let _ = bench.transport.used_buffer(&bench.page);
        assert_ne!(bench.read(reg::STATUS), 0);
        let generation = bench.state().reset_generation;
        bench.transport.quiesced(generation, &bench.page).unwrap();
        assert!(
            !bench.store(reg::STATUS, 0).retry,
            "the first one's store is retried"
        );
        assert_eq!(bench.read(reg::STATUS), 0);
        if round % 2 == 0 {
            // The second one's store resets a device that is reset already.
            assert!(!bench.store(reg::STATUS, 0).retry);
            assert_eq!(bench.read(reg::STATUS), 0);
        }
        bench.activate(bit::VERSION_1);
    }
}

// torture a9, a12: a retried store to Status that comes late resets a device that another vCPU has
// initialized again; it is a reset of its own, with its own event for the daemon.
#[test]
fn a_late_reset_is_a_new_reset() {
    let mut bench = Bench::active(bit::VERSION_1);
    assert!(bench.store(reg::STATUS, 0).retry); // vCPU A
    assert!(bench.store(reg::STATUS, 0).retry); // vCPU B
    bench.transport.quiesced(1, &bench.page).unwrap();
    assert!(!bench.store(reg::STATUS, 0).retry); // B
    bench.activate(bit::VERSION_1); // B
    let late = bench.store(reg::STATUS, 0); // A
    assert!(late.retry);
    let Some(Event::Reset { generation }) = late.event else {
        panic!("{late:?}")
    };
    assert!(
        bench.transport.quiesced(1, &bench.page).is_err(),
        "the old answer is stale"
    );
    bench.transport.quiesced(generation, &bench.page).unwrap();
    assert!(!bench.store(reg::STATUS, 0).retry);
    assert_eq!(bench.read(reg::STATUS), 0);
}

// torture a9: a reset is pending, and a queue is stopped meanwhile.
#[test]
fn stopping_a_queue_during_a_reset() {
    let mut bench = Bench::active(bit::VERSION_1);
    assert!(bench.store(reg::STATUS, 0).retry);
    bench.store_inert(reg::QUEUE_SEL, 0);
    assert!(bench.store(reg::QUEUE_READY, 0).retry);
    bench.transport.quiesced(1, &bench.page).unwrap();
    bench.store_inert(reg::QUEUE_READY, 0);
    assert_eq!(
        bench.read(reg::QUEUE_READY),
        0,
        "the daemon has quiesced all queues"
    );
    bench.store_inert(reg::QUEUE_READY, 1);
    assert_eq!(
        bench.state().queue[0].ready,
        0,
        "it sees no queue between answer and reset"
    );
    let _ = bench.store(reg::STATUS, 0);
    assert_eq!(bench.read(reg::STATUS), 0);
}

// torture a10
#[test]
fn notifications_of_any_value() {
    let mut bench = Bench::active(bit::VERSION_1);
    let before = bench.dump();
    for value in [2, 15, 16, 17, 255, 256, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX] {
        bench.store_inert(reg::QUEUE_NOTIFY, value);
    }
    for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
        assert_eq!(
            bench.store(reg::QUEUE_NOTIFY, 1).event,
            Some(Event::Notify { queue: 1 })
        );
    }
    assert_eq!(bench.dump(), before);
}

// torture a11
#[test]
fn status_bits_are_set_in_order() {
    let mut bench = Bench::new();
    bench.store_inert(reg::STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.read(reg::STATUS), DRIVER, "no features were accepted");
    bench.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER);
    assert_eq!(
        bench.read(reg::STATUS),
        ACKNOWLEDGE | DRIVER,
        "two at once are fine"
    );
    bench.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(bench.read(reg::STATUS), ACKNOWLEDGE | DRIVER);
    bench.store_inert(reg::STATUS, NEEDS_RESET | 0xffff_ff30);
    assert_eq!(
        bench.read(reg::STATUS),
        ACKNOWLEDGE | DRIVER,
        "not the driver's bits"
    );
    bench.accept(bit::VERSION_1);
    bench.store_inert(reg::STATUS, FEATURES_OK);
    bench.store_inert(reg::STATUS, ACKNOWLEDGE);
    assert_eq!(
        bench.read(reg::STATUS),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "and never back"
    );
    assert_eq!(bench.store(reg::STATUS, LIVE).event, Some(Event::Activated));
    bench.store_inert(reg::STATUS, LIVE);
    bench.store_inert(reg::STATUS, LIVE | FAILED);
    assert_eq!(bench.read(reg::STATUS), LIVE | FAILED);
}

// U-Boot 2023.01 sets no ACKNOWLEDGE after its reset.
#[test]
fn a_device_works_for_a_driver_that_does_not_acknowledge_it() {
    let mut bench = Bench::new();
    bench.store_inert(reg::STATUS, DRIVER);
    bench.accept(bit::VERSION_1);
    bench.store_inert(reg::STATUS, DRIVER | FEATURES_OK);
    assert_eq!(bench.read(reg::STATUS), DRIVER | FEATURES_OK);
    let active = DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(bench.store(reg::STATUS, active).event, Some(Event::Activated));
    assert_eq!(bench.read(reg::STATUS), active);
}

#[test]
fn after_failed_only_a_reset_has_an_effect() {
    let mut bench = Bench::new();
    bench.store_inert(reg::STATUS, ACKNOWLEDGE | DRIVER | FAILED);
    assert_eq!(bench.read(reg::STATUS), FAILED);
    bench.store_inert(reg::STATUS, ACKNOWLEDGE);
    assert_eq!(bench.read(reg::STATUS), FAILED);
    bench.store_inert(reg::STATUS, 0);
    bench.activate(bit::VERSION_1);
}

// torture a13: in every order of acknowledgement and completion, the last completion is either still in
// InterruptStatus with the line high, or was acknowledged after it was set.
#[test]
fn acknowledgements_and_completions_in_every_order() {
    for order in (0..1 << 12).step_by(if cfg!(miri) { 101 } else { 1 }) {
        let mut bench = Bench::active(bit::VERSION_1);
        let mut expected = false;
        for step in 0..12 {
            let effect = if order >> step & 1 != 0 {
                let effect = bench.transport.used_buffer(&bench.page);
                assert_eq!(effect.line, (!expected).then_some(true));
                expected = true;
                effect
            } else {
                let effect = bench.store(reg::INTERRUPT_ACK, bench.read(reg::INTERRUPT_STATUS));
                assert_eq!(effect.line, expected.then_some(false));
                expected = false;
                effect
            };
            assert!(!effect.retry && effect.event.is_none());
            assert_eq!(bench.transport.line(), expected);
            assert_eq!(bench.read(reg::INTERRUPT_STATUS), u32::from(expected));
        }
    }
}

#[test]
fn a_power_cycle_resets_without_the_daemon() {
    let fresh = Bench::new();
    let mut bench = Bench::active(FEATURES);
    let _ = bench.transport.used_buffer(&bench.page);
    let effect = bench.transport.power_cycle(&bench.page);
    assert_eq!(
        effect,
        Effect {
            line: Some(false),
            ..Effect::default()
        }
    );
    assert_eq!(bench.page, fresh.page);
    assert_eq!(bench.state().reset_generation, 1);
}
