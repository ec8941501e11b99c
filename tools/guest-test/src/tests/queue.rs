//! Split virtqueues without a driver: framing, notifications without EVENT_IDX, and invalid chains. Numbers
//! are those of the device's checklist; letters those of the torture list.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{
    INTERRUPT_STATUS, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY,
    QUEUE_SEL, STATUS,
};
use crate::virtio::{EVENT_IDX, Slot, VERSION_1, status};
use crate::{check, check_eq, hal, interrupts, time};

/// Entries of the queue.
pub(super) const SIZE: u16 = 64;
/// Bytes from one part of the queue's page to the next: descriptors, available ring, used ring, buffers.
const PART: u64 = 0x800;
/// VIRTIO_F_INDIRECT_DESC.
pub(super) const INDIRECT_DESC: u64 = 1 << 28;

/// Descriptor flags (2.7.5).
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// VIRTIO_BLK_T_IN.
const IN: u32 = 0;
/// An invalid request type.
const UNKNOWN: u32 = 0x7777;
/// Request status (5.2.6).
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// Initial value of a status byte.
const UNTOUCHED: u8 = 0xee;

/// Runs the group on the first disk.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    let Some(slot) = Slot::blocks(context.machine).next() else {
        suite.test("a block device", || Err(Failure::new(format_args!("none"))));
        return;
    };
    let ram = context.machine.ram;
    let intid = slot.device.intid;
    let _ = context.gic.set_trigger(intid, None, slot.device.trigger);
    let _ = context.gic.enable_interrupt(intid, None, false);
    suite.test("a header in sixteen descriptors", || framing(slot));
    suite.test("unknown requests and odd lengths", || unusual_requests(slot));
    suite.test_unless(reference, "nothing is done before DRIVER_OK", || {
        before_driver_ok(slot)
    });
    suite.test("a request offered before the first notification", || {
        late_notification(slot)
    });
    let _ = context.gic.enable_interrupt(intid, None, true);
    super::blk::attach_hook(slot);
    suite.test("without EVENT_IDX flags decide about interrupts", || flags(slot));
    suite.test("with EVENT_IDX used_event decides", || event_index(slot));
    let _ = context.gic.enable_interrupt(intid, None, false);
    suite.test_unless(reference, "chains that loop or leave the queue", || {
        bad_chains(slot)
    });
    suite.test_unless(reference, "indirect tables that are none", || bad_indirect(slot));
    suite.test_unless(reference, "an available ring that jumps", || bad_available(slot));
    suite.test_unless(reference, "buffers outside RAM", || bad_buffers(slot, ram));
    suite.test_unless(reference, "a status byte that cannot be written", || {
        bad_status(slot)
    });
    suite.test("and it works again", || framing(slot));
    let _ = slot.reset();
}

/// A queue that is ready, in pages of its own.
pub(super) struct Queue {
    slot: Slot,
    number: u32,
    pages: NonNull<u8>,
    offered: u16,
}

impl Queue {
    /// Negotiates and sets up queue 0, without DRIVER_OK.
    pub(super) fn new(slot: Slot, features: u64) -> Result<Self, Failure> {
        check!(slot.reset(), "reset");
        let up = slot.negotiate(VERSION_1 | features);
        check!(
            up & status::FEATURES_OK != 0,
            "features {features:#x} are refused"
        );
        Self::numbered(slot, 0)
    }

    /// Sets up queue `number`.
    pub(super) fn numbered(slot: Slot, number: u32) -> Result<Self, Failure> {
        let pages = hal::allocate(2).ok_or_else(|| Failure::new(format_args!("no memory")))?;
        let queue = Self {
            slot,
            number,
            pages,
            offered: 0,
        };
        queue.set_up()?;
        Ok(queue)
    }

    fn set_up(&self) -> TestResult {
        let slot = self.slot;
        let before = slot.read(STATUS);
        slot.write(QUEUE_SEL, self.number);
        slot.write(QUEUE_NUM, SIZE.into());
        slot.write_address(QUEUE_DESC, self.at(0));
        slot.write_address(QUEUE_DRIVER, self.at(PART));
        slot.write_address(QUEUE_DEVICE, self.at(2 * PART));
        slot.write(QUEUE_READY, 1);
        check_eq!(slot.read(STATUS), before, "Status after QueueReady");
        self.set(self.status(), UNTOUCHED);
        Ok(())
    }

    /// Sets up the queue again after its reset: from index 0, in memory as it was.
    pub(super) fn set_up_again(&mut self) -> TestResult {
        self.offered = 0;
        for part in [PART, 2 * PART] {
            // Flags and indices of the rings.
            self.set(self.at(part), 0_u32);
        }
        self.set_up()
    }

    /// As [`Self::new`], and DRIVER_OK.
    pub(super) fn running(slot: Slot, features: u64) -> Result<Self, Failure> {
        let queue = Self::new(slot, features)?;
        queue.driver_ok();
        Ok(queue)
    }

    pub(super) fn driver_ok(&self) {
        self.slot
            .write(STATUS, self.slot.read(STATUS) | status::DRIVER_OK);
    }

    /// Returns the address of an offset in the pages.
    fn at(&self, offset: u64) -> u64 {
        self.pages.as_ptr() as u64 + offset
    }

    /// Returns the address of the request's header.
    fn header(&self) -> u64 {
        self.at(3 * PART)
    }

    /// Returns the address of the request's status.
    fn status(&self) -> u64 {
        self.at(3 * PART + 0x20)
    }

    /// Returns the address of the request's data, 1 KiB.
    pub(super) fn data(&self) -> u64 {
        self.at(3 * PART + 0x400)
    }

    /// Stores a value in the pages.
    pub(super) fn set<T>(&self, address: u64, value: T) {
        debug_assert!((self.at(0)..self.at(4 * PART)).contains(&address));
        // SAFETY: inside the pages, which belong to this and to the device.
        unsafe { (address as *mut T).write_volatile(value) }
    }

    pub(super) fn get<T: Copy>(&self, address: u64) -> T {
        debug_assert!((self.at(0)..self.at(4 * PART)).contains(&address));
        // SAFETY: as above; all bit patterns are integers.
        unsafe { (address as *const T).read_volatile() }
    }

    /// Writes a descriptor of the table at `table`.
    fn describe_in(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let entry = table + u64::from(index) * 16;
        self.set(entry, address);
        self.set(entry + 8, length);
        self.set(entry + 12, flags);
        self.set(entry + 14, next);
    }

    /// Writes a descriptor.
    pub(super) fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.describe_in(self.at(0), index, address, length, flags, next);
    }

    /// Reads a sector.
    pub(super) fn read_sector(&mut self, sector: u64) -> TestResult {
        self.request(IN, sector, 512);
        check_eq!(self.submit()?, OK, "status of a read in queue {}", self.number);
        Ok(())
    }

    /// Makes a read of a sector available and does not wait for it.
    pub(super) fn offer_read(&mut self, sector: u64) {
        self.request(IN, sector, 512);
        self.offer(0);
        self.notify();
    }

    /// Returns whether all chains made available are used.
    pub(super) fn is_done(&self) -> bool {
        self.used() == self.offered
    }

    /// Resets the device. Returns whether Status then reads 0.
    pub(super) fn reset(&self) -> bool {
        self.slot.reset()
    }

    /// Returns a checksum of the pages.
    pub(super) fn sum(&self) -> u64 {
        let words = (0..4 * PART)
            .step_by(8)
            .map(|offset| self.get::<u64>(self.at(offset)));
        words.fold(0, |sum, word| sum.rotate_left(1) ^ word)
    }

    /// Writes a request of one sector as header, data and status, from descriptor 0 on.
    fn request(&self, kind: u32, sector: u64, length: u32) {
        self.head(kind, sector);
        self.describe(0, self.header(), 16, NEXT, 1);
        self.describe(1, self.data(), length, NEXT | WRITE, 2);
        self.describe(2, self.status(), 1, WRITE, 0);
    }

    fn head(&self, kind: u32, sector: u64) {
        self.set(self.header(), kind);
        self.set(self.header() + 4, 0_u32);
        self.set(self.header() + 8, sector);
        self.set(self.status(), UNTOUCHED);
    }

    /// Makes a chain available without a notification.
    pub(super) fn offer(&mut self, head: u16) {
        self.set(self.at(PART + 4) + u64::from(self.offered % SIZE) * 2, head);
        self.offered = self.offered.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.set(self.at(PART + 2), self.offered);
        fence(Ordering::SeqCst);
    }

    pub(super) fn notify(&self) {
        self.slot.write(QUEUE_NOTIFY, self.number);
    }

    /// Returns the index of the used ring.
    pub(super) fn used(&self) -> u16 {
        let index = self.get(self.at(2 * PART + 2));
        fence(Ordering::SeqCst);
        index
    }

    /// Waits until all chains made available are used. Returns the request's status.
    fn complete(&self) -> Result<u8, Failure> {
        // Only a lost request takes so long: the daemon's machine may be busy.
        check!(
            time::wait(20_000, || self.used() == self.offered),
            "used index {}, offered {}",
            self.used(),
            self.offered
        );
        check_eq!(
            self.slot.read(STATUS) & status::NEEDS_RESET,
            0,
            "DEVICE_NEEDS_RESET"
        );
        Ok(self.get(self.status()))
    }

    /// Makes the chain from descriptor 0 available and waits.
    fn submit(&mut self) -> Result<u8, Failure> {
        self.offer(0);
        self.notify();
        self.complete()
    }

    /// Waits until the device needs a reset and has interrupted.
    pub(super) fn broken(&self) -> bool {
        time::wait(2000, || {
            self.slot.read(STATUS) & status::NEEDS_RESET != 0 && self.slot.read(INTERRUPT_STATUS) & 2 != 0
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.slot.reset();
        hal::free(self.pages, 2);
    }
}

// virtio-checklist 37 47 50, torture b7
fn framing(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    queue.request(IN, 0, 512);
    check_eq!(queue.submit()?, OK, "status");
    let first: [u64; 64] = queue.get(queue.data());
    queue.set(queue.data(), [0xa5a5_u64; 64]);
    // The same read: the header one byte at a time, the data in three parts.
    queue.head(IN, 0);
    for index in 0..16 {
        queue.describe(index, queue.header() + u64::from(index), 1, NEXT, index + 1);
    }
    for (index, (start, length)) in [(0, 1), (1, 500), (501, 11)].into_iter().enumerate() {
        let index = 16 + index as u16;
        queue.describe(index, queue.data() + start, length, NEXT | WRITE, index + 1);
    }
    queue.describe(19, queue.status(), 1, WRITE, 0);
    check_eq!(queue.submit()?, OK, "status of the split request");
    check!(
        queue.get::<[u64; 64]>(queue.data()) == first,
        "data of the split request differs"
    );
    let used = queue.at(2 * PART + 4) + 8;
    check_eq!(queue.get::<u32>(used), 0, "id in the used ring");
    check_eq!(queue.get::<u32>(used + 4), 513, "length in the used ring");
    Ok(())
}

// virtio-checklist 61 63, torture b8 b11
fn unusual_requests(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    queue.request(UNKNOWN, 0, 512);
    check_eq!(queue.submit()?, UNSUPP, "status of type {UNKNOWN:#x}");
    queue.request(IN, 0, 511);
    check_eq!(queue.submit()?, IOERR, "status of 511 bytes");
    queue.request(IN, u64::MAX >> 8, 512);
    check_eq!(queue.submit()?, IOERR, "status of a sector that overflows");
    queue.request(IN, 0, 512);
    check_eq!(queue.submit()?, OK, "status afterwards");
    Ok(())
}

// virtio-checklist 25 26
fn before_driver_ok(slot: Slot) -> TestResult {
    let mut queue = Queue::new(slot, 0)?;
    queue.request(IN, 0, 512);
    queue.offer(0);
    queue.notify();
    time::sleep(50);
    check_eq!(queue.used(), 0, "used index before DRIVER_OK");
    check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus before DRIVER_OK");
    queue.driver_ok();
    queue.notify();
    check_eq!(queue.complete()?, OK, "status");
    Ok(())
}

fn late_notification(slot: Slot) -> TestResult {
    let mut queue = Queue::new(slot, 0)?;
    queue.request(IN, 0, 512);
    queue.offer(0);
    queue.driver_ok();
    queue.notify();
    check_eq!(queue.complete()?, OK, "status");
    // Without EVENT_IDX the device suppresses notifications by flags.
    let flags: u16 = queue.get(queue.at(2 * PART));
    check!(flags <= 1, "used.flags is {flags:#x}");
    Ok(())
}

// virtio-checklist 42 43
fn flags(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    let intid = slot.device.intid.into();
    // used_event, which is not in use now, suppresses interrupts.
    queue.set(queue.at(PART + 4) + u64::from(SIZE) * 2, 0x8000_u16);
    for round in 0..10_u16 {
        interrupts::clear();
        queue.set(queue.at(PART), round % 2);
        queue.request(IN, round.into(), 512);
        check_eq!(queue.submit()?, OK, "status");
        let wanted = u32::from(1 - round % 2);
        time::wait(500, || interrupts::count(0, intid) == wanted);
        time::sleep(5);
        // Flags of 1 are a hint, which this device honours.
        check_eq!(
            interrupts::count(0, intid),
            wanted,
            "interrupts with flags {}",
            round % 2
        );
    }
    Ok(())
}

// virtio-checklist 44 45
fn event_index(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, EVENT_IDX)?;
    let intid = slot.device.intid.into();
    let used_event = queue.at(PART + 4) + u64::from(SIZE) * 2;
    // Which of a batch of four completions is to interrupt, if any; flags suppress all and are ignored.
    queue.set(queue.at(PART), 1_u16);
    for wanted in [Some(0), Some(3), None, Some(1), None, Some(2)] {
        interrupts::clear();
        let start = queue.offered;
        queue.set(used_event, start.wrapping_add(wanted.unwrap_or(100)));
        queue.request(IN, 0, 512);
        for _ in 0..4 {
            // One after the other, so that they share the buffers.
            queue.offer(0);
            queue.notify();
            check_eq!(queue.complete()?, OK, "status");
        }
        let expected = u32::from(wanted.is_some());
        time::wait(500, || interrupts::count(0, intid) == expected);
        time::sleep(5);
        check_eq!(
            interrupts::count(0, intid),
            expected,
            "interrupts for a batch of 4, used_event at {wanted:?}"
        );
    }
    Ok(())
}

// torture b1
fn bad_chains(slot: Slot) -> TestResult {
    for (name, flags, next) in [
        ("loop", NEXT, 0),
        ("next past the queue", NEXT, SIZE),
        ("next far away", NEXT, 0xffff),
    ] {
        let mut queue = Queue::running(slot, 0)?;
        queue.request(IN, 0, 512);
        queue.describe(1, queue.data(), 512, WRITE | flags, next);
        queue.offer(0);
        queue.notify();
        check!(queue.broken(), "{name}: no DEVICE_NEEDS_RESET");
        check_eq!(queue.get::<u8>(queue.status()), UNTOUCHED, "{name}: status");
    }
    let mut queue = Queue::running(slot, 0)?;
    // A loop of writable descriptors after a valid header.
    for index in 1..SIZE {
        queue.describe(
            index,
            queue.data(),
            16,
            WRITE | NEXT,
            if index + 1 == SIZE { 1 } else { index + 1 },
        );
    }
    queue.head(IN, 0);
    queue.describe(0, queue.header(), 16, NEXT, 1);
    queue.offer(0);
    queue.notify();
    check!(queue.broken(), "a loop of {SIZE}: no DEVICE_NEEDS_RESET");
    Ok(())
}

// torture b2
fn bad_indirect(slot: Slot) -> TestResult {
    let cases: [(&str, u64, u32, u16, u16); 6] = [
        ("not negotiated", 0, 48, INDIRECT, 0),
        ("empty", INDIRECT_DESC, 0, INDIRECT, 0),
        ("of 40 bytes", INDIRECT_DESC, 40, INDIRECT, 0),
        ("of 4 GiB", INDIRECT_DESC, 0xffff_fff0, INDIRECT, 0),
        ("with NEXT", INDIRECT_DESC, 48, INDIRECT | NEXT, 1),
        ("in a table", INDIRECT_DESC, 48, INDIRECT, INDIRECT),
    ];
    for (name, features, length, flags, inner) in cases {
        let mut queue = Queue::running(slot, features)?;
        queue.head(IN, 0);
        // The table is where data would be.
        let table = queue.data();
        queue.describe_in(table, 0, queue.header(), 16, NEXT | inner, 1);
        queue.describe_in(table, 1, queue.data() + 0x200, 512, NEXT | WRITE, 2);
        queue.describe_in(table, 2, queue.status(), 1, WRITE, 0);
        queue.describe(0, table, length, flags, 1);
        queue.describe(1, queue.status(), 1, WRITE, 0);
        queue.offer(0);
        queue.notify();
        check!(queue.broken(), "indirect table {name}: no DEVICE_NEEDS_RESET");
    }
    // virtio-checklist 40: the WRITE flag on the pointer itself has no effect.
    let mut queue = Queue::running(slot, INDIRECT_DESC)?;
    queue.head(IN, 0);
    let table = queue.data();
    queue.describe_in(table, 0, queue.header(), 16, NEXT, 1);
    queue.describe_in(table, 1, queue.data() + 0x200, 512, NEXT | WRITE, 2);
    queue.describe_in(table, 2, queue.status(), 1, WRITE, 0);
    queue.describe(0, table, 48, INDIRECT | WRITE, 0);
    check_eq!(queue.submit()?, OK, "status of a good indirect request");
    Ok(())
}

// torture b3
fn bad_available(slot: Slot) -> TestResult {
    for jump in [SIZE + 1, 0x8000, 0xffff] {
        let queue = Queue::running(slot, 0)?;
        queue.request(IN, 0, 512);
        queue.set(queue.at(PART + 2), jump);
        fence(Ordering::SeqCst);
        queue.notify();
        check!(
            queue.broken(),
            "available index {jump:#x} at once: no DEVICE_NEEDS_RESET"
        );
    }
    for head in [SIZE, 0xffff] {
        let mut queue = Queue::running(slot, 0)?;
        queue.offer(head);
        queue.notify();
        check!(queue.broken(), "head {head:#x}: no DEVICE_NEEDS_RESET");
    }
    Ok(())
}

// torture b5
fn bad_buffers(slot: Slot, ram: (u64, u64)) -> TestResult {
    let end = ram.0 + ram.1;
    for address in [
        0,
        slot.device.base,
        0x0800_0000,
        ram.0 - 256,
        end - 256,
        end,
        1 << 40,
        u64::MAX - 255,
    ] {
        let mut queue = Queue::running(slot, 0)?;
        queue.request(IN, 0, 512);
        queue.describe(1, address, 512, NEXT | WRITE, 2);
        queue.offer(0);
        queue.notify();
        let over = time::wait(2000, || {
            queue.used() == 1 || slot.read(STATUS) & status::NEEDS_RESET != 0
        });
        check!(over, "data at {address:#x}: no answer");
        check!(
            queue.used() == 0 || queue.get::<u8>(queue.status()) == IOERR,
            "data at {address:#x} is accepted"
        );
    }
    Ok(())
}

// torture b7
fn bad_status(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    queue.request(IN, 0, 512);
    // Read-only.
    queue.describe(2, queue.status(), 1, 0, 0);
    queue.offer(0);
    queue.notify();
    time::wait(500, || {
        queue.used() == 1 || slot.read(STATUS) & status::NEEDS_RESET != 0
    });
    check_eq!(
        queue.get::<u8>(queue.status()),
        UNTOUCHED,
        "a read-only status byte"
    );
    drop(queue);
    let mut queue = Queue::running(slot, 0)?;
    // No status at all: only a header.
    queue.head(IN, 0);
    queue.describe(0, queue.header(), 16, 0, 0);
    queue.offer(0);
    queue.notify();
    let over = time::wait(2000, || {
        queue.used() == 1 || slot.read(STATUS) & status::NEEDS_RESET != 0
    });
    check!(over, "a header alone: no answer");
    Ok(())
}
