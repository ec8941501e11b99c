//! Requests in flight whose daemon is dead when the device is reset and when the machine is: afterwards
//! nothing writes to their memory. The system test suspends the last disk and kills the daemon once a read is
//! in flight.

use smccc::{Hvc, psci};

use super::queue::Queue;
use crate::console::println;
use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::Slot;
use crate::{check, time};

/// Tells the guest after a reboot that there was one.
const SECOND_LIFE: u64 = 0x7276_2d6c_6966_6532;
/// Time that the daemon may take to die, in milliseconds. If it takes longer, it dies during the reset, which
/// is as good.
const DEATH: u64 = 5000;
/// Least time that the read stays in flight after it has been announced, in milliseconds.
const HELD: u64 = 10_000;
/// Time that memory is checked, in milliseconds.
const WATCH: u64 = 3000;

/// Resets the device.
pub fn reset(suite: &mut Suite, context: &mut Context<'_>) {
    suite.test("memory stays as it is once Status reads 0", || {
        let (queue, begun) = reading(context)?;
        check!(queue.reset(), "Status does not read 0");
        println!("guest-test: reset");
        held_since(begun)?;
        unchanged(&queue)
    });
}

/// Resets the machine, and checks the memory after the reboot.
pub fn reboot(suite: &mut Suite, context: &mut Context<'_>) {
    // The last words of RAM: kernel and tree are elsewhere, and a reboot leaves them.
    let (base, size) = context.machine.ram;
    let mark = (base + size - 16) as *mut [u64; 2];
    // SAFETY: RAM of this guest that nothing else uses.
    let [word, begun] = unsafe { mark.read_volatile() };
    suite.test("memory stays as it is after a reboot", || {
        if word == SECOND_LIFE {
            println!("guest-test: second life");
            held_since(begun)?;
            // The same pages: nothing else was allocated, before or after.
            return unchanged(&Queue::running(last_disk(context)?, 0)?);
        }
        let (_queue, begun) = reading(context)?;
        // SAFETY: as above.
        unsafe { mark.write_volatile([SECOND_LIFE, begun]) };
        let _ = psci::system_reset::<Hvc>();
        Err(Failure::new(format_args!("the machine was not reset")))
    });
}

/// A queue of the last disk with a read that does not complete, and when it was announced.
fn reading(context: &Context<'_>) -> Result<(Queue, u64), Failure> {
    let mut queue = Queue::running(last_disk(context)?, 0)?;
    queue.offer_read(0);
    println!("guest-test: reading");
    let begun = time::now_physical();
    time::sleep(DEATH);
    check!(!queue.is_done(), "the read has ended: the disk is not suspended");
    Ok((queue, begun))
}

/// Returns whether the read may have completed by now.
fn held_since(begun: u64) -> TestResult {
    let since = time::now_physical().wrapping_sub(begun);
    check!(
        since >= time::milliseconds(HELD),
        "done after {since} counts, with the read in flight"
    );
    Ok(())
}

fn last_disk(context: &Context<'_>) -> Result<Slot, Failure> {
    let slot = Slot::blocks(context.machine).last();
    slot.ok_or_else(|| Failure::new(format_args!("no disk")))
}

/// Checks that the queue's pages, with the read's buffer, do not change.
fn unchanged(queue: &Queue) -> TestResult {
    let before = queue.sum();
    let end = time::now() + time::milliseconds(WATCH);
    while time::now() < end {
        check!(queue.sum() == before, "memory was written after it was returned");
    }
    Ok(())
}
