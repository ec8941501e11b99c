//! The entropy device (virtio 1.2, 5.4), if there is one: through virtio-drivers, and with invalid chains.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::MmioTransport;

use super::queue::{NEXT, Queue, SIZE, WRITE};
use crate::context::Context;
use crate::hal::GuestHal;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::{RNG, Slot, VERSION_1};
use crate::{check, check_eq, time};

type Rng = VirtIORng<GuestHal, MmioTransport<'static>>;

/// Most bytes that ringvisor's device returns for a request.
const MOST: usize = 256;

/// Runs the group on every entropy device.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    for slot in Slot::with(context.machine, RNG) {
        let _ = context.gic.enable_interrupt(slot.device.intid, None, false);
        suite.test("the driver gets random bytes", || random_bytes(slot, reference));
        suite.test("a queue full of requests", || full_queue(slot));
        suite.test_unless(reference, "bytes for the device to read", || bad_chains(slot));
        suite.test("and it works again", || random_bytes(slot, reference));
        let _ = slot.reset();
    }
}

fn driver(slot: Slot) -> Result<Rng, Failure> {
    let transport = slot
        .transport()
        .ok_or_else(|| Failure::new(format_args!("virtio-drivers finds no device")))?;
    Rng::new(transport).map_err(|error| Failure::new(format_args!("set-up: {error}")))
}

/// Bytes come, as many as the used ring says, and others each time.
fn random_bytes(slot: Slot, reference: bool) -> TestResult {
    let mut rng = driver(slot)?;
    let mut last = [0; 64];
    let mut ones = 0;
    for round in 0..20 {
        let mut bytes = [0; 64];
        let count = rng.request_entropy(&mut bytes);
        let count = count.map_err(|error| Failure::new(format_args!("request {round}: {error}")))?;
        check!((1..=64).contains(&count), "{count} bytes in round {round}");
        check!(reference || count == 64, "{count} bytes in round {round}");
        check!(bytes[..count] != last[..count], "the same bytes in round {round}");
        ones += bytes[..count].iter().map(|byte| byte.count_ones()).sum::<u32>();
        last = bytes;
    }
    // Of 10 240 bits half, to within 10 standard deviations.
    check!(
        reference || (4600..5640).contains(&ones),
        "{ones} of 10240 bits are 1"
    );
    let mut large = [0; 2 * MOST];
    let count = rng.request_entropy(&mut large);
    let count = count.map_err(|error| Failure::new(format_args!("large request: {error}")))?;
    check!(count >= 1, "no byte for a large request");
    check!(reference || count == MOST, "{count} bytes for a large request");
    check!(
        large[count..].iter().all(|byte| *byte == 0),
        "bytes behind used.len"
    );
    Ok(())
}

/// All descriptors at once, each a request: all complete, once.
fn full_queue(slot: Slot) -> TestResult {
    let mut queue = Queue::running(slot, 0)?;
    for index in 0..SIZE {
        queue.describe(index, queue.data() + u64::from(index) * 8, 8, WRITE, 0);
        queue.offer(index);
    }
    queue.notify();
    check!(
        time::wait(2000, || queue.used() == SIZE),
        "{} of {SIZE} requests completed",
        queue.used()
    );
    time::sleep(2);
    check_eq!(queue.used(), SIZE, "used.idx");
    Ok(())
}

/// Virtio 1.2, 5.4.6.1: the driver must not place a device-readable buffer; ringvisor's device needs a reset
/// then.
fn bad_chains(slot: Slot) -> TestResult {
    let cases: [(&str, u32, u16); 4] = [
        ("to read", 16, 0),
        ("to read, then to write", 16, NEXT),
        ("empty", 0, WRITE),
        ("outside of RAM", 16, WRITE),
    ];
    for (name, length, flags) in cases {
        let mut queue = Queue::running(slot, VERSION_1)?;
        queue.set(queue.data(), [0xa5_u8; 64]);
        let address = match name {
            "outside of RAM" => 0x10,
            _ => queue.data(),
        };
        queue.describe(0, address, length, flags, 1);
        queue.describe(1, queue.data() + 32, 16, WRITE, 0);
        queue.offer(0);
        queue.notify();
        check!(queue.broken(), "{name}: no DEVICE_NEEDS_RESET");
        check_eq!(queue.used(), 0, "{name}: used.idx");
        let bytes: [u8; 64] = queue.get(queue.data());
        check!(bytes == [0xa5; 64], "{name}: bytes were written");
    }
    Ok(())
}
