//! The virtio-mmio transport by its registers. Numbers are those of the transport's checklist.

use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{
    CONFIG, CONFIG_GENERATION, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, INTERRUPT_ACK,
    INTERRUPT_STATUS, MAGIC, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_NUM_MAX,
    QUEUE_READY, QUEUE_SEL, SHM_BASE, SHM_LEN, SHM_SEL, STATUS, VENDOR_ID, VERSION,
};
use crate::virtio::{EVENT_IDX, Slot, VERSION_1, status};
use crate::{attempt, check, check_eq, hal, time};

/// Offsets of registers that a driver may only read.
const READ_ONLY: &[u64] = &[
    MAGIC,
    VERSION,
    DEVICE_ID,
    VENDOR_ID,
    DEVICE_FEATURES,
    QUEUE_NUM_MAX,
    INTERRUPT_STATUS,
    CONFIG_GENERATION,
];
/// Offsets without a register in version 2.
const UNDEFINED: &[u64] = &[
    0x018, 0x01c, 0x028, 0x02c, 0x03c, 0x040, 0x048, 0x04c, 0x054, 0x058, 0x05c, 0x068, 0x06c, 0x074, 0x078,
    0x07c, 0x0c8, 0x0f8,
];

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    let Some(slot) = Slot::blocks(context.machine).next() else {
        suite.test("a block device", || {
            Err(Failure::new(format_args!("no virtio-mmio slot has device id 2")))
        });
        return;
    };
    let ram = context.machine.ram;
    suite.test("identification", || identification(slot));
    suite.test("feature selectors", || features(slot, reference));
    suite.test("status bits are set in order and cleared by a reset", || {
        status_and_reset(slot)
    });
    suite.test_unless(reference, "features not offered are refused", || {
        refused_features(slot)
    });
    suite.test_unless(reference, "absent queues", || absent_queues(slot));
    suite.test("QueueReady", || queue_ready(slot, reference));
    suite.test("reset clears every QueueReady", || reset_clears(slot));
    suite.test_unless(reference, "bad queue sizes", || bad_sizes(slot));
    suite.test_unless(reference, "bad queue addresses", || bad_addresses(slot, ram));
    suite.test_unless(reference, "a bad queue under DRIVER_OK interrupts", || {
        bad_queue_interrupts(slot)
    });
    suite.test("read-only and undefined registers", || inert_writes(slot));
    suite.test_unless(reference, "stores that are not 32 bits wide", || {
        narrow_writes(slot)
    });
    suite.test("configuration space by bytes", || config_bytes(slot));
    suite.test("writes to read-only configuration", || config_writes(slot));
    suite.test("ConfigGeneration is stable", || generation(slot));
    suite.test_unless(reference, "absent shared memory", || shared_memory(slot));
    suite.test("notifications before DRIVER_OK and out of range", || {
        stray_notifications(slot)
    });
    suite.test("a thousand resets", || resets(slot));
    let _ = slot.reset();
}

// virtio-checklist 1 2 3
fn identification(slot: Slot) -> TestResult {
    check_eq!(slot.read(MAGIC), 0x7472_6976, "MagicValue");
    check_eq!(slot.read(VERSION), 2, "Version");
    check_eq!(slot.read(DEVICE_ID), 2, "DeviceID");
    Ok(())
}

// virtio-checklist 4 34
fn features(slot: Slot, reference: bool) -> TestResult {
    slot.reset();
    let features = slot.features();
    check!(
        features & VERSION_1 != 0,
        "VERSION_1 not offered in {features:#x}"
    );
    check!(
        features & EVENT_IDX != 0,
        "EVENT_IDX not offered in {features:#x}"
    );
    for selector in [2, 3, 31, u32::MAX] {
        slot.write(DEVICE_FEATURES_SEL, selector);
        let unused = slot.read(DEVICE_FEATURES);
        check!(
            reference || unused == 0,
            "DeviceFeatures with selector {selector:#x}: {unused:#x}"
        );
    }
    check_eq!(slot.features(), features, "DeviceFeatures after other selectors");
    Ok(())
}

// virtio-checklist 16 23 30 32
fn status_and_reset(slot: Slot) -> TestResult {
    let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    for round in 0..3 {
        check_eq!(
            slot.negotiate(VERSION_1 | EVENT_IDX),
            wanted,
            "Status in round {round}"
        );
        check!(slot.reset(), "Status does not read 0 within a second of a reset");
        check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus after reset");
    }
    Ok(())
}

// virtio-checklist 30
fn refused_features(slot: Slot) -> TestResult {
    let offered = slot.features();
    let accepted = |features| slot.negotiate(features) & status::FEATURES_OK != 0;
    check!(
        !accepted(offered | 1 << 63),
        "a feature that is not offered is accepted"
    );
    check!(!accepted(offered & !VERSION_1), "FEATURES_OK without VERSION_1");
    check!(accepted(offered), "what is offered is not accepted");
    check!(accepted(VERSION_1), "VERSION_1 alone is not accepted");
    Ok(())
}

// virtio-checklist 6, torture a8
fn absent_queues(slot: Slot) -> TestResult {
    slot.reset();
    for queue in [1000, 0xffff, 0x1_0000, u32::MAX] {
        slot.write(QUEUE_SEL, queue);
        check_eq!(slot.read(QUEUE_NUM_MAX), 0, "QueueNumMax of queue {queue:#x}");
        slot.write(QUEUE_NUM, 8);
        slot.write_address(QUEUE_DESC, 0x4000_0000);
        slot.write(QUEUE_READY, 1);
        check_eq!(slot.read(QUEUE_READY), 0, "QueueReady of queue {queue:#x}");
    }
    check_eq!(slot.read(STATUS), 0, "Status");
    slot.write(QUEUE_SEL, 0);
    let max = slot.read(QUEUE_NUM_MAX);
    check!(
        max.is_power_of_two() && max >= 16,
        "QueueNumMax of queue 0 is {max}"
    );
    check_eq!(slot.read(QUEUE_READY), 0, "QueueReady of queue 0");
    Ok(())
}

/// Sets up queue 0 in `page`, one page for all three parts.
fn set_queue(slot: Slot, page: u64, size: u32) {
    slot.write(QUEUE_SEL, 0);
    slot.write(QUEUE_NUM, size);
    slot.write_address(QUEUE_DESC, page);
    slot.write_address(QUEUE_DRIVER, page + 0x400);
    slot.write_address(QUEUE_DEVICE, page + 0x800);
}

/// A page for a queue, freed at the end.
struct Page(core::ptr::NonNull<u8>);

impl Page {
    fn new() -> Result<Self, Failure> {
        hal::allocate(1)
            .map(Self)
            .ok_or_else(|| Failure::new(format_args!("no memory")))
    }

    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        hal::free(self.0, 1);
    }
}

/// Waits until a register reads as wanted, which may need the daemon's answer.
fn settles(slot: Slot, register: u64, value: u32) -> bool {
    time::wait(1000, || slot.read(register) == value)
}

// virtio-checklist 7 22
fn queue_ready(slot: Slot, reference: bool) -> TestResult {
    let page = Page::new()?;
    let _ = slot.negotiate(VERSION_1);
    set_queue(slot, page.address(), 16);
    check_eq!(slot.read(QUEUE_READY), 0, "QueueReady before");
    slot.write(QUEUE_READY, 1);
    check_eq!(slot.read(QUEUE_READY), 1, "QueueReady");
    // Ignored from here on: if these took effect, the queue would be invalid.
    slot.write(QUEUE_NUM, 3);
    slot.write_address(QUEUE_DESC, 1);
    check_eq!(slot.read(QUEUE_READY), 1, "QueueReady after stray writes");
    check_eq!(
        slot.read(STATUS) & status::NEEDS_RESET,
        0,
        "DEVICE_NEEDS_RESET after stray writes"
    );
    // The selector chooses the queue that is read.
    slot.write(QUEUE_SEL, 0xffff);
    let absent = slot.read(QUEUE_READY);
    check!(reference || absent == 0, "QueueReady of an absent queue");
    slot.write(QUEUE_SEL, 0);
    check_eq!(slot.read(QUEUE_READY), 1, "QueueReady of queue 0 again");
    check!(slot.reset(), "reset");
    Ok(())
}

// virtio-checklist 11 12 36
fn reset_clears(slot: Slot) -> TestResult {
    let page = Page::new()?;
    let _ = slot.negotiate(VERSION_1);
    set_queue(slot, page.address(), 16);
    slot.write(QUEUE_READY, 1);
    check!(slot.reset(), "Status does not read 0 within a second of a reset");
    slot.write(QUEUE_SEL, 0);
    check!(settles(slot, QUEUE_READY, 0), "QueueReady after reset");
    check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus after reset");
    Ok(())
}

/// Sets up a queue. Returns whether the device then needs a reset.
fn needs_reset(slot: Slot, size: u32, parts: [u64; 3]) -> bool {
    let _ = slot.negotiate(VERSION_1);
    slot.write(QUEUE_SEL, 0);
    slot.write(QUEUE_NUM, size);
    slot.write_address(QUEUE_DESC, parts[0]);
    slot.write_address(QUEUE_DRIVER, parts[1]);
    slot.write_address(QUEUE_DEVICE, parts[2]);
    slot.write(QUEUE_READY, 1);
    slot.read(STATUS) & status::NEEDS_RESET != 0
}

// torture a5, virtio-checklist 27
fn bad_sizes(slot: Slot) -> TestResult {
    let page = Page::new()?;
    let parts = [page.address(), page.address() + 0x400, page.address() + 0x800];
    slot.write(QUEUE_SEL, 0);
    let max = slot.read(QUEUE_NUM_MAX);
    for size in [0, 3, 17, max + 1, max * 2, 0x1_0000, 0x8000_0000, u32::MAX] {
        check!(needs_reset(slot, size, parts), "QueueNum {size:#x} is accepted");
        check!(slot.reset(), "reset after QueueNum {size:#x}");
    }
    check!(!needs_reset(slot, 16, parts), "QueueNum 16 is refused");
    Ok(())
}

// torture a6, virtio-checklist 27
fn bad_addresses(slot: Slot, ram: (u64, u64)) -> TestResult {
    let page = Page::new()?;
    let good = [page.address(), page.address() + 0x400, page.address() + 0x800];
    let end = ram.0 + ram.1;
    let bad = [
        0,
        slot.device.base,
        0x0800_0000,
        0x0b00_0000,
        ram.0 - 0x1000,
        end,
        end - 16,
        1 << 40,
        !0xfff,
        !0xf,
    ];
    for part in 0..3 {
        for address in bad {
            let mut parts = good;
            parts[part] = address;
            check!(
                needs_reset(slot, 256, parts),
                "part {part} at {address:#x} is accepted"
            );
        }
        // Alignment 16, 2, 4 (2.7).
        let mut parts = good;
        parts[part] += [8, 1, 2][part];
        check!(needs_reset(slot, 16, parts), "misaligned part {part} is accepted");
    }
    // Parts that overlap harm only the guest.
    check!(!needs_reset(slot, 16, good), "good addresses are refused");
    check!(slot.reset(), "reset");
    Ok(())
}

// virtio-checklist 8 10 17 28
fn bad_queue_interrupts(slot: Slot) -> TestResult {
    let page = Page::new()?;
    let _ = slot.negotiate(VERSION_1);
    let up = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    slot.write(STATUS, up);
    set_queue(slot, page.address(), 3);
    slot.write(QUEUE_READY, 1);
    check_eq!(slot.read(STATUS), up | status::NEEDS_RESET, "Status");
    check_eq!(slot.read(INTERRUPT_STATUS), 2, "InterruptStatus");
    slot.write(INTERRUPT_ACK, 1);
    check_eq!(
        slot.read(INTERRUPT_STATUS),
        2,
        "InterruptStatus after acknowledging another bit"
    );
    slot.write(INTERRUPT_ACK, 2);
    check_eq!(
        slot.read(INTERRUPT_STATUS),
        0,
        "InterruptStatus after acknowledging"
    );
    check!(slot.reset(), "reset");
    Ok(())
}

// virtio-checklist 9 21, torture a2
fn inert_writes(slot: Slot) -> TestResult {
    let _ = slot.negotiate(VERSION_1);
    let before = slot.dump();
    for offset in READ_ONLY.iter().chain(UNDEFINED) {
        for value in [0, 1, 0x5555_aaaa, u32::MAX] {
            slot.write(*offset, value);
        }
    }
    same(slot, &before)
}

/// Checks that a full dump is unchanged.
fn same(slot: Slot, before: &[u32; 128]) -> TestResult {
    for (index, (old, new)) in before.iter().zip(slot.dump()).enumerate() {
        check_eq!(new, *old, "register {:#05x}", index * 4);
    }
    Ok(())
}

// virtio-checklist 21, torture a1
fn narrow_writes(slot: Slot) -> TestResult {
    let _ = slot.negotiate(VERSION_1);
    let before = slot.dump();
    let base = slot.device.base;
    for offset in [DEVICE_FEATURES_SEL, QUEUE_SEL, QUEUE_READY, INTERRUPT_ACK, STATUS] {
        let _ = attempt!(base + offset, 0xff, "strb {x:w}, [{a}]").done()?;
        let _ = attempt!(base + offset, 0xffff, "strh {x:w}, [{a}]").done()?;
        let _ = attempt!(base + offset + 1, 0, "strb {x:w}, [{a}]").done()?;
    }
    let _ = attempt!(base + STATUS, u64::MAX, "str {x}, [{a}]").done()?;
    same(slot, &before)
}

// virtio-checklist 20 33 51
fn config_bytes(slot: Slot) -> TestResult {
    slot.reset();
    let words = [slot.read(CONFIG), slot.read(CONFIG + 4)];
    for (index, byte) in words.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
        check_eq!(
            slot.read_byte(CONFIG + index as u64),
            byte,
            "byte {index} of the capacity"
        );
    }
    let half = attempt!(slot.device.base + CONFIG + 2, 0, "ldrh {x:w}, [{a}]").done()?;
    check_eq!(
        half as u32,
        words[0] >> 16,
        "upper half of the capacity's first word"
    );
    check!(words != [0, 0], "capacity is 0");
    Ok(())
}

fn config_writes(slot: Slot) -> TestResult {
    slot.reset();
    let before = slot.dump();
    slot.write(CONFIG, !before[0x40]);
    let _ = attempt!(slot.device.base + CONFIG + 5, 0xff, "strb {x:w}, [{a}]").done()?;
    same(slot, &before)
}

// virtio-checklist 15
fn generation(slot: Slot) -> TestResult {
    let first = slot.read(CONFIG_GENERATION);
    for _ in 0..100 {
        slot.reset();
        check_eq!(slot.read(CONFIG_GENERATION), first, "ConfigGeneration");
    }
    Ok(())
}

// virtio-checklist 18
fn shared_memory(slot: Slot) -> TestResult {
    for id in [0, 1, 255] {
        slot.write(SHM_SEL, id);
        for offset in [SHM_LEN, SHM_LEN + 4, SHM_BASE, SHM_BASE + 4] {
            check_eq!(slot.read(offset), u32::MAX, "register {offset:#x} of region {id}");
        }
    }
    Ok(())
}

// virtio-checklist 13 24 25, torture a10
fn stray_notifications(slot: Slot) -> TestResult {
    let page = Page::new()?;
    let _ = slot.negotiate(VERSION_1);
    set_queue(slot, page.address(), 16);
    slot.write(QUEUE_READY, 1);
    for queue in [0, 1, 16, 0xffff, u32::MAX] {
        slot.write(QUEUE_NOTIFY, queue);
    }
    time::sleep(20);
    check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus");
    check_eq!(slot.read(STATUS) & status::NEEDS_RESET, 0, "DEVICE_NEEDS_RESET");
    check!(slot.reset(), "reset");
    Ok(())
}

// torture a9, without I/O
fn resets(slot: Slot) -> TestResult {
    for round in 0..1000 {
        let _ = slot.negotiate(VERSION_1);
        check!(slot.reset(), "reset {round}");
    }
    Ok(())
}
