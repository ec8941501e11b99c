//! PL061 (Arm DDI 0190): identification, registers, and the power key, pressed from outside.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::console::println;
use crate::context::Context;
use crate::report::{Suite, TestResult};
use crate::{check, check_eq, interrupts, registers, time};

/// The data register of all lines.
const DATA: u64 = 0x3fc;
const DIR: u64 = 0x400;
const IS: u64 = 0x404;
const IBE: u64 = 0x408;
const IEV: u64 = 0x40c;
const IE: u64 = 0x410;
const RIS: u64 = 0x414;
const MIS: u64 = 0x418;
const IC: u64 = 0x41c;
const PERIPH_ID: u64 = 0xfe0;

/// The power key's line.
const KEY: u32 = 1 << 3;

static BASE: AtomicU64 = AtomicU64::new(0);
/// Edges of the key, and its last level.
static EDGES: AtomicU32 = AtomicU32::new(0);
static LEVEL: AtomicU32 = AtomicU32::new(0);

fn read(offset: u64) -> u32 {
    registers::read(BASE.load(Ordering::SeqCst) + offset)
}

fn write(offset: u64, value: u32) {
    registers::write(BASE.load(Ordering::SeqCst) + offset, value);
}

fn set_up(context: &mut Context<'_>) -> u32 {
    let device = context.machine.gpio;
    BASE.store(device.base, Ordering::SeqCst);
    write(IE, 0);
    write(IC, 0xff);
    context.set_up_spi(device.intid, device.trigger, context.machine.cpus[0]);
    let _ = context.gic.enable_interrupt(device.intid, None, true);
    device.intid.into()
}

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let intid = set_up(context);
    suite.test("identification", identification);
    suite.test("lines that are outputs", outputs);
    suite.test("a low level interrupts", || low_level(intid));
}

fn identification() -> TestResult {
    for (index, value) in [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]
        .into_iter()
        .enumerate()
    {
        check_eq!(
            read(PERIPH_ID + index as u64 * 4),
            value,
            "identification register {index}"
        );
    }
    Ok(())
}

fn outputs() -> TestResult {
    write(DIR, 0xf0);
    check_eq!(read(DIR), 0xf0, "GPIODIR");
    // The address chooses the lines.
    write(0x30 << 2, 0xff);
    check_eq!(read(DATA) & 0xf0, 0x30, "GPIODATA");
    check_eq!(read(0x10 << 2), 0x10, "GPIODATA of one line");
    write(0xf0 << 2, 0);
    check_eq!(read(DATA) & 0xf0, 0, "GPIODATA");
    write(DIR, 0);
    Ok(())
}

fn mask() {
    write(IE, 0);
}

fn low_level(intid: u32) -> TestResult {
    interrupts::clear();
    interrupts::set_hook(intid, mask);
    write(IS, KEY);
    write(IEV, 0);
    check_eq!(read(RIS) & KEY, KEY, "GPIORIS of a line that is low");
    check_eq!(read(MIS), 0, "GPIOMIS while masked");
    write(IE, KEY);
    check!(
        time::wait(1000, || interrupts::count(0, intid) == 1),
        "no interrupt"
    );
    time::sleep(2);
    check_eq!(interrupts::handled(0), 1, "interrupts");
    write(IS, 0);
    write(IC, 0xff);
    check_eq!(read(RIS), 0, "GPIORIS of edges after GPIOIC");
    Ok(())
}

fn edge() {
    write(IC, KEY);
    LEVEL.store(read(DATA) & KEY, Ordering::SeqCst);
    EDGES.fetch_add(1, Ordering::SeqCst);
}

/// Runs the group that expects the power key to be pressed.
pub fn power_key(suite: &mut Suite, context: &mut Context<'_>) {
    let intid = set_up(context);
    suite.test("the power key", || {
        interrupts::set_hook(intid, edge);
        write(IS, 0);
        write(IBE, KEY);
        write(IC, 0xff);
        write(IE, KEY);
        println!("guest-test: press the power key within 20 s");
        check!(
            time::wait(20_000, || EDGES.load(Ordering::SeqCst) >= 1),
            "it was not pressed"
        );
        check!(
            time::wait(5_000, || EDGES.load(Ordering::SeqCst) >= 2),
            "it was not released"
        );
        check_eq!(LEVEL.load(Ordering::SeqCst), 0, "its level");
        time::sleep(20);
        check_eq!(EDGES.load(Ordering::SeqCst), 2, "edges");
        Ok(())
    });
}
