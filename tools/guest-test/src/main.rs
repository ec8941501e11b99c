//! A bare-metal arm64 guest that tests the machine it runs on: virtio-mmio transport and block device, PSCI,
//! GICv3, timers, PL011, and accesses that abort. Runs in a zone and, for comparison, on QEMU's `virt`.
//!
//! Results are TAP lines on the PL011, then `guest-test: PASS` or `guest-test: FAIL`, then PSCI SYSTEM_OFF.
//! Options on the command line: `test=blk,gic` (all by default), `reference` on plain QEMU, `end=` another
//! ending.
#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "a failure carries its text, there is no allocator"
)]

mod affinity;
mod console;
mod context;
mod cpus;
mod ending;
mod exceptions;
mod hal;
mod head;
mod interrupts;
mod machine;
mod registers;
mod report;
mod tests;
mod time;
mod virtio;

use core::panic::PanicInfo;
use core::ptr::NonNull;

use aarch64_rt::entry;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, UniqueMmioPointer};

use console::println;
use context::Context;
use machine::Machine;
use report::Suite;

entry!(main);

/// Where the device tree is if x0 is 0: QEMU starts an ELF file so.
const START_OF_RAM: u64 = 0x4000_0000;

fn main(x0: u64, _: u64, _: u64, _: u64) -> ! {
    let tree = if x0 == 0 { START_OF_RAM } else { x0 };
    // SAFETY: the boot protocol: x0 is the device tree, which nothing here writes.
    match unsafe { Machine::from_tree(tree) } {
        Ok(machine) => {
            run(&machine, tree);
            ending::reach(&machine)
        }
        // The tree names no console: QEMU's and ringvisor's PL011 are at this address.
        Err(message) => {
            // SAFETY: as above.
            unsafe { console::init(0x0900_0000) };
            println!("Bail out! {message}");
            println!("guest-test: FAIL");
        }
    }
    ending::power_off()
}

fn run(machine: &Machine, tree: u64) {
    // SAFETY: from the device tree; mapped as device memory.
    unsafe { console::init(machine.uart.base) };
    println!(
        "guest-test: at {:#x}, device tree at {tree:#x}, initial RAM disk at {:x?}",
        head::address(),
        machine.initrd
    );
    println!(
        "guest-test: {} CPUs, RAM {:#x}+{:#x}",
        machine.cpus.len(),
        machine.ram.0,
        machine.ram.1
    );
    println!(
        "guest-test: {} virtio slots, command line: {}",
        machine.virtio.len(),
        machine.arguments
    );
    let Some(gic) = gic(machine) else {
        println!("Bail out! the GIC is not one that arm-gic knows");
        println!("guest-test: FAIL");
        return;
    };
    let wanted = machine.argument("test");
    if wanted == Some("none") {
        return;
    }
    let mut context = Context { machine, gic };
    let mut suite = Suite::default();
    let mut unknown = wanted
        .into_iter()
        .flat_map(|list| list.split(','))
        .filter(|name| !tests::GROUPS.iter().any(|(group, _)| group == name));
    if let Some(name) = unknown.next() {
        println!("Bail out! no test group {name}");
        println!("guest-test: FAIL");
        return;
    }
    for (name, group) in tests::GROUPS {
        let chosen = match wanted {
            Some(list) => list.split(',').any(|wanted| wanted == *name),
            None => !tests::INTERACTIVE.contains(name),
        };
        if chosen {
            suite.group(name);
            group(&mut suite, &mut context);
        }
    }
    suite.finish();
}

/// Sets up the GIC and this CPU's interface.
fn gic(machine: &Machine) -> Option<GicV3<'static>> {
    let distributor = NonNull::new(machine.gicd as *mut Gicd)?;
    let redistributors = NonNull::new(machine.gicr as *mut GicrSgi)?;
    // SAFETY: from the device tree; mapped as device memory; nothing else drives it.
    let mut gic = unsafe {
        GicV3::new(
            UniqueMmioPointer::new(distributor),
            redistributors,
            machine.cpus.len(),
        )
    }
    .ok()?;
    gic.setup(0);
    for cpu in 0..machine.cpus.len() {
        if cpu != 0 {
            let _ = gic.redistributor_mark_core_awake(cpu);
        }
        let wake = IntId::sgi(cpus::WAKE);
        let _ = gic.set_interrupt_priority(wake, Some(cpu), 0xa0);
        let _ = gic.enable_interrupt(wake, Some(cpu), true);
    }
    GicCpuInterface::set_priority_mask(0xff);
    interrupts::enable();
    Some(gic)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::print_forced(format_args!("Bail out! {info}\nguest-test: FAIL\n"));
    ending::power_off()
}
