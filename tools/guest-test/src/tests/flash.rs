//! The flash of a zone with firmware: the commands of QEMU's `virt`, and stores that are none.

use crate::context::Context;
use crate::report::{Suite, TestResult};
use crate::{attempt, check, check_eq, registers, time};

/// The bank with the firmware, which is locked.
const FIRMWARE: u64 = 0;
/// The bank with the variables.
const VARIABLES: u64 = 0x0400_0000;
/// Bytes of the bank with the variables that are not locked.
const WRITABLE: u64 = 2 << 20;
/// Bytes of an erase block.
const BLOCK: u64 = 256 << 10;
/// The block that the tests program.
const SCRATCH: u64 = VARIABLES + WRITABLE - BLOCK;

/// Commands, for both devices of a bank.
const READ_ARRAY: u32 = 0xff_00ff;
const READ_ID: u32 = 0x90_0090;
const QUERY: u32 = 0x98_0098;
const CLEAR_STATUS: u32 = 0x50_0050;
const PROGRAM: u32 = 0x40_0040;
const WRITE_BUFFER: u32 = 0xe8_00e8;
const ERASE: u32 = 0x20_0020;
const CONFIRM: u32 = 0xd0_00d0;
const COMMANDS: [u32; 12] = [
    READ_ARRAY,
    READ_ID,
    QUERY,
    CLEAR_STATUS,
    PROGRAM,
    WRITE_BUFFER,
    ERASE,
    CONFIRM,
    0x70_0070,
    0x60_0060,
    0x01_0001,
    0x10_0010,
];

const READY: u32 = 0x80_0080;
const ERASE_ERROR: u32 = 0x20_0020;
const PROGRAM_ERROR: u32 = 0x10_0010;

/// How long an operation may take, in ms: that of a restart of the daemon.
const TIMEOUT: u64 = 60_000;

/// Runs the group.
pub fn run(suite: &mut Suite, _: &mut Context<'_>) {
    let firmware = sum(FIRMWARE);
    suite.test("identification and query", identification);
    suite.test("a block is erased and programmed", programming);
    suite.test("the firmware is locked", || locked(firmware));
    suite.test("stores of any kind to both banks", || any_stores(firmware));
    suite.test("a block is erased and programmed afterwards", programming);
}

/// Returns the sum of the words of a bank's first block.
fn sum(bank: u64) -> u32 {
    (0..BLOCK / 4).fold(0, |sum: u32, word| {
        sum.rotate_left(1).wrapping_add(registers::read(bank + word * 4))
    })
}

/// Waits for the end of an operation, and returns the status register.
fn await_ready(bank: u64) -> u32 {
    let mut status = 0;
    time::wait(TIMEOUT, || {
        status = registers::read(bank);
        status & READY == READY
    });
    status
}

fn identification() -> TestResult {
    for bank in [FIRMWARE, VARIABLES] {
        registers::write(bank, READ_ID);
        check_eq!(
            registers::read(bank),
            0x89_0089,
            "manufacturer of the bank at {bank:#x}"
        );
        check_eq!(
            registers::read(bank + 4),
            0x18_0018,
            "device of the bank at {bank:#x}"
        );
        registers::write(bank + 0x154, QUERY);
        for (index, letter) in b"QRY".iter().enumerate() {
            let found = registers::read(bank + 0x40 + index as u64 * 4);
            check_eq!(
                found,
                u32::from(*letter) * 0x1_0001,
                "query data of the bank at {bank:#x}"
            );
        }
        registers::write(bank, READ_ARRAY);
    }
    Ok(())
}

fn programming() -> TestResult {
    registers::write(SCRATCH, ERASE);
    registers::write(SCRATCH, CONFIRM);
    check_eq!(await_ready(SCRATCH), READY, "status of erasing");
    registers::write(SCRATCH + 4, PROGRAM);
    registers::write(SCRATCH + 4, 0x1234_5678);
    check_eq!(await_ready(SCRATCH), READY, "status of programming a word");
    registers::write(SCRATCH + 0x100, WRITE_BUFFER);
    registers::write(SCRATCH + 0x100, 0x7_0007);
    for word in 0..8 {
        registers::write(SCRATCH + 0x100 + word * 4, word as u32);
    }
    registers::write(SCRATCH + 0x100, CONFIRM);
    check_eq!(await_ready(SCRATCH), READY, "status of programming the buffer");
    registers::write(SCRATCH, READ_ARRAY);
    check_eq!(registers::read(SCRATCH), u32::MAX, "a word that was erased");
    check_eq!(registers::read(SCRATCH + 4), 0x1234_5678, "the word");
    for word in 0..8 {
        let found = registers::read(SCRATCH + 0x100 + word * 4);
        check_eq!(found, word as u32, "word {word} of the buffer");
    }
    check_eq!(
        registers::read(SCRATCH + 0x120),
        u32::MAX,
        "the word behind the buffer"
    );
    Ok(())
}

fn locked(firmware: u32) -> TestResult {
    for place in [FIRMWARE, VARIABLES + WRITABLE] {
        registers::write(place, CLEAR_STATUS);
        registers::write(place, ERASE);
        registers::write(place, CONFIRM);
        check_eq!(
            await_ready(place),
            READY | ERASE_ERROR,
            "status of erasing {place:#x}"
        );
        registers::write(place, CLEAR_STATUS);
        registers::write(place, PROGRAM);
        registers::write(place, 0);
        check_eq!(
            await_ready(place),
            READY | PROGRAM_ERROR,
            "status of programming {place:#x}"
        );
        registers::write(place, CLEAR_STATUS);
        registers::write(place, READ_ARRAY);
    }
    check_eq!(sum(FIRMWARE), firmware, "sum of the firmware");
    Ok(())
}

/// Makes stores of all widths, half of them commands, anywhere in both banks, and loads between them.
fn any_stores(firmware: u32) -> TestResult {
    let mut state = 0x9e37_79b9_u32;
    // xorshift32
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for _ in 0..20_000 {
        let bank = if random() % 4 == 0 { FIRMWARE } else { VARIABLES };
        // Mostly where it is not locked.
        let size = if random() % 8 == 0 { 64 << 20 } else { WRITABLE };
        let address = bank + u64::from(random()) % size;
        let value = match random() % 2 {
            0 => COMMANDS[random() as usize % COMMANDS.len()],
            _ => random(),
        };
        let value = u64::from(value) << 32 | u64::from(value);
        let stored = match random() % 8 {
            0 => attempt!(address & !7, value, "str {x}, [{a}]"),
            1 => attempt!(address & !1, value, "strh {x:w}, [{a}]"),
            2 => attempt!(address, value, "strb {x:w}, [{a}]"),
            3 => attempt!(address & !3, value, "ldr {x:w}, [{a}]"),
            4 => attempt!(address, value, "ldrb {x:w}, [{a}]"),
            _ => attempt!(address & !3, value, "str {x:w}, [{a}]"),
        };
        stored.done()?;
    }
    for bank in [FIRMWARE, VARIABLES] {
        // Some of them are the data of a command that was begun.
        let left = time::wait(TIMEOUT, || {
            registers::write(bank, READ_ID);
            registers::read(bank) == 0x89_0089
        });
        check!(left, "the bank at {bank:#x} takes no commands");
        registers::write(bank, CLEAR_STATUS);
        registers::write(bank, READ_ARRAY);
    }
    check_eq!(sum(FIRMWARE), firmware, "sum of the firmware");
    Ok(())
}
