//! How the guest ends: PSCI SYSTEM_OFF, or what `end=` on the command line says, so that tests from outside see what
//! becomes of a zone whose guest does that.

use core::arch::asm;

use arm_gic::IntId;
use arm_gic::gicv3::{GicCpuInterface, SgiTarget, SgiTargetGroup};
use smccc::{Hvc, psci};

use crate::console::println;
use crate::machine::Machine;
use crate::virtio::Slot;
use crate::virtio::register::QUEUE_NOTIFY;
use crate::{cpus, interrupts};

/// Ends.
pub fn reach(machine: &Machine) -> ! {
    let ending = machine.argument("end").unwrap_or("off");
    println!("guest-test: end={ending}");
    match ending {
        "reset" => _ = psci::system_reset::<Hvc>(),
        "cpu-off" => cpu_off(machine),
        "on-reset" => on_reset(machine),
        "hang" => hang(),
        "storm" => storm(machine),
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

/// The last CPU goes off and leaves nobody to turn one on.
fn cpu_off(machine: &Machine) {
    if let Some(second) = machine.cpus.get(1) {
        cpus::ensure_on(*second);
        cpus::send(cpus::Command::Off);
    }
    let _ = psci::cpu_off::<Hvc>();
}

/// Resets the machine while the second CPU, which is on its way out, is turned on again.
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

/// Notifies the first disk of all queues and sends SGIs to everybody, for ever and as fast as it goes.
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

/// Runs into nothing with its vectors there too: an exception for ever.
fn lost() -> ! {
    interrupts::disable();
    // SAFETY: never comes back; what it breaks is this guest alone.
    unsafe {
        asm!("msr vbar_el1, {nowhere}", "isb", "br {nowhere}", nowhere = in(reg) 0x0b00_0000_u64,
            options(noreturn, nostack));
    }
}
