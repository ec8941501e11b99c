//! Physical interrupts: acknowledged at EL2 and delivered to the owner of the CPU.

use ringvisor::abi::counters::CpuEvent;

use super::cpu::{self, Cpu};
use super::current::Current;
use super::owner::Owner;
use super::root::Root;
use super::{arch, console, gic, stats};

/// Interrupts acknowledged in one exit; more stay pending and trap again.
const BURST: usize = 32;

/// Acknowledges and delivers the interrupts that are pending on this CPU.
pub fn handle() {
    for _ in 0..BURST {
        let Some(intid) = gic::acknowledge() else { return };
        deliver(intid);
    }
}

fn deliver(intid: u32) {
    let cpu = cpu::this();
    match intid {
        intid if intid == gic::maintenance() => {
            stats::count(CpuEvent::Maintenance);
            if let Some(owner) = Current::running_on(cpu) {
                owner.handle_maintenance_interrupt(cpu.vcpu());
            }
            gic::deactivate(intid);
        }
        0..16 => {
            if console::panicked() {
                arch::halt();
            }
            stats::count(CpuEvent::KicksTaken);
            gic::deactivate(intid);
        }
        // Neither LPIs nor extended interrupts are enabled.
        1020.. => gic::deactivate(intid),
        _ => {
            stats::count(CpuEvent::Interrupts);
            let owner = Current::running_on(cpu);
            if !owner.is_some_and(|owner| owner.interrupt(cpu.vcpu(), intid)) {
                redirect_root_interrupt(cpu, intid);
            }
        }
    }
}

/// Handles an interrupt of root's on a CPU that is not root's: an SPI is routed to a CPU of root's, a PPI is
/// disabled.
fn redirect_root_interrupt(cpu: &Cpu, intid: u32) {
    if intid < 32 {
        gic::disable_private(cpu, intid);
    } else if let Some(root) = Root::get() {
        root.reroute(intid);
    }
    gic::deactivate(intid);
}
