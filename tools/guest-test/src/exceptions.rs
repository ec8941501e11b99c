//! Exceptions: interrupts go to [`crate::interrupts`]; a synchronous one is either expected by a test, see
//! [`crate::attempt!`], or ends the guest.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use aarch64_rt::{ExceptionHandlers, RegisterStateRef, exception_handlers};

use crate::report::{Failure, TestResult};
use crate::{check, check_eq, interrupts};

exception_handlers!(Handlers);

/// How to handle the next synchronous exception.
static EXPECTED: AtomicU8 = AtomicU8::new(UNEXPECTED);
const UNEXPECTED: u8 = 0;
/// Continue after the instruction.
const SKIP: u8 = 1;
/// Continue at the link register: the instruction could not be fetched.
const RETURN: u8 = 2;
/// Continue where the exception was taken, without software step.
const STEP: u8 = 3;

static TAKEN: AtomicU64 = AtomicU64::new(0);
static SYNDROME: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static AT: AtomicU64 = AtomicU64::new(0);

/// ESR_EL1.EC: instruction abort from the same level.
pub const EC_INSTRUCTION: u64 = 0x21;
/// ESR_EL1.EC: data abort from the same level.
pub const EC_DATA: u64 = 0x25;
/// Fault status: synchronous external abort, not on a table walk.
pub const EXTERNAL: u64 = 0x10;
/// Fault status: alignment fault.
pub const ALIGNMENT: u64 = 0x21;
/// Fault status: exclusive or atomic not supported by the memory.
pub const UNSUPPORTED: u64 = 0x35;

/// A synchronous exception that was caught.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// ESR_EL1.
    pub syndrome: u64,
    /// FAR_EL1.
    pub address: u64,
    /// ELR_EL1.
    pub at: u64,
}

impl Fault {
    /// Exception class.
    pub fn class(&self) -> u64 {
        self.syndrome >> 26 & 0x3f
    }

    /// Fault status code.
    pub fn status(&self) -> u64 {
        self.syndrome & 0x3f
    }
}

/// Result of one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The exception it took.
    pub fault: Option<Fault>,
    /// `{x}` afterwards.
    pub value: u64,
    /// `{x}` before.
    pub original: u64,
    /// Address of the instruction.
    pub at: u64,
    /// Address accessed.
    pub address: u64,
}

impl Attempt {
    /// Checks that the access did not fault.
    pub fn done(&self) -> Result<u64, Failure> {
        match self.fault {
            None => Ok(self.value),
            Some(fault) => Err(Failure::new(format_args!(
                "access to {:#x}: {fault:x?}",
                self.address
            ))),
        }
    }

    /// Checks for a synchronous external abort at that instruction, for that address, without an effect on
    /// the register.
    pub fn aborted(&self) -> TestResult {
        self.aborted_with(&[EXTERNAL])
    }

    /// As [`Self::aborted`], with one of these fault status codes.
    pub fn aborted_with(&self, statuses: &[u64]) -> TestResult {
        let address = self.address;
        let Some(fault) = self.fault else {
            return Err(Failure::new(format_args!("access to {address:#x}: no abort")));
        };
        check_eq!(
            fault.class(),
            EC_DATA,
            "access to {address:#x}: exception class, {fault:x?}"
        );
        check!(
            statuses.contains(&fault.status()),
            "access to {address:#x}: fault status of {fault:x?}"
        );
        check_eq!(fault.at, self.at, "access to {address:#x}: ELR_EL1");
        // FnV, bit 10: FAR_EL1 is not valid.
        if fault.syndrome & 1 << 10 == 0 {
            check_eq!(fault.address, address, "access to {address:#x}: FAR_EL1");
        }
        check_eq!(
            self.value,
            self.original,
            "access to {address:#x}: register after the abort"
        );
        Ok(())
    }
}

/// Runs one instruction that may take a synchronous exception. `{a}` is the address, `{x}` a 64-bit register
/// with a value before and after, `{y}` another. Only for CPU 0, with interrupts disabled or their handlers
/// sound.
#[macro_export]
macro_rules! attempt {
    ($address:expr, $value:expr, $instruction:expr) => {
        $crate::attempt!($address, $value, "", $instruction)
    };
    // `prepare` is for directives.
    ($address:expr, $value:expr, $prepare:expr, $instruction:expr) => {{
        let address: u64 = $address;
        let original: u64 = $value;
        let mut value = original;
        let mut second: u64 = 0;
        let at: u64;
        $crate::exceptions::expect();
        // SAFETY: the address is a device's, or unmapped, or a buffer made for this; an instruction that
        // faults is skipped.
        unsafe {
            core::arch::asm!(
                $prepare,
                "adr {pc}, 77f",
                "77:",
                $instruction,
                "// {a} {x} {y}",
                pc = out(reg) at,
                a = inout(reg) address => _,
                x = inout(reg) value,
                y = inout(reg) second,
            );
        }
        let _ = second;
        let fault = $crate::exceptions::caught();
        $crate::exceptions::Attempt { fault, value, original, at, address }
    }};
}

/// Records the next synchronous exception and skips its instruction.
pub fn expect() {
    TAKEN.store(0, Ordering::SeqCst);
    EXPECTED.store(SKIP, Ordering::SeqCst);
}

/// Returns the exception since [`expect`].
pub fn caught() -> Option<Fault> {
    EXPECTED.store(UNEXPECTED, Ordering::SeqCst);
    (TAKEN.load(Ordering::SeqCst) != 0).then(|| Fault {
        syndrome: SYNDROME.load(Ordering::SeqCst),
        address: ADDRESS.load(Ordering::SeqCst),
        at: AT.load(Ordering::SeqCst),
    })
}

/// Calls `address`, where there should be nothing to execute.
pub fn call(address: u64) -> Option<Fault> {
    TAKEN.store(0, Ordering::SeqCst);
    EXPECTED.store(RETURN, Ordering::SeqCst);
    // SAFETY: a fetch that faults returns here by the handler. One that does not is what the test checks: the
    // device's contents are then executed, which happens only on the reference machine, where the test does
    // not run.
    unsafe {
        asm!("blr {address}", address = in(reg) address, clobber_abi("C"));
    }
    caught()
}

/// Executes `mrs x, ACTLR_EL1`, an instruction that EL2 emulates, with software step active. Returns the
/// address behind it, and the software step exception that was taken.
pub fn step_over_emulated() -> (u64, Option<Fault>) {
    TAKEN.store(0, Ordering::SeqCst);
    EXPECTED.store(STEP, Ordering::SeqCst);
    let behind: u64;
    // SAFETY: the exception return goes to the next line, at the same exception level with the same stack;
    // interrupts are masked until DAIF is restored. The handler turns the step off.
    unsafe {
        asm!(
            "mrs {daif}, daif",
            "msr daifset, #15",
            "msr S2_0_C1_C0_4, xzr",    // OSLAR_EL1: unlocked
            "mov {x}, #0x2001",         // MDSCR_EL1: KDE, SS
            "msr mdscr_el1, {x}",
            "mov {x}, #0x1c5",          // EL1h, AIF masked, D not,
            "movk {x}, #0x20, lsl #16", // SS
            "msr spsr_el1, {x}",
            "adr {x}, 77f",
            "msr elr_el1, {x}",
            "adr {behind}, 78f",
            "isb",
            "eret",
            "77:",
            "mrs {x}, actlr_el1",
            "78:",
            "nop",
            "nop",
            "nop",
            "msr mdscr_el1, xzr",
            "isb",
            "msr daif, {daif}",
            x = out(reg) _,
            behind = out(reg) behind,
            daif = out(reg) _,
            options(nostack),
        );
    }
    (behind, caught())
}

struct Handlers;

impl ExceptionHandlers for Handlers {
    extern "C" fn sync_current(mut state: RegisterStateRef) {
        let (syndrome, address): (u64, u64);
        // SAFETY: reads registers.
        unsafe {
            asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) syndrome, out(reg) address,
                options(nomem, nostack, preserves_flags));
        }
        let at = state.elr as u64;
        let next = match EXPECTED.swap(UNEXPECTED, Ordering::SeqCst) {
            SKIP => state.elr.wrapping_add(4),
            // aarch64-rt calls the link register `sp`.
            RETURN => state.sp as usize,
            STEP => {
                // SAFETY: nothing else uses the register.
                unsafe {
                    asm!(
                        "msr mdscr_el1, xzr",
                        "isb",
                        options(nomem, nostack, preserves_flags)
                    )
                };
                state.elr
            }
            _ => panic!("synchronous exception: ESR {syndrome:#x}, FAR {address:#x}, ELR {at:#x}"),
        };
        SYNDROME.store(syndrome, Ordering::SeqCst);
        ADDRESS.store(address, Ordering::SeqCst);
        AT.store(at, Ordering::SeqCst);
        TAKEN.store(1, Ordering::SeqCst);
        // SAFETY: execution continues where the test that expects this requires.
        unsafe { state.get_mut() }.elr = next;
    }

    extern "C" fn irq_current(_: RegisterStateRef) {
        interrupts::handle();
    }
}
