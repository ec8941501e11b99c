//! Accesses outside RAM and devices, and accesses by instructions without a valid syndrome. Each takes an
//! external abort at that instruction; nothing else happens, and the guest continues.

use arrayvec::ArrayVec;

use crate::context::Context;
use crate::exceptions::{ALIGNMENT, EC_INSTRUCTION, EXTERNAL, UNSUPPORTED};
use crate::machine::Machine;
use crate::report::{Failure, Suite, TestResult};
use crate::virtio::Slot;
use crate::virtio::register::{CONFIG, DEVICE_ID, QUEUE_SEL, STATUS};
use crate::{attempt, check, check_eq, exceptions};

/// A value that must be unchanged in a register after an abort.
const MARK: u64 = 0x5a5a_1234_8765_a5a5;

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    let machine = context.machine;
    let holes = holes(context);
    suite.test("loads outside RAM and devices", || loads(&holes));
    suite.test("stores outside RAM and devices", || stores(&holes));
    suite.test("a thousand aborts", || {
        for _ in 0..1000 {
            attempt!(holes[0], MARK, "ldr {x}, [{a}]").aborted()?;
        }
        Ok(())
    });
    suite.test_unless(
        reference,
        "devices of QEMU that a zone does not have",
        absent_devices,
    );
    suite.test_unless(reference, "a sweep over the address space", || sweep(machine));
    suite.test_unless(reference, "pairs and writeback on trapped pages", || {
        without_syndrome(machine.gicd)
    });
    suite.test_unless(reference, "pairs and writeback on the UART", || {
        without_syndrome(machine.uart.base)
    });
    suite.test_unless(reference, "fetching from a device", || {
        fetch(machine.uart.base)?;
        fetch(holes[0])
    });
    let slot = Slot::blocks(machine).next();
    suite.test_unless(
        reference || slot.is_none(),
        "stores without syndrome on a virtio page",
        || slot.map_or(Ok(()), virtio_stores),
    );
    suite.test_unless(reference || slot.is_none(), "odd loads on a virtio page", || {
        slot.map_or(Ok(()), virtio_loads)
    });
    suite.test_unless(reference || slot.is_none(), "fetching from a virtio page", || {
        slot.map_or(Ok(()), |slot| fetch(slot.device.base))
    });
}

/// Unmapped addresses on both machines.
fn holes(context: &Context<'_>) -> [u64; 4] {
    let machine = context.machine;
    [
        0x0b00_0000,
        machine.ram.0 + machine.ram.1,
        // Past the last redistributor.
        machine.gicr + machine.cpus.len() as u64 * 0x2_0000,
        // 128 GiB.
        0x20_0000_0000,
    ]
}

// torture g1
fn loads(holes: &[u64]) -> TestResult {
    for hole in holes {
        attempt!(*hole, MARK, "ldr {x}, [{a}]").aborted()?;
        attempt!(*hole + 4, MARK, "ldr {x:w}, [{a}]").aborted()?;
        attempt!(*hole + 2, MARK, "ldrh {x:w}, [{a}]").aborted()?;
        attempt!(*hole + 1, MARK, "ldrb {x:w}, [{a}]").aborted()?;
        attempt!(*hole + 1, MARK, "ldrsb {x}, [{a}]").aborted()?;
        attempt!(*hole, MARK, "ldp {x}, {y}, [{a}]").aborted()?;
        attempt!(*hole, MARK, "ldr {x}, [{a}], #8").aborted()?;
    }
    Ok(())
}

// torture g1
fn stores(holes: &[u64]) -> TestResult {
    for hole in holes {
        attempt!(*hole, MARK, "str {x}, [{a}]").aborted()?;
        attempt!(*hole + 4, MARK, "str {x:w}, [{a}]").aborted()?;
        attempt!(*hole + 2, MARK, "strh {x:w}, [{a}]").aborted()?;
        attempt!(*hole + 1, MARK, "strb {x:w}, [{a}]").aborted()?;
        attempt!(*hole, MARK, "stp {x}, {y}, [{a}]").aborted()?;
        attempt!(*hole, MARK, "str {x}, [{a}, #8]!")
            .aborted()
            .or_else(|_| {
                // FAR_EL1 is the address with its offset.
                let attempt = attempt!(*hole, MARK, "str {x}, [{a}, #8]!");
                exceptions::Attempt {
                    address: *hole + 8,
                    ..attempt
                }
                .aborted()
            })?;
    }
    Ok(())
}

/// Flash, ITS, fw_cfg, PCI windows of QEMU's `virt`, and physical addresses of root's machine.
fn absent_devices() -> TestResult {
    for address in [
        0x0,
        0x0400_0000,
        0x0808_0000,
        0x0902_0000,
        0x0c00_0000,
        0x1000_0000,
        0x3eff_0000,
    ] {
        attempt!(address, MARK, "ldr {x:w}, [{a}]").aborted()?;
        attempt!(address, MARK, "str {x:w}, [{a}]").aborted()?;
    }
    for address in [0x40_1000_0000, 0x7f_ffff_f000] {
        attempt!(address, MARK, "ldr {x}, [{a}]").aborted()?;
    }
    Ok(())
}

/// Every page below the PCI windows of QEMU's `virt`, every 2 MiB up to 8 GiB, every GiB that the CPU can
/// address: only addresses in the device tree may respond.
// torture g1
fn sweep(machine: &Machine) -> TestResult {
    let virtio = machine.virtio.iter().map(|device| (device.base, device.size));
    let mut known: ArrayVec<(u64, u64), 72> = virtio.collect();
    let cpus = machine.cpus.len() as u64;
    // No test uses the PL031, so it is not read from the machine's tree either.
    let fixed = [
        machine.ram,
        (machine.gicd, 0x1_0000),
        (machine.gicr, cpus * 0x2_0000),
        (machine.uart.base, 0x1000),
        (machine.gpio.base, 0x1000),
        (0x0901_0000, 0x1000),
        // Slots without a device may have their registers.
        (0x0a00_0000, 32 * 0x1000),
    ];
    known.extend(fixed);
    let pages = (0..0x1000_0000).step_by(0x1000);
    let blocks = (0x1000_0000..0x2_0000_0000).step_by(0x20_0000);
    let large = (0x2_0000_0000..0x80_0000_0000).step_by(0x4000_0000);
    for address in pages.chain(blocks).chain(large) {
        if known
            .iter()
            .any(|(base, size)| (base & !0xfff..base + size).contains(&address))
        {
            continue;
        }
        attempt!(address, MARK, "ldr {x:w}, [{a}]").aborted()?;
    }
    for slot in (0x0a00_0000..0x0a02_0000).step_by(0x1000) {
        let id = attempt!(slot + DEVICE_ID, 0, "ldr {x:w}, [{a}]");
        let listed = machine.virtio.iter().any(|device| device.base == slot);
        check!(
            listed || id.fault.is_some() || id.value == 0,
            "a device at {slot:#x} that the tree has not"
        );
    }
    Ok(())
}

// torture a3: no instruction here has a valid syndrome.
fn without_syndrome(base: u64) -> TestResult {
    attempt!(base, MARK, "ldp {x}, {y}, [{a}]").aborted()?;
    attempt!(base, MARK, "stp {x}, {y}, [{a}]").aborted()?;
    attempt!(base, MARK, "ldp {x:w}, {y:w}, [{a}]").aborted()?;
    attempt!(base, MARK, "ldr {x:w}, [{a}], #4").aborted()?;
    attempt!(base, MARK, "str {x:w}, [{a}], #4").aborted()?;
    attempt!(base, MARK, ".arch_extension simd", "ldr q0, [{a}]").aborted()?;
    attempt!(base, MARK, ".arch_extension simd", "str q0, [{a}]").aborted()?;
    attempt!(base, MARK, ".arch_extension simd", "ld1 {{v0.16b}}, [{a}]").aborted()?;
    attempt!(base, MARK, "ldxr {x:w}, [{a}]").aborted_with(&[EXTERNAL, UNSUPPORTED])?;
    if has_atomics() {
        attempt!(base, MARK, ".arch_extension lse", "ldadd {x:w}, {y:w}, [{a}]")
            .aborted_with(&[EXTERNAL, UNSUPPORTED])?;
    }
    attempt!(base, MARK, "dc zva, {a}").aborted_with(&[EXTERNAL, ALIGNMENT])
}

/// Returns whether the CPU has FEAT_LSE.
fn has_atomics() -> bool {
    let value: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mrs {}, id_aa64isar0_el1", out(reg) value, options(nomem, nostack, preserves_flags));
    }
    value >> 20 & 0xf >= 2
}

// torture a4
fn fetch(address: u64) -> TestResult {
    let Some(fault) = exceptions::call(address) else {
        return Err(Failure::new(format_args!("code at {address:#x} runs")));
    };
    check_eq!(fault.class(), EC_INSTRUCTION, "exception class, {fault:x?}");
    check_eq!(fault.status(), EXTERNAL, "fault status, {fault:x?}");
    check_eq!(fault.at, address, "ELR_EL1");
    Ok(())
}

// torture a2 a3
fn virtio_stores(slot: Slot) -> TestResult {
    let _ = slot.reset();
    let before = slot.dump();
    for offset in [QUEUE_SEL, STATUS, CONFIG] {
        let base = slot.device.base + offset;
        attempt!(base, MARK, "stp {x:w}, {y:w}, [{a}]").aborted()?;
        attempt!(base, MARK, "str {x:w}, [{a}], #4").aborted()?;
        attempt!(base & !0xf, MARK, ".arch_extension simd", "str q0, [{a}]").aborted()?;
        attempt!(base, MARK, ".arch_extension simd", "st1 {{v0.4s}}, [{a}]")
            .aborted_with(&[EXTERNAL, ALIGNMENT])?;
        // A store exclusive may also fail by itself, without an access.
        let exclusive = attempt!(base, MARK, "stxr {y:w}, {x:w}, [{a}]");
        if exclusive.fault.is_some() {
            exclusive.aborted_with(&[EXTERNAL, UNSUPPORTED])?;
        }
        if has_atomics() {
            attempt!(base, MARK, ".arch_extension lse", "ldadd {x:w}, {y:w}, [{a}]")
                .aborted_with(&[EXTERNAL, UNSUPPORTED])?;
            attempt!(base, MARK, ".arch_extension lse", "swp {x:w}, {y:w}, [{a}]")
                .aborted_with(&[EXTERNAL, UNSUPPORTED])?;
        }
        attempt!(base, MARK, "dc zva, {a}").aborted_with(&[EXTERNAL, ALIGNMENT])?;
    }
    for (index, (old, new)) in before.iter().zip(slot.dump()).enumerate() {
        check_eq!(new, *old, "register {:#05x}", index * 4);
    }
    Ok(())
}

/// Loads of any form either return the contents or abort.
fn virtio_loads(slot: Slot) -> TestResult {
    let base = slot.device.base;
    let pair = attempt!(base, MARK, "ldp {x:w}, {y:w}, [{a}]");
    let writeback = attempt!(base, MARK, "ldr {x:w}, [{a}], #4");
    let exclusive = attempt!(base, MARK, "ldxr {x:w}, [{a}]");
    for attempt in [pair, writeback, exclusive] {
        match attempt.fault {
            None => check_eq!(attempt.value, 0x7472_6976, "MagicValue"),
            Some(_) => attempt.aborted_with(&[EXTERNAL, UNSUPPORTED])?,
        }
    }
    // The end of the slot's registers and of its page.
    for offset in [0x1fc, 0x200, 0xffc] {
        let attempt = attempt!(base + offset, MARK, "ldr {x:w}, [{a}]");
        match attempt.fault {
            None => check_eq!(attempt.value, 0, "offset {offset:#x}"),
            Some(_) => attempt.aborted()?,
        }
    }
    check!(slot.read(0) == 0x7472_6976, "MagicValue at the end");
    Ok(())
}
