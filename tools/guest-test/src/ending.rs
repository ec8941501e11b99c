//! The guest's ending: PSCI SYSTEM_OFF, or `end=` on the command line, so that system tests see how a zone
//! ends.

use core::arch::asm;

use arm_gic::IntId;
use arm_gic::gicv3::{GicCpuInterface, SgiTarget, SgiTargetGroup};
use smccc::{Hvc, psci};

use crate::console::println;
use crate::machine::Machine;
use crate::virtio::register::{
    CONFIG, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS,
};
use crate::virtio::{Slot, VERSION_1, status};
use crate::{cpus, interrupts};

/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_CONFIG_WCE.
const CONFIG_WCE: u64 = 1 << 11;
/// Offset of `writeback` in a block device's configuration space.
const WRITEBACK: u64 = 32;

/// Ends the guest as the command line says.
pub fn reach(machine: &Machine) -> ! {
    let ending = machine.argument("end").unwrap_or("off");
    println!("guest-test: end={ending}");
    match ending {
        "reset" => _ = psci::system_reset::<Hvc>(),
        "cpu-off" => cpu_off(machine),
        "on-reset" => on_reset(machine),
        "hang" => hang(),
        "storm" => storm(machine),
        "storm-notify" => forever(machine, |slot| slot.write(QUEUE_NOTIFY, 0)),
        "storm-config" => forever(machine, |slot| {
            for value in [0, 1, 1, 1] {
                slot.write_byte(CONFIG + WRITEBACK, value);
            }
        }),
        "storm-reset" => forever(machine, |slot| {
            activate(slot);
            slot.reset();
        }),
        "lost" => lost(),
        _ => {}
    }
    power_off()
}

/// Turns the machine off.
pub fn power_off() -> ! {
    let _ = psci::system_off::<Hvc>();
    loop {
        arm_gic::wfi();
    }
}

/// Turns off all CPUs, so that none is left to turn one on.
fn cpu_off(machine: &Machine) {
    if let Some(second) = machine.cpus.get(1) {
        cpus::ensure_on(*second);
        cpus::send(cpus::Command::Off);
    }
    let _ = psci::cpu_off::<Hvc>();
}

/// Resets the machine while the second CPU, which is going off, is turned on again.
fn on_reset(machine: &Machine) {
    if let Some(second) = machine.cpus.get(1) {
        cpus::ensure_on(*second);
        cpus::send(cpus::Command::Off);
        while !cpus::is_off(*second) {}
        let _ = cpus::start(*second);
    }
    let _ = psci::system_reset::<Hvc>();
}

/// Spins with everything masked.
fn hang() -> ! {
    // SAFETY: masks exceptions.
    unsafe { asm!("msr daifset, #0xf", options(nostack)) };
    loop {
        core::hint::spin_loop();
    }
}

/// Notifies all queues of the first disk and sends SGIs to all CPUs, forever and as fast as possible.
fn storm(machine: &Machine) -> ! {
    let slot = Slot::blocks(machine).next();
    loop {
        for queue in 0..4 {
            if let Some(slot) = slot {
                slot.write(QUEUE_NOTIFY, queue);
            }
        }
        for affinity1 in 0..2 {
            let target = SgiTarget::List {
                affinity3: 0,
                affinity2: 0,
                affinity1,
                target_list: 0xfffe,
            };
            let _ = GicCpuInterface::send_sgi(IntId::sgi(3), target, SgiTargetGroup::CurrentGroup1);
        }
    }
}

/// Negotiates what makes the `writeback` byte writable and activates the first disk, without queues.
fn activate(slot: Slot) {
    let ready = slot.negotiate(VERSION_1 | FLUSH | CONFIG_WCE);
    slot.write(STATUS, ready | status::DRIVER_OK);
}

/// Activates the first disk and calls `act` for it, forever.
fn forever(machine: &Machine, act: impl Fn(Slot)) -> ! {
    let Some(slot) = Slot::blocks(machine).next() else {
        println!("Bail out! there is no block device");
        power_off()
    };
    let queue = [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE];
    let ready = slot.negotiate(VERSION_1 | FLUSH | CONFIG_WCE);
    // An empty queue in the last page of RAM, which nothing else uses: its rings are zeroes.
    slot.write(QUEUE_SEL, 0);
    slot.write(QUEUE_NUM, 8);
    let page = machine.ram.0 + machine.ram.1 - 4096;
    for (register, offset) in queue.into_iter().zip([0, 0x400, 0x800]) {
        slot.write_address(register, page + offset);
    }
    slot.write(QUEUE_READY, 1);
    slot.write(STATUS, ready | status::DRIVER_OK);
    loop {
        act(slot);
    }
}

/// Branches to an unmapped address with the vectors there, too: an endless exception.
fn lost() -> ! {
    interrupts::disable();
    // SAFETY: never returns; it affects only this guest.
    unsafe {
        asm!("msr vbar_el1, {nowhere}", "isb", "br {nowhere}", nowhere = in(reg) 0x0b00_0000_u64,
            options(noreturn, nostack));
    }
}
