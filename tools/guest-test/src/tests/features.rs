//! Features other than a queue's: reset of one queue, several queues, the write cache mode set by the driver.

use super::queue::Queue;
use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{
    CONFIG, CONFIG_GENERATION, INTERRUPT_ACK, INTERRUPT_STATUS, QUEUE_NUM_MAX, QUEUE_READY, QUEUE_RESET,
    QUEUE_SEL, STATUS,
};
use crate::virtio::{Slot, VERSION_1, status};
use crate::{attempt, check, check_eq, time};

/// VIRTIO_F_RING_RESET.
const RING_RESET: u64 = 1 << 40;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_CONFIG_WCE.
const CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_MQ.
const MQ: u64 = 1 << 12;
/// `writeback` in configuration space (5.2.4).
const WRITEBACK: u64 = CONFIG + 32;
/// `num_queues`.
const NUM_QUEUES: u64 = CONFIG + 34;

/// Runs the group on the first disk, as far as it offers the features.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    let Some(slot) = Slot::blocks(context.machine).next() else {
        suite.test("a block device", || Err(Failure::new(format_args!("none"))));
        return;
    };
    let offered = slot.features();
    let lacks = |feature: u64| reference || offered & feature == 0;
    suite.test_unless(lacks(RING_RESET), "a queue is reset and set up again", || {
        queue_reset(slot)
    });
    suite.test_unless(lacks(RING_RESET), "a queue is reset with requests in it", || {
        queue_reset_at_work(slot)
    });
    suite.test_unless(lacks(MQ), "each queue works and is reset alone", || {
        several_queues(slot, offered)
    });
    suite.test_unless(lacks(CONFIG_WCE), "the driver switches the write cache", || {
        writeback(slot)
    });
    let _ = slot.reset();
}

/// Resets the selected queue and waits for it.
fn reset_queue(slot: Slot, number: u32) -> TestResult {
    slot.write(QUEUE_SEL, number);
    slot.write(QUEUE_RESET, 1);
    check!(
        time::wait(1000, || slot.read(QUEUE_RESET) == 0),
        "queue {number} is not reset within a second"
    );
    check_eq!(slot.read(QUEUE_READY), 0, "QueueReady of a reset queue");
    Ok(())
}

// virtio-checklist 19 36
fn queue_reset(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, RING_RESET)?;
    for round in 0..20 {
        queue.read_sector(round)?;
        queue.read_sector(round + 1)?;
        reset_queue(slot, 0)?;
        // A second reset changes nothing.
        reset_queue(slot, 0)?;
        check_eq!(slot.read(STATUS) & status::NEEDS_RESET, 0, "DEVICE_NEEDS_RESET");
        queue.set_up_again()?;
    }
    queue.read_sector(0)
}

// virtio-checklist 24 36
fn queue_reset_at_work(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, RING_RESET)?;
    for _ in 0..50 {
        queue.offer_read(0);
        reset_queue(slot, 0)?;
        queue.set_up_again()?;
    }
    queue.read_sector(0)
}

fn several_queues(slot: Slot, offered: u64) -> TestResult {
    let reset = offered & RING_RESET;
    let count = slot.read(NUM_QUEUES - 2) >> 16;
    check!(count > 1, "MQ is offered with {count} queues");
    slot.write(QUEUE_SEL, count - 1);
    check!(slot.read(QUEUE_NUM_MAX) > 0, "queue {} is absent", count - 1);
    slot.write(QUEUE_SEL, count);
    check_eq!(slot.read(QUEUE_NUM_MAX), 0, "QueueNumMax of queue {count}");
    let mut first = Queue::new(slot, MQ | reset)?;
    let mut last = Queue::numbered(slot, count - 1)?;
    first.driver_ok();
    for sector in 0..10 {
        first.read_sector(sector)?;
        last.read_sector(sector)?;
    }
    if reset != 0 {
        reset_queue(slot, count - 1)?;
        first.read_sector(0)?;
        last.set_up_again()?;
    }
    last.read_sector(0)?;
    first.read_sector(1)
}

// virtio-checklist 53 58
fn writeback(slot: Slot) -> TestResult {
    let up = slot.negotiate(VERSION_1 | FLUSH | CONFIG_WCE);
    check!(up & status::FEATURES_OK != 0, "CONFIG_WCE is refused");
    let generation = slot.read(CONFIG_GENERATION);
    for (stored, read) in [(0, 0), (1, 1), (2, 1), (0, 0), (0xff, 0), (1, 1)] {
        slot.write_byte(WRITEBACK, stored);
        check_eq!(
            slot.read_byte(WRITEBACK),
            read,
            "writeback after a store of {stored}"
        );
    }
    check_eq!(slot.read(CONFIG_GENERATION), generation, "ConfigGeneration");
    // While a queue is active.
    let mut queue = Queue::running(slot, FLUSH | CONFIG_WCE)?;
    for value in [0, 1, 0, 1] {
        slot.write_byte(WRITEBACK, value);
        queue.read_sector(value.into())?;
    }
    slot.write_byte(WRITEBACK, 0);
    drop(queue);
    check_eq!(slot.read_byte(WRITEBACK), 1, "writeback after reset");
    let _ = slot.negotiate(VERSION_1 | FLUSH);
    slot.write_byte(WRITEBACK, 0);
    check_eq!(slot.read_byte(WRITEBACK), 1, "writeback without CONFIG_WCE");
    let up = slot.negotiate(VERSION_1 | CONFIG_WCE);
    check!(
        up & status::FEATURES_OK != 0,
        "CONFIG_WCE without FLUSH is refused"
    );
    check_eq!(slot.read_byte(WRITEBACK), 0, "writeback without FLUSH");
    Ok(())
}

/// Capacities between which root resizes the first disk: both words differ.
const CAPACITIES: [u64; 2] = [0xffff_ffff, 0x1_0000_0000];

/// The group during which the system test resizes the first disk.
pub fn capacity(suite: &mut Suite, context: &mut Context<'_>) {
    let Some(slot) = Slot::blocks(context.machine).next() else {
        return;
    };
    suite.test("no half of a new capacity is seen", || changing_capacity(slot));
    let _ = slot.reset();
}

// virtio-checklist 14 64
fn changing_capacity(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    let base = slot.device.base;
    let (mut seen, mut changes, mut rounds) = (None, 0, 0_u32);
    let end = time::now() + time::milliseconds(60_000);
    while changes < 10 {
        check!(time::now() < end, "{changes} changes in a minute");
        // As a driver reads it (2.5.3).
        let before = slot.read(CONFIG_GENERATION);
        let low = slot.read(CONFIG);
        let high = slot.read(CONFIG + 4);
        let after = slot.read(CONFIG_GENERATION);
        // A pair, which has no valid syndrome if it faults while the page is unmapped.
        let _ = attempt!(base + CONFIG, 0, "ldp {x:w}, {y:w}, [{a}]").done()?;
        if before != after {
            continue;
        }
        let value = u64::from(high) << 32 | u64::from(low);
        check!(CAPACITIES.contains(&value), "capacity {value:#x}");
        if seen.is_some_and(|(old, generation)| old != value && generation != after) {
            changes += 1;
            check!(
                time::wait(1000, || slot.read(INTERRUPT_STATUS) & 2 != 0),
                "no configuration interrupt"
            );
            slot.write(INTERRUPT_ACK, 2);
        }
        check!(
            seen.is_none_or(|(old, generation)| old == value || generation != after),
            "another capacity in one generation"
        );
        seen = Some((value, after));
        rounds += 1;
        if rounds % 1024 == 0 {
            queue.read_sector(0)?;
        }
    }
    Ok(())
}
