//! What a CPU does outside of traps: idles at EL2 without a vCPU, starts one when ordered to, and passes
//! [`before_entry`] before each entry into a guest.

use super::arch::{self, vcpu, vectors};
use super::control::info;
use super::cpu::{self, Cpu, Order, State};
use super::current::Current;
use super::owner::Owner;
use super::{console, gic, interrupts};

/// Waits without a vCPU for the order to start one. The stack restarts empty: a vCPU may be ordered to leave
/// before it has entered its guest, any number of times.
pub fn idle() -> ! {
    // SAFETY: the frame is this CPU's own; callers hold nothing that has to be dropped, for they never return
    // either.
    unsafe { vectors::restart(cpu::this().frame(), wait_for_orders) }
}

/// Ends the vCPU of this CPU, which has turned itself off.
pub fn leave(owner: Current) -> ! {
    owner.leave(cpu::this());
    info::refresh();
    idle()
}

extern "C" fn wait_for_orders() -> ! {
    let cpu = cpu::this();
    gic::clear_list_registers();
    cpu.set_state(State::Parked);
    loop {
        match cpu.take_order() {
            Some(Order::Stop) => {
                if let Some(owner) = Current::ordered_on(cpu) {
                    owner.leave(cpu);
                }
                info::refresh();
            }
            Some(Order::Start) => start(cpu),
            None => {}
        }
        if console::drain() {
            arch::relax();
            continue;
        }
        arch::wfi();
        interrupts::handle();
    }
}

fn start(cpu: &'static Cpu) -> ! {
    cpu.restart_counters_if_fresh();
    match Current::ordered_on(cpu) {
        Some(owner) if owner.prepare_vcpu(cpu) => {
            cpu.set_state(State::Running);
            info::refresh();
            let (entry, context) = cpu.start_arguments();
            enter(owner, entry, context)
        }
        _ => idle(),
    }
}

/// Enters the guest for the first time, at `entry` with `context` in x0. The vCPU is prepared.
pub fn enter(owner: Current, entry: u64, context: u64) -> ! {
    let frame = cpu::this().frame();
    // SAFETY: the frame is above every Rust frame of this CPU's stack: boot, secondaries and vectors start
    // below it.
    unsafe {
        frame.write(vcpu::fresh_frame(entry, context));
        before_entry(owner);
        vectors::enter(frame)
    }
}

/// Passed before each entry into a guest: obeys a stop, waits while the zone pauses, and flushes list
/// registers that are out of date. Returns false if the CPU waited.
pub fn before_entry(owner: Current) -> bool {
    let cpu = cpu::this();
    let mut waited = false;
    loop {
        if cpu.is_stop_ordered() {
            idle()
        }
        if owner.may_enter(cpu.vcpu()) {
            break;
        }
        waited = true;
        arch::wfi();
        interrupts::handle();
    }
    owner.flush_interrupts(cpu.vcpu());
    console::drain();
    !waited
}
