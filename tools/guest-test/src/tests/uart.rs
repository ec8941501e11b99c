//! PL011 (Arm DDI 0183): identification, transmit interrupt, masks; and receive, with typed input.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::console::println;
use crate::context::Context;
use crate::report::{Suite, TestResult};
use crate::{attempt, check, check_eq, interrupts, registers, time};

const DR: u64 = 0x000;
const FR: u64 = 0x018;
const CR: u64 = 0x030;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const ICR: u64 = 0x044;
const PERIPH_ID: u64 = 0xfe0;

/// Receive FIFO empty.
const RXFE: u32 = 1 << 4;
/// Receive interrupt.
const RX: u32 = 1 << 4;
/// Transmit interrupt.
const TX: u32 = 1 << 5;
/// Receive timeout interrupt.
const RT: u32 = 1 << 6;

static BASE: AtomicU64 = AtomicU64::new(0);
/// Received bytes: their number and their sum.
static RECEIVED: AtomicU32 = AtomicU32::new(0);
static SUM: AtomicU32 = AtomicU32::new(0);

fn read(offset: u64) -> u32 {
    registers::read(BASE.load(Ordering::SeqCst) + offset)
}

fn write(offset: u64, value: u32) {
    registers::write(BASE.load(Ordering::SeqCst) + offset, value);
}

fn set_up(context: &mut Context<'_>) -> u32 {
    let device = context.machine.uart;
    BASE.store(device.base, Ordering::SeqCst);
    write(IMSC, 0);
    write(ICR, 0x7ff);
    // UARTEN, TXE, RXE.
    write(CR, 0x301);
    context.set_up_spi(device.intid, device.trigger, context.machine.cpus[0]);
    let _ = context.gic.enable_interrupt(device.intid, None, true);
    device.intid.into()
}

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let intid = set_up(context);
    suite.test("identification", identification);
    suite.test("transmit interrupt", || transmit(intid));
    suite.test("registers keep what is written", registers);
    suite.test("bytes and halfwords", narrow);
    let _ = context
        .gic
        .enable_interrupt(context.machine.uart.intid, None, false);
}

fn identification() -> TestResult {
    for (index, value) in [0x11, 0x10].into_iter().enumerate() {
        check_eq!(read(PERIPH_ID + index as u64 * 4), value, "UARTPeriphID{index}");
    }
    for (index, value) in [0x0d, 0xf0, 0x05, 0xb1].into_iter().enumerate() {
        check_eq!(
            read(PERIPH_ID + 0x10 + index as u64 * 4),
            value,
            "UARTPCellID{index}"
        );
    }
    Ok(())
}

/// Masks asserted interrupts, so that each comes once.
fn calm() {
    write(IMSC, 0);
}

fn transmit(intid: u32) -> TestResult {
    interrupts::clear();
    interrupts::set_hook(intid, calm);
    println!("# a line to be sent");
    check!(
        time::wait(1000, || read(RIS) & TX != 0),
        "UARTRIS has no transmit interrupt after sending"
    );
    check_eq!(read(MIS), 0, "UARTMIS while masked");
    check_eq!(interrupts::handled(0), 0, "interrupts while masked");
    write(IMSC, TX);
    check!(
        time::wait(1000, || interrupts::count(0, intid) == 1),
        "no transmit interrupt"
    );
    time::sleep(2);
    check_eq!(interrupts::handled(0), 1, "interrupts");
    check_eq!(read(IMSC), 0, "UARTIMSC");
    write(ICR, TX);
    check_eq!(read(RIS) & TX, 0, "UARTRIS after UARTICR");
    Ok(())
}

fn registers() -> TestResult {
    let before = read(IMSC);
    write(IMSC, RT);
    check_eq!(read(IMSC), RT, "UARTIMSC");
    write(IMSC, before);
    let flags = read(FR);
    write(FR, !flags);
    check_eq!(read(FR), flags, "UARTFR after a write");
    check_eq!(read(CR), 0x301, "UARTCR");
    Ok(())
}

// Linux's early console uses bytes.
fn narrow() -> TestResult {
    let base = BASE.load(Ordering::SeqCst);
    for byte in *b"# bytes\r\n" {
        let _ = attempt!(base + DR, byte.into(), "strb {x:w}, [{a}]").done()?;
    }
    let half = attempt!(base + FR, 0, "ldrh {x:w}, [{a}]").done()?;
    check_eq!(half as u32 & RXFE, read(FR) & RXFE, "UARTFR by 16 bits");
    Ok(())
}

/// Receives all available bytes.
fn drain() {
    while read(FR) & RXFE == 0 {
        let byte = read(DR) & 0xff;
        SUM.fetch_add(byte, Ordering::SeqCst);
        RECEIVED.fetch_add(1, Ordering::SeqCst);
    }
    write(ICR, RX | RT);
}

/// Runs the group that expects `ping` and a line end to be typed.
pub fn receive(suite: &mut Suite, context: &mut Context<'_>) {
    let intid = set_up(context);
    interrupts::set_hook(intid, drain);
    suite.test("receive interrupt", || {
        interrupts::clear();
        drain();
        RECEIVED.store(0, Ordering::SeqCst);
        SUM.store(0, Ordering::SeqCst);
        write(IMSC, RX | RT);
        println!("guest-test: type ping and a line end within 20 s");
        let complete = time::wait(20_000, || RECEIVED.load(Ordering::SeqCst) >= 5);
        write(IMSC, 0);
        let received = RECEIVED.load(Ordering::SeqCst);
        check!(complete, "{received} bytes received, expected 5");
        check!(interrupts::count(0, intid) >= 1, "bytes without an interrupt");
        let letters: u32 = b"ping".iter().map(|byte| u32::from(*byte)).sum();
        let sum = SUM.load(Ordering::SeqCst);
        check!(
            [10, 13].map(|end| letters + end).contains(&sum),
            "not what was to be typed: sum {sum}"
        );
        Ok(())
    });
    let _ = context
        .gic
        .enable_interrupt(context.machine.uart.intid, None, false);
}
