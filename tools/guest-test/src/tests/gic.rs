//! GICv3: SGIs between CPUs, PPIs, SPIs, priorities, masks, and registers of interrupts that do not exist.

use arm_gic::gicv3::{GicCpuInterface, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, Trigger};

use crate::context::Context;
use crate::cpus::{self, Command};
use crate::registers::{read, write};
use crate::report::{Suite, TestResult};
use crate::{attempt, check, check_eq, interrupts, time};

/// An SPI that no device of a zone or of the reference machine has.
const FREE_SPI: u32 = 88;
/// An unused PPI.
const FREE_PPI: u32 = 24;

/// Offsets in the distributor and, from [`SGI_FRAME`] on, in a redistributor.
const GICD_TYPER: u64 = 0x004;
const GICD_PIDR2: u64 = 0xffe8;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const SGI_FRAME: u64 = 0x1_0000;
const GICR_TYPER: u64 = 0x008;
const GICR_STRIDE: u64 = 0x2_0000;

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    enable_private(context, 0);
    suite.test("identification", || identification(context));
    suite.test("SGIs to itself", sgis_to_itself);
    suite.test("priorities order what is pending", || priorities(context));
    suite.test("the priority mask masks", priority_mask);
    suite.test("a disabled SGI stays pending", || disabled_sgi(context));
    suite.test("a PPI set pending", || private_pending(context));
    suite.test("an SPI set pending, cleared, active", || shared_pending(context));
    suite.test("an edge is not lost while active", || {
        pending_while_active(context)
    });
    suite.test("priority registers keep what is written", || {
        priority_registers(context)
    });
    suite.test_unless(reference, "interrupts that do not exist", || {
        absent_interrupts(context)
    });
    if let Some(second) = context.machine.cpus.get(1).copied() {
        suite.test("a second CPU comes up", || {
            check!(cpus::ensure_on(second), "not up within 2 s");
            Ok(())
        });
        enable_private(context, 1);
        suite.test("SGIs to and from the second CPU", sgis_between);
        suite.test("SGI to all others", sgi_to_others);
        suite.test("an SPI routed to the second CPU", || routed(context, second));
    } else {
        suite.skip("SGIs to and from the second CPU", "one CPU");
    }
}

/// Enables the SGIs of a CPU, all of the same priority.
fn enable_private(context: &mut Context<'_>, cpu: usize) {
    for sgi in 0..16 {
        let _ = context
            .gic
            .set_interrupt_priority(IntId::sgi(sgi), Some(cpu), 0xa0);
        let _ = context.gic.enable_interrupt(IntId::sgi(sgi), Some(cpu), true);
    }
}

fn send(sgi: u32, target_list: u16) {
    let target = SgiTarget::List {
        affinity3: 0,
        affinity2: 0,
        affinity1: 0,
        target_list,
    };
    let _ = GicCpuInterface::send_sgi(IntId::sgi(sgi), target, SgiTargetGroup::CurrentGroup1);
}

/// Waits until CPU 0 has handled `count` interrupts, then checks that no more come.
fn exactly(count: u32, what: &str) -> TestResult {
    time::wait(1000, || interrupts::handled(0) >= count);
    time::sleep(2);
    check_eq!(
        interrupts::handled(0),
        count,
        "interrupts handled, {what}: {:?}",
        interrupts::order(0)
    );
    Ok(())
}

fn identification(context: &Context<'_>) -> TestResult {
    let gicd = context.machine.gicd;
    check_eq!(read(gicd + GICD_PIDR2) >> 4 & 0xf, 3, "GICD_PIDR2.ArchRev");
    check!(read(gicd + GICD_TYPER) & 0x1f >= 1, "no SPIs in GICD_TYPER");
    let cpus = context.machine.cpus.len();
    for (index, mpidr) in context.machine.cpus.iter().enumerate() {
        let typer = context.machine.gicr + index as u64 * GICR_STRIDE + GICR_TYPER;
        let low = read(typer);
        check_eq!(
            u64::from(read(typer + 4)),
            *mpidr,
            "GICR_TYPER affinity of CPU {index}"
        );
        check_eq!(low >> 8 & 0xffff, index as u32, "GICR_TYPER.Processor_Number");
        check_eq!(
            low >> 4 & 1 == 1,
            index + 1 == cpus,
            "GICR_TYPER.Last of CPU {index}"
        );
        let whole = attempt!(typer, 0, "ldr {x}, [{a}]").done()?;
        check_eq!(whole, *mpidr << 32 | u64::from(low), "GICR_TYPER by 64 bits");
    }
    Ok(())
}

fn sgis_to_itself() -> TestResult {
    interrupts::clear();
    for sgi in 0..16 {
        send(sgi, 1);
        check!(
            time::wait(1000, || interrupts::count(0, sgi) == 1),
            "SGI {sgi} does not arrive"
        );
    }
    exactly(16, "16 SGIs")
}

fn priorities(context: &mut Context<'_>) -> TestResult {
    interrupts::clear();
    // The INTID has no influence, only the priority.
    for (sgi, priority) in [(1, 0xe0), (2, 0x20), (3, 0x60), (4, 0xa0)] {
        let _ = context
            .gic
            .set_interrupt_priority(IntId::sgi(sgi), Some(0), priority);
    }
    interrupts::disable();
    for sgi in [1, 4, 3, 2] {
        send(sgi, 1);
    }
    time::sleep(1);
    interrupts::enable();
    exactly(4, "4 SGIs")?;
    let order = interrupts::order(0);
    check_eq!(order.as_slice(), &[2, 3, 4, 1], "order");
    enable_private(context, 0);
    Ok(())
}

fn priority_mask() -> TestResult {
    interrupts::clear();
    GicCpuInterface::set_priority_mask(0x80);
    send(6, 1);
    time::sleep(5);
    let early = interrupts::handled(0);
    GicCpuInterface::set_priority_mask(0xff);
    check_eq!(early, 0, "interrupts below the mask");
    exactly(1, "after unmasking")
}

fn disabled_sgi(context: &mut Context<'_>) -> TestResult {
    interrupts::clear();
    let _ = context.gic.enable_interrupt(IntId::sgi(7), Some(0), false);
    send(7, 1);
    send(7, 1);
    time::sleep(5);
    check_eq!(interrupts::handled(0), 0, "interrupts while disabled");
    let pending = read(context.machine.gicr + SGI_FRAME + ISPENDR);
    check_eq!(pending & 1 << 7, 1 << 7, "GICR_ISPENDR0");
    let _ = context.gic.enable_interrupt(IntId::sgi(7), Some(0), true);
    exactly(1, "two sends of one SGI make one pending state")
}

fn private_pending(context: &mut Context<'_>) -> TestResult {
    interrupts::clear();
    let intid = IntId::ppi(FREE_PPI - 16);
    let frame = context.machine.gicr + SGI_FRAME;
    let _ = context.gic.set_trigger(intid, Some(0), Trigger::Edge);
    let _ = context.gic.set_interrupt_priority(intid, Some(0), 0xa0);
    let _ = context.gic.enable_interrupt(intid, Some(0), true);
    write(frame + ISPENDR, 1 << FREE_PPI);
    let result = exactly(1, "PPI");
    let _ = context.gic.enable_interrupt(intid, Some(0), false);
    write(frame + ISPENDR, 1 << FREE_PPI);
    check_eq!(read(frame + ISPENDR) >> FREE_PPI & 1, 1, "pending state");
    write(frame + ICPENDR, 1 << FREE_PPI);
    check_eq!(
        read(frame + ISPENDR) >> FREE_PPI & 1,
        0,
        "pending state after clearing"
    );
    result
}

/// Returns the address of the word of a bit register that has the SPI, and its bit.
fn spi_bit(context: &Context<'_>, register: u64) -> (u64, u32) {
    (
        context.machine.gicd + register + u64::from(FREE_SPI / 32 * 4),
        1 << (FREE_SPI % 32),
    )
}

fn set_up_spi(context: &mut Context<'_>, mpidr: u64) {
    let intid = IntId::spi(FREE_SPI - 32);
    context.set_up_spi(intid, Trigger::Edge, mpidr);
    let _ = context.gic.enable_interrupt(intid, None, true);
}

fn shared_pending(context: &mut Context<'_>) -> TestResult {
    interrupts::clear();
    let intid = IntId::spi(FREE_SPI - 32);
    set_up_spi(context, context.machine.cpus[0]);
    let (set, bit) = spi_bit(context, ISPENDR);
    let (clear, _) = spi_bit(context, ICPENDR);
    let (active, _) = spi_bit(context, ISACTIVER);
    write(set, bit);
    exactly(1, "SPI")?;
    check_eq!(read(set) & bit, 0, "pending state after it was acknowledged");
    check_eq!(read(active) & bit, 0, "active state after its end");
    let _ = context.gic.enable_interrupt(intid, None, false);
    write(set, bit);
    check_eq!(read(set) & bit, bit, "pending state while disabled");
    write(clear, bit);
    check_eq!(read(set) & bit, 0, "pending state after clearing");
    let _ = context.gic.enable_interrupt(intid, None, true);
    exactly(1, "SPI cleared while disabled")
}

/// The handler of [`pending_while_active`] sets it pending again, once.
fn again() {
    if interrupts::count(0, FREE_SPI) == 1 {
        let address = AGAIN.load(core::sync::atomic::Ordering::SeqCst);
        write(address, 1 << (FREE_SPI % 32));
    }
}

static AGAIN: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

fn pending_while_active(context: &mut Context<'_>) -> TestResult {
    interrupts::clear();
    set_up_spi(context, context.machine.cpus[0]);
    let (set, bit) = spi_bit(context, ISPENDR);
    AGAIN.store(set, core::sync::atomic::Ordering::SeqCst);
    interrupts::set_hook(FREE_SPI, again);
    write(set, bit);
    let result = exactly(2, "SPI that became pending again while active");
    interrupts::set_hook(FREE_SPI, || ());
    result
}

fn priority_registers(context: &Context<'_>) -> TestResult {
    let gicd = context.machine.gicd;
    let word = gicd + IPRIORITYR + u64::from(FREE_SPI);
    let before = read(word);
    write(word, 0x4060_80a0);
    check_eq!(read(word), 0x4060_80a0, "GICD_IPRIORITYR");
    let _ = attempt!(word + 2, 0xc0, "strb {x:w}, [{a}]").done()?;
    check_eq!(read(word), 0x40c0_80a0, "GICD_IPRIORITYR after a byte");
    check_eq!(
        attempt!(word + 1, 0, "ldrb {x:w}, [{a}]").done()?,
        0x80,
        "a byte of GICD_IPRIORITYR"
    );
    write(word, before);
    Ok(())
}

// torture g2
fn absent_interrupts(context: &Context<'_>) -> TestResult {
    let gicd = context.machine.gicd;
    let lines = (read(gicd + GICD_TYPER) & 0x1f) + 1;
    for index in lines..32 {
        for register in [ISENABLER, ISPENDR, ISACTIVER] {
            let address = gicd + register + u64::from(index * 4);
            write(address, u32::MAX);
            check_eq!(
                read(address),
                0,
                "register {:#x} of INTIDs from {}",
                register,
                index * 32
            );
        }
        let address = gicd + IPRIORITYR + u64::from(index * 32);
        write(address, u32::MAX);
        check_eq!(read(address), 0, "GICD_IPRIORITYR of INTID {}", index * 32);
    }
    Ok(())
}

fn sgis_between() -> TestResult {
    interrupts::clear();
    for round in 1..=50 {
        send(3, 1 << 1);
        check!(
            time::wait(1000, || interrupts::count(1, 3) == round),
            "SGI {round} to the second CPU"
        );
        cpus::send(Command::SendSgi);
        check!(
            time::wait(1000, || interrupts::count(0, 5) == round),
            "SGI {round} from the second CPU"
        );
    }
    exactly(50, "50 SGIs from the second CPU")
}

fn sgi_to_others() -> TestResult {
    interrupts::clear();
    let _ = GicCpuInterface::send_sgi(IntId::sgi(4), SgiTarget::All, SgiTargetGroup::CurrentGroup1);
    check!(
        time::wait(1000, || interrupts::count(1, 4) == 1),
        "SGI to all others does not arrive"
    );
    exactly(0, "SGI to all others")
}

fn routed(context: &mut Context<'_>, second: u64) -> TestResult {
    interrupts::clear();
    set_up_spi(context, second);
    let (set, bit) = spi_bit(context, ISPENDR);
    for round in 1..=10 {
        write(set, bit);
        check!(
            time::wait(1000, || interrupts::count(1, FREE_SPI) == round),
            "SPI {round} at the second CPU"
        );
    }
    exactly(0, "SPI routed to the second CPU")?;
    set_up_spi(context, context.machine.cpus[0]);
    write(set, bit);
    exactly(1, "SPI routed back")
}
