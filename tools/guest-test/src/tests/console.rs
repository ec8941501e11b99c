//! The console device (virtio 1.2, 5.3), if there is one: output, emergency writes, and invalid chains. What
//! is printed is looked at from outside.

use super::queue::{Queue, SIZE, WRITE};
use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::register::{CONFIG, STATUS};
use crate::virtio::{CONSOLE, Slot, VERSION_1};
use crate::{check, check_eq, time};

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

/// Returns the queue of output.
fn output(slot: Slot) -> Result<Queue, Failure> {
    check!(slot.reset(), "reset");
    slot.negotiate(VERSION_1);
    let queue = Queue::numbered(slot, TRANSMIT)?;
    queue.driver_ok();
    Ok(queue)
}

fn prints(slot: Slot) -> TestResult {
    const TEXT: &[u8; 20] = b"printed by a driver\n";
    let mut queue = output(slot)?;
    queue.set(queue.data(), *TEXT);
    for round in 0..100 {
        let head = round % SIZE;
        queue.describe(head, queue.data(), TEXT.len() as u32, 0, 0);
        queue.offer(head);
        queue.notify();
        check!(
            time::wait(2000, || queue.used() == round + 1),
            "output {round} did not complete"
        );
    }
    Ok(())
}

/// 5.3.6.2: the driver must not put a device-writable buffer in a transmit queue.
fn bad_chains(slot: Slot) -> TestResult {
    let mut queue = output(slot)?;
    queue.describe(0, queue.data(), 16, WRITE, 0);
    queue.offer(0);
    queue.notify();
    check!(queue.broken(), "no DEVICE_NEEDS_RESET");
    check_eq!(queue.used(), 0, "used.idx");
    Ok(())
}
