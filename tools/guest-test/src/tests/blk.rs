//! The block device through virtio-drivers: data, errors, and the number of interrupts.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::context::Context;
use crate::hal::GuestHal;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::Slot;
use crate::virtio::register::{INTERRUPT_ACK, INTERRUPT_STATUS};
use crate::{check, check_eq, interrupts, registers, time};

type Disk = VirtIOBlk<GuestHal, MmioTransport<'static>>;

/// First sector that is overwritten.
const FIRST: usize = 64;
/// Sectors in one large request.
const LARGE: usize = 128;

/// Registers of the disk whose interrupt is enabled.
static BASE: AtomicU64 = AtomicU64::new(0);
/// InterruptStatus before and after the handler's acknowledgement.
static SEEN: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Runs the group on every block device.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let machine = context.machine;
    let reference = machine.is_reference();
    for slot in Slot::blocks(machine) {
        let intid = slot.device.intid;
        context.set_up_spi(intid, slot.device.trigger, machine.cpus[0]);
        attach_hook(slot);
        suite.test("the driver accepts the device", || disk(slot).map(|_| ()));
        let readonly = disk(slot).is_ok_and(|disk| disk.readonly());
        if readonly {
            suite.test("a read-only disk refuses writes", || refuses_writes(slot));
        } else {
            suite.test("what is written is read", || write_and_read(slot));
            suite.test("large requests", || large_requests(slot));
        }
        suite.test("flush", || checked(disk(slot)?.flush(), "flush"));
        suite.test("GET_ID", || serial(slot, reference));
        suite.test("past the end", || past_the_end(slot));
        let _ = context.gic.enable_interrupt(intid, None, true);
        suite.test("one interrupt for each request", || one_each(slot));
        let _ = context.gic.enable_interrupt(intid, None, false);
        suite.test(
            "a disabled interrupt is pending and delivered when enabled",
            || deferred(slot, context),
        );
        let _ = context.gic.enable_interrupt(intid, None, false);
        suite.test("reset with requests in flight", || reset_in_flight(slot));
        suite.test("and it works again", || serial(slot, reference));
    }
}

/// Makes the interrupt handler acknowledge the disk's interrupts.
pub fn attach_hook(slot: Slot) {
    BASE.store(slot.device.base, Ordering::SeqCst);
    interrupts::set_hook(slot.device.intid.into(), acknowledge);
}

/// The interrupt handler of the disk.
fn acknowledge() {
    let base = BASE.load(Ordering::SeqCst);
    let status = registers::read(base + INTERRUPT_STATUS);
    registers::write(base + INTERRUPT_ACK, status);
    SEEN.store(status, Ordering::SeqCst);
    LEFT.store(registers::read(base + INTERRUPT_STATUS), Ordering::SeqCst);
}

fn checked<T>(result: Result<T, Error>, what: &str) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format_args!("{what}: {error}")))
}

/// Returns a driver for the disk, which resets it.
fn disk(slot: Slot) -> Result<Disk, Failure> {
    let transport = slot
        .transport()
        .ok_or_else(|| Failure::new(format_args!("virtio-drivers finds no device")))?;
    let disk = checked(Disk::new(transport), "set-up")?;
    check!(
        disk.capacity() >= (FIRST + LARGE) as u64,
        "the disk has {} sectors, too few",
        disk.capacity()
    );
    Ok(disk)
}

/// Returns the contents of a sector, distinct so that a misplaced one is noticed.
fn pattern(sector: usize, round: u64, data: &mut [u8]) {
    let mut state = (sector as u64) << 8 ^ round ^ 0x9e37_79b9_7f4a_7c15;
    for word in data.chunks_exact_mut(8) {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn write_and_read(slot: Slot) -> TestResult {
    let mut disk = disk(slot)?;
    let (mut wanted, mut data) = ([0; SECTOR_SIZE], [0; SECTOR_SIZE]);
    for round in 0..2 {
        for sector in FIRST..FIRST + 16 {
            pattern(sector, round, &mut wanted);
            checked(disk.write_blocks(sector, &wanted), "write")?;
        }
        for sector in (FIRST..FIRST + 16).rev() {
            pattern(sector, round, &mut wanted);
            checked(disk.read_blocks(sector, &mut data), "read")?;
            check!(data == wanted, "sector {sector} differs in round {round}");
        }
    }
    Ok(())
}

fn large_requests(slot: Slot) -> TestResult {
    const BYTES: usize = LARGE * SECTOR_SIZE;
    let mut disk = disk(slot)?;
    let pages = crate::hal::allocate(BYTES / 4096).ok_or_else(|| Failure::new(format_args!("no memory")))?;
    // SAFETY: the pages are ours and zeroed.
    let buffer = unsafe { core::slice::from_raw_parts_mut(pages.as_ptr(), BYTES) };
    for (index, sector) in buffer.chunks_exact_mut(SECTOR_SIZE).enumerate() {
        pattern(FIRST + index, 2, sector);
    }
    checked(disk.write_blocks(FIRST, buffer), "write")?;
    buffer.fill(0xa5);
    checked(disk.read_blocks(FIRST, buffer), "read")?;
    let mut wanted = [0; SECTOR_SIZE];
    for (index, sector) in buffer.chunks_exact(SECTOR_SIZE).enumerate() {
        pattern(FIRST + index, 2, &mut wanted);
        check!(sector == wanted, "sector {} differs", FIRST + index);
    }
    // With another size, at another sector.
    checked(
        disk.read_blocks(FIRST + 5, &mut buffer[..3 * SECTOR_SIZE]),
        "read",
    )?;
    pattern(FIRST + 7, 2, &mut wanted);
    check!(
        buffer[2 * SECTOR_SIZE..3 * SECTOR_SIZE] == wanted,
        "third of three sectors differs"
    );
    drop(disk);
    crate::hal::free(pages, BYTES / 4096);
    Ok(())
}

// virtio-checklist 55
fn refuses_writes(slot: Slot) -> TestResult {
    let mut disk = disk(slot)?;
    let mut before = [0; SECTOR_SIZE];
    let mut after = [0; SECTOR_SIZE];
    checked(disk.read_blocks(FIRST, &mut before), "read")?;
    check_eq!(
        disk.write_blocks(FIRST, &[0x5a; SECTOR_SIZE]),
        Err(Error::IoError),
        "write"
    );
    checked(disk.read_blocks(FIRST, &mut after), "read")?;
    check!(before == after, "the sector has changed");
    Ok(())
}

// virtio-checklist 62
fn serial(slot: Slot, reference: bool) -> TestResult {
    let mut id = [0xff; 20];
    let length = checked(disk(slot)?.device_id(&mut id), "GET_ID")?;
    // QEMU terminates the text with one NUL and leaves the rest.
    check!(
        reference || id[length..].iter().all(|byte| *byte == 0),
        "not padded with NUL: {id:x?}"
    );
    check!(
        id[..length].iter().all(|byte| byte.is_ascii_graphic()),
        "not text: {id:x?}"
    );
    Ok(())
}

// virtio-checklist 63
fn past_the_end(slot: Slot) -> TestResult {
    let mut disk = disk(slot)?;
    let capacity = disk.capacity() as usize;
    let mut data = [0; 2 * SECTOR_SIZE];
    checked(disk.read_blocks(capacity - 2, &mut data), "the last two sectors")?;
    for sector in [
        capacity - 1,
        capacity,
        capacity + 1,
        usize::MAX >> 9,
        usize::MAX - 1,
        usize::MAX,
    ] {
        check_eq!(
            disk.read_blocks(sector, &mut data),
            Err(Error::IoError),
            "two sectors from {sector:#x}"
        );
    }
    checked(disk.read_blocks(0, &mut data), "sector 0 after errors")
}

/// A request in flight.
#[derive(Default)]
struct Flight {
    request: BlkReq,
    data: Data,
    response: BlkResp,
}

struct Data([u8; SECTOR_SIZE]);

impl Default for Data {
    fn default() -> Self {
        Self([0; SECTOR_SIZE])
    }
}

impl Flight {
    fn start(&mut self, disk: &mut Disk, sector: usize) -> Result<u16, Failure> {
        // SAFETY: the buffers are neither moved nor accessed until `finish`, or until the device is reset.
        let token =
            unsafe { disk.read_blocks_nb(sector, &mut self.request, &mut self.data.0, &mut self.response) };
        checked(token, "submit")
    }

    fn finish(&mut self, disk: &mut Disk, token: u16) -> TestResult {
        // SAFETY: the buffers that `start` gave.
        unsafe {
            checked(
                disk.complete_read_blocks(token, &self.request, &mut self.data.0, &mut self.response),
                "completion",
            )?;
        }
        check_eq!(self.response.status(), RespStatus::OK, "status");
        Ok(())
    }
}

// virtio-checklist 8 10 17 45
fn one_each(slot: Slot) -> TestResult {
    let mut disk = disk(slot)?;
    interrupts::clear();
    let intid = slot.device.intid.into();
    for round in 1..=20 {
        let mut flight = Flight::default();
        let token = flight.start(&mut disk, FIRST + round)?;
        check!(
            time::wait(2000, || interrupts::count(0, intid) >= round as u32),
            "no interrupt in round {round}"
        );
        check_eq!(disk.peek_used(), Some(token), "used ring in round {round}");
        flight.finish(&mut disk, token)?;
        time::sleep(2);
        check_eq!(
            interrupts::count(0, intid),
            round as u32,
            "interrupts in round {round}"
        );
        check_eq!(SEEN.load(Ordering::SeqCst), 1, "InterruptStatus in the handler");
        check_eq!(
            LEFT.load(Ordering::SeqCst),
            0,
            "InterruptStatus after InterruptACK"
        );
    }
    check_eq!(interrupts::handled(0), 20, "interrupts in all");
    Ok(())
}

// virtio-checklist 17: the line stays high until InterruptACK.
fn deferred(slot: Slot, context: &mut Context<'_>) -> TestResult {
    let mut disk = disk(slot)?;
    interrupts::clear();
    let mut flight = Flight::default();
    let token = flight.start(&mut disk, FIRST)?;
    check!(time::wait(2000, || disk.peek_used().is_some()), "no completion");
    check!(
        time::wait(1000, || slot.read(INTERRUPT_STATUS) == 1),
        "InterruptStatus is not 1"
    );
    check_eq!(interrupts::handled(0), 0, "interrupts while disabled");
    let _ = context.gic.enable_interrupt(slot.device.intid, None, true);
    check!(
        time::wait(1000, || interrupts::handled(0) == 1),
        "no interrupt after enabling"
    );
    flight.finish(&mut disk, token)?;
    time::sleep(5);
    check_eq!(interrupts::handled(0), 1, "interrupts");
    check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus");
    Ok(())
}

// virtio-checklist 11 24, torture a9
fn reset_in_flight(slot: Slot) -> TestResult {
    for round in 0..20 {
        let mut disk = disk(slot)?;
        let mut flights: [Flight; 4] = Default::default();
        for (index, flight) in flights.iter_mut().enumerate() {
            let _ = flight.start(&mut disk, FIRST + index)?;
        }
        check!(slot.reset(), "reset {round}");
        check_eq!(
            slot.read(INTERRUPT_STATUS),
            0,
            "InterruptStatus after reset {round}"
        );
        // From here on no byte changes.
        for flight in &mut flights {
            flight.data.0.fill(0xc3);
        }
        time::sleep(2);
        for (index, flight) in flights.iter().enumerate() {
            // SAFETY: of ours; volatile because the device is suspected of writing.
            let clean = flight
                .data
                .0
                .iter()
                .all(|byte| unsafe { core::ptr::read_volatile(byte) } == 0xc3);
            check!(clean, "buffer {index} was written after reset {round}");
        }
    }
    Ok(())
}
