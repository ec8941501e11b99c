//! The console device (virtio 1.2, 5.3), if there is one: through virtio-drivers, emergency writes, and
//! invalid chains. What it prints is looked at from outside.

use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::mmio::MmioTransport;

use super::queue::{Queue, WRITE};
use crate::context::Context;
use crate::hal::GuestHal;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{CONFIG, STATUS};
use crate::virtio::{CONSOLE, Slot, VERSION_1};
use crate::{check, check_eq};

type Console = VirtIOConsole<GuestHal, MmioTransport<'static>>;

/// Offset of `emerg_wr`.
const EMERG_WR: u64 = CONFIG + 8;
/// The transmit queue of port 0.
const TRANSMIT: u32 = 1;

/// Runs the group on every console device.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    for slot in Slot::with(context.machine, CONSOLE) {
        let _ = context.gic.enable_interrupt(slot.device.intid, None, false);
        suite.test("emergency writes", || emergency_writes(slot));
        suite.test("the driver prints", || prints(slot));
        suite.test_unless(reference, "output that is to be written", || bad_chains(slot));
        suite.test("and it works again", || prints(slot));
        let _ = slot.reset();
    }
}

/// 5.3.4.1: before the device is set up, and after.
fn emergency_writes(slot: Slot) -> TestResult {
    check!(slot.reset(), "reset");
    for byte in b"\r\nguest-test: emergency write\r\n" {
        slot.write(EMERG_WR, (*byte).into());
    }
    check_eq!(slot.read(STATUS), 0, "Status after emergency writes");
    check_eq!(slot.read(EMERG_WR), 0, "emerg_wr");
    slot.negotiate(VERSION_1);
    for byte in b"guest-test: another\r\n" {
        slot.write(EMERG_WR, (*byte).into());
    }
    Ok(())
}

fn prints(slot: Slot) -> TestResult {
    let transport = slot
        .transport()
        .ok_or_else(|| Failure::new(format_args!("virtio-drivers finds no device")))?;
    let mut console =
        Console::new(transport).map_err(|error| Failure::new(format_args!("set-up: {error}")))?;
    for _ in 0..100 {
        let printed = console.send_bytes(b"printed by a driver\n");
        printed.map_err(|error| Failure::new(format_args!("output: {error}")))?;
    }
    Ok(())
}

/// 5.3.6.2: the driver must not put a device-writable buffer in a transmit queue.
fn bad_chains(slot: Slot) -> TestResult {
    check!(slot.reset(), "reset");
    slot.negotiate(VERSION_1);
    let mut queue = Queue::numbered(slot, TRANSMIT)?;
    queue.driver_ok();
    queue.describe(0, queue.data(), 16, WRITE, 0);
    queue.offer(0);
    queue.notify();
    check!(queue.broken(), "no DEVICE_NEEDS_RESET");
    check_eq!(queue.used(), 0, "used.idx");
    Ok(())
}
