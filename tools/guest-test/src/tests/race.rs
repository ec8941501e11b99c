//! Two vCPUs on one device at once. Whatever they do to each other, the device stays sound: it resets, works
//! again, and accesses no memory outside its queues.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use crate::context::Context;
use crate::cpus;
use crate::hal::GuestHal;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{
    CONFIG, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL, INTERRUPT_ACK, INTERRUPT_STATUS,
    QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, SHM_SEL, STATUS,
};
use crate::virtio::{Slot, VERSION_1};
use crate::{check, check_eq, time};

/// Registers of the device that the second CPU disturbs.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Which [`Disturbance`].
static KIND: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// What the second CPU does to the device.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Disturbance {
    /// Random values into random registers.
    Registers = 0,
    /// Acknowledges and notifies.
    Acknowledge = 1,
    /// Resets.
    Reset = 2,
}

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    // QEMU 7.2 fails an assertion when a queue is removed while it is processed.
    let reference = context.machine.is_reference();
    let (Some(slot), Some(second)) = (
        Slot::blocks(context.machine).next(),
        context.machine.cpus.get(1).copied(),
    ) else {
        suite.skip("two CPUs on one device", "one CPU or no disk");
        return;
    };
    suite.test_unless(reference, "both write random registers", || {
        registers(slot, second)
    });
    suite.test("requests while the other acknowledges and notifies", || {
        requests(slot, second)
    });
    suite.test_unless(reference, "resets from both, with requests in flight", || {
        resets(slot, second)
    });
    suite.test("and it works again", || works(slot));
}

fn store(offset: u64, value: u32) {
    let address = BASE.load(Ordering::SeqCst) + offset;
    // SAFETY: a register of the device.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) }
}

fn load(offset: u64) -> u32 {
    let value;
    let address = BASE.load(Ordering::SeqCst) + offset;
    // SAFETY: a register of the device.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack)) }
    value
}

/// xorshift32
fn random(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

/// Makes one random store. Queue addresses do not change, so that the device accesses no other memory.
fn random_store(state: &mut u32) {
    let registers = [
        DEVICE_FEATURES_SEL,
        DRIVER_FEATURES_SEL,
        DRIVER_FEATURES,
        QUEUE_SEL,
        QUEUE_NUM,
        QUEUE_READY,
        QUEUE_NOTIFY,
        INTERRUPT_ACK,
        STATUS,
        CONFIG,
        SHM_SEL,
    ];
    let register = registers[random(state) as usize % registers.len()];
    let value = random(state);
    store(register, if value & 1 == 0 { value & 0xf } else { value });
    let _ = load(u64::from(random(state)) % 0x80 * 4);
}

/// The second CPU's task until [`STOP`] is set.
fn disturb() {
    let mut state = 0x1234_5678;
    while !STOP.load(Ordering::SeqCst) {
        match KIND.load(Ordering::SeqCst) {
            kind if kind == Disturbance::Registers as u32 => random_store(&mut state),
            kind if kind == Disturbance::Acknowledge as u32 => {
                store(INTERRUPT_ACK, random(&mut state) & 3);
                store(QUEUE_NOTIFY, random(&mut state) & 1);
                let _ = load(INTERRUPT_STATUS);
            }
            _ => store(STATUS, 0),
        }
        ROUNDS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs `body` while the second CPU disturbs the device.
fn during(kind: Disturbance, slot: Slot, second: u64, body: impl FnOnce() -> TestResult) -> TestResult {
    check!(cpus::ensure_on(second), "the second CPU does not come up");
    BASE.store(slot.device.base, Ordering::SeqCst);
    KIND.store(kind as u32, Ordering::SeqCst);
    ROUNDS.store(0, Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    cpus::run_task(disturb);
    let started = time::wait(2000, || ROUNDS.load(Ordering::SeqCst) > 0);
    let result = body();
    STOP.store(true, Ordering::SeqCst);
    let mut last = ROUNDS.load(Ordering::SeqCst);
    let stopped = time::wait(2000, || {
        time::sleep(5);
        core::mem::replace(&mut last, ROUNDS.load(Ordering::SeqCst)) == last
    });
    check!(
        started && stopped,
        "the second CPU does not start or stop its task"
    );
    result?;
    check!(slot.reset(), "reset afterwards");
    check_eq!(slot.read(INTERRUPT_STATUS), 0, "InterruptStatus after the reset");
    Ok(())
}

fn works(slot: Slot) -> TestResult {
    let failed = |what| move |error| Failure::new(format_args!("{what}: {error}"));
    let transport = slot
        .transport()
        .ok_or_else(|| Failure::new(format_args!("no device")))?;
    let mut disk = VirtIOBlk::<GuestHal, _>::new(transport).map_err(failed("set-up"))?;
    disk.read_blocks(0, &mut [0; SECTOR_SIZE]).map_err(failed("read"))
}

// torture a12
fn registers(slot: Slot, second: u64) -> TestResult {
    during(Disturbance::Registers, slot, second, || {
        let mut state = 0x8765_4321;
        for _ in 0..20_000 {
            random_store(&mut state);
        }
        Ok(())
    })?;
    works(slot)
}

// torture a13
fn requests(slot: Slot, second: u64) -> TestResult {
    let failed = |what| move |error| Failure::new(format_args!("{what}: {error}"));
    during(Disturbance::Acknowledge, slot, second, || {
        let transport = slot
            .transport()
            .ok_or_else(|| Failure::new(format_args!("no device")))?;
        let mut disk = VirtIOBlk::<GuestHal, _>::new(transport).map_err(failed("set-up"))?;
        let mut first = [0; SECTOR_SIZE];
        disk.read_blocks(0, &mut first).map_err(failed("read"))?;
        for round in 0..200 {
            let mut data = [0xa5; SECTOR_SIZE];
            disk.read_blocks(0, &mut data).map_err(failed("read"))?;
            check!(data == first, "sector 0 differs in round {round}");
        }
        Ok(())
    })
}

// torture a9
fn resets(slot: Slot, second: u64) -> TestResult {
    let page = crate::hal::allocate(1).ok_or_else(|| Failure::new(format_args!("no memory")))?;
    let result = during(Disturbance::Reset, slot, second, || {
        for _ in 0..200 {
            let _ = slot.negotiate(VERSION_1);
            slot.write(QUEUE_SEL, 0);
            slot.write(QUEUE_NUM, 16);
            slot.write_address(QUEUE_DESC, page.as_ptr() as u64);
            slot.write_address(QUEUE_DRIVER, page.as_ptr() as u64 + 0x400);
            slot.write_address(QUEUE_DEVICE, page.as_ptr() as u64 + 0x800);
            slot.write(QUEUE_READY, 1);
            slot.write(STATUS, slot.read(STATUS) | 4);
            slot.write(QUEUE_NOTIFY, 0);
        }
        Ok(())
    });
    // Once Status reads 0 the memory is the guest's again.
    let bytes = page.as_ptr();
    // SAFETY: the page is ours.
    unsafe { bytes.write_bytes(0xc3, 4096) };
    time::sleep(20);
    // SAFETY: as above; volatile because the device is suspected of writing.
    let clean = (0..4096).all(|index| unsafe { bytes.add(index).read_volatile() } == 0xc3);
    crate::hal::free(page, 1);
    result?;
    check!(clean, "the queue's memory was written after the last reset");
    Ok(())
}
