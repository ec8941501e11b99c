//! The generic timer: virtual and physical, at the right time, as often as requested, on both CPUs.

use core::arch::asm;

use arm_gic::{IntId, Trigger};

use crate::context::Context;
use crate::cpus::{self, Command};
use crate::report::{Suite, TestResult};
use crate::{check, check_eq, interrupts, time};

/// INTID of the virtual timer.
const VIRTUAL: u32 = 27;
/// INTID of the EL1 physical timer.
const PHYSICAL: u32 = 30;
/// CNTx_CTL_EL0.ENABLE.
const ENABLE: u64 = 1;
/// CNTx_CTL_EL0.IMASK.
const IMASK: u64 = 2;
/// CNTx_CTL_EL0.ISTATUS.
const ISTATUS: u64 = 4;

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    for (intid, hook) in [(VIRTUAL, mask_virtual as fn()), (PHYSICAL, mask_physical)] {
        interrupts::set_hook(intid, hook);
        for cpu in 0..context.machine.cpus.len().min(2) {
            let ppi = IntId::ppi(intid - 16);
            let _ = context.gic.set_trigger(ppi, Some(cpu), Trigger::Level);
            let _ = context.gic.set_interrupt_priority(ppi, Some(cpu), 0xa0);
            let _ = context.gic.enable_interrupt(ppi, Some(cpu), true);
        }
    }
    suite.test("the counters run", counters);
    suite.test("virtual timer", || arrives(VIRTUAL));
    suite.test("physical timer", || arrives(PHYSICAL));
    suite.test("virtual timer masked", || masked(VIRTUAL));
    suite.test("physical timer masked", || masked(PHYSICAL));
    suite.test("a hundred ticks of each", ticks);
    suite.test("a deadline in the past", past);
    suite.test("a level that stays high is delivered again", again);
    if let Some(second) = context.machine.cpus.get(1).copied() {
        suite.test("the second CPU's own timer", || second_cpu(second));
    } else {
        suite.skip("the second CPU's own timer", "one CPU");
    }
    control(VIRTUAL, 0);
    control(PHYSICAL, 0);
}

fn mask_virtual() {
    control(VIRTUAL, ENABLE | IMASK);
}

fn mask_physical() {
    control(PHYSICAL, ENABLE | IMASK);
}

/// Writes a timer's control register.
fn control(intid: u32, value: u64) {
    // SAFETY: this CPU's own timer.
    unsafe {
        match intid {
            VIRTUAL => asm!("msr cntv_ctl_el0, {}", "isb", in(reg) value, options(nostack)),
            _ => asm!("msr cntp_ctl_el0, {}", "isb", in(reg) value, options(nostack)),
        }
    }
}

/// Reads a timer's control register.
fn state(intid: u32) -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe {
        match intid {
            VIRTUAL => asm!("isb", "mrs {}, cntv_ctl_el0", out(reg) value, options(nostack)),
            _ => asm!("isb", "mrs {}, cntp_ctl_el0", out(reg) value, options(nostack)),
        }
    }
    value
}

/// Sets a timer to an absolute time of its counter and enables it.
fn arm(intid: u32, deadline: u64, flags: u64) {
    // Disabled first: an enabled timer may expire between the two writes.
    control(intid, 0);
    // SAFETY: this CPU's own timer.
    unsafe {
        match intid {
            VIRTUAL => asm!("msr cntv_cval_el0, {}", in(reg) deadline, options(nostack)),
            _ => asm!("msr cntp_cval_el0, {}", in(reg) deadline, options(nostack)),
        }
    }
    control(intid, ENABLE | flags);
}

fn now(intid: u32) -> u64 {
    if intid == VIRTUAL {
        time::now()
    } else {
        time::now_physical()
    }
}

fn counters() -> TestResult {
    let frequency = time::frequency();
    check!(
        (1_000_000..=10_000_000_000).contains(&frequency),
        "CNTFRQ_EL0 is {frequency}"
    );
    for read in [time::now, time::now_physical] {
        let mut last = read();
        let first = last;
        for _ in 0..10_000 {
            let next = read();
            check!(next >= last, "the counter goes back from {last} to {next}");
            last = next;
        }
        check!(last > first, "the counter stands still");
    }
    Ok(())
}

fn arrives(intid: u32) -> TestResult {
    interrupts::clear();
    let deadline = now(intid) + time::milliseconds(20);
    arm(intid, deadline, 0);
    while now(intid) < deadline {
        let early = interrupts::count(0, intid) != 0;
        // Read again: the deadline may just have passed.
        check!(!early || now(intid) >= deadline, "INTID {intid} comes early");
    }
    check!(
        time::wait(1000, || interrupts::count(0, intid) == 1),
        "INTID {intid} does not come"
    );
    time::sleep(5);
    check_eq!(
        interrupts::handled(0),
        1,
        "interrupts: {:?}",
        interrupts::order(0)
    );
    check_eq!(state(intid), ENABLE | IMASK | ISTATUS, "control register");
    Ok(())
}

fn masked(intid: u32) -> TestResult {
    interrupts::clear();
    arm(intid, now(intid), IMASK);
    time::sleep(5);
    check_eq!(interrupts::handled(0), 0, "interrupts");
    check_eq!(state(intid), ENABLE | IMASK | ISTATUS, "control register");
    control(intid, ENABLE);
    check!(
        time::wait(1000, || interrupts::count(0, intid) == 1),
        "INTID {intid} after unmasking"
    );
    Ok(())
}

fn ticks() -> TestResult {
    interrupts::clear();
    for round in 1..=100 {
        for intid in [VIRTUAL, PHYSICAL] {
            arm(intid, now(intid) + time::milliseconds(1) / 2, 0);
        }
        for intid in [VIRTUAL, PHYSICAL] {
            check!(
                time::wait(1000, || interrupts::count(0, intid) == round),
                "tick {round} of INTID {intid}"
            );
        }
    }
    time::sleep(2);
    check_eq!(interrupts::handled(0), 200, "interrupts");
    Ok(())
}

fn past() -> TestResult {
    interrupts::clear();
    arm(VIRTUAL, 0, 0);
    check!(
        time::wait(1000, || interrupts::count(0, VIRTUAL) == 1),
        "no interrupt for time 0"
    );
    arm(VIRTUAL, u64::MAX, 0);
    time::sleep(5);
    check_eq!(interrupts::handled(0), 1, "interrupts for the end of time");
    Ok(())
}

/// The hook of [`again`]: lowers the level the fifth time.
fn reluctant() {
    if interrupts::count(0, VIRTUAL) >= 5 {
        mask_virtual();
    }
}

fn again() -> TestResult {
    interrupts::clear();
    interrupts::set_hook(VIRTUAL, reluctant);
    arm(VIRTUAL, 0, 0);
    time::wait(1000, || interrupts::count(0, VIRTUAL) == 5);
    time::sleep(2);
    interrupts::set_hook(VIRTUAL, mask_virtual);
    check_eq!(interrupts::count(0, VIRTUAL), 5, "interrupts");
    Ok(())
}

fn second_cpu(mpidr: u64) -> TestResult {
    check!(cpus::ensure_on(mpidr), "the second CPU does not come up");
    interrupts::clear();
    for round in 1..=10 {
        cpus::send(Command::Timer);
        check!(
            time::wait(1000, || interrupts::count(1, VIRTUAL) == round),
            "timer {round} of the second CPU"
        );
    }
    check_eq!(
        interrupts::count(0, VIRTUAL),
        0,
        "interrupts of the second CPU's timer at the first"
    );
    Ok(())
}
