//! System registers and instructions: every read by a guest is allowed or undefined, and the machine
//! continues.

use core::arch::asm;

use arm_gic::IntId;

use crate::context::Context;
use crate::exceptions::{self, expect};
use crate::report::{Failure, Suite, TestResult};
use crate::{check, check_eq, hal, time};

/// `mrs x0, <op0:op1:CRn:CRm:op2 = 0>`, with bit 19 as the low bit of op0.
const MRS: u32 = 0xd530_0000;
/// `ret`
const RET: u32 = 0xd65f_03c0;
/// Exception class: undefined instruction.
const EC_UNKNOWN: u64 = 0x00;
/// Exception class: software step from the same level.
const EC_STEP: u64 = 0x33;
/// Exception classes that refuse a register: unknown, FP, trapped register (FEAT_IDST), SVE, SME.
const REFUSALS: [u64; 5] = [EC_UNKNOWN, 0x07, 0x18, 0x19, 0x1d];

/// Runs the group.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let reference = context.machine.is_reference();
    suite.test("reading every system register", read_all);
    suite.test("identification registers", identification);
    suite.test("a software step ends behind an emulated instruction", step);
    suite.test("set/way maintenance", set_way);
    suite.test("TLB and instruction cache maintenance", maintenance);
    // Pending and enabled it ends a wait, although this CPU has it masked.
    let _ = context.gic.enable_interrupt(IntId::ppi(11), Some(0), true);
    suite.test("WFI and WFE return", waits);
    suite.test_unless(reference, "HVC and SMC with other numbers", calls);
}

/// Code generated at run time: one instruction and a return.
struct Code(core::ptr::NonNull<u8>);

impl Code {
    fn new() -> Result<Self, Failure> {
        hal::allocate(1)
            .map(Self)
            .ok_or_else(|| Failure::new(format_args!("no memory")))
    }

    /// Runs `instruction`, which may change only x0. Returns the exception it took.
    fn run(&self, instruction: u32) -> Option<exceptions::Fault> {
        let code = self.0.as_ptr().cast::<u32>();
        expect();
        // SAFETY: the page is ours and executable; it is made visible to the fetch before it is called.
        unsafe {
            code.write_volatile(instruction);
            code.add(1).write_volatile(RET);
            asm!(
                "dc cvau, {code}",
                "dsb ish",
                "ic ivau, {code}",
                "dsb ish",
                "isb",
                "blr {code}",
                code = in(reg) code,
                clobber_abi("C"),
            );
        }
        exceptions::caught()
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        hal::free(self.0, 1);
    }
}

/// Returns whether reading has a side effect on other tests: ICC_IAR0_EL1, ICC_IAR1_EL1 acknowledge.
fn acknowledges(encoding: u32) -> bool {
    let is = |op0: u32, op1: u32, crn: u32, crm: u32, op2: u32| {
        encoding == (op0 - 2) << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    };
    is(3, 0, 12, 8, 0) || is(3, 0, 12, 12, 0)
}

// torture g4: op0 2 and 3, all of op1, CRn, CRm, op2.
fn read_all() -> TestResult {
    let code = Code::new()?;
    let (mut allowed, mut undefined) = (0, 0);
    for encoding in (0..1 << 15).filter(|encoding| !acknowledges(*encoding)) {
        match code.run(MRS | encoding << 5) {
            None => allowed += 1,
            Some(fault) => {
                check!(
                    REFUSALS.contains(&fault.class()),
                    "mrs {:#x}: exception class of {fault:x?}",
                    MRS | encoding << 5
                );
                undefined += 1;
            }
        }
    }
    check!(allowed > 50, "{allowed} registers can be read, expected more");
    check!(
        undefined > 1000,
        "{undefined} encodings are undefined, expected more"
    );
    Ok(())
}

fn identification() -> TestResult {
    let (features, dfr, current): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mrs {}, id_aa64pfr0_el1", "mrs {}, id_aa64dfr0_el1", "mrs {}, currentel",
            out(reg) features, out(reg) dfr, out(reg) current, options(nomem, nostack, preserves_flags));
    }
    check_eq!(current >> 2 & 3, 1, "CurrentEL");
    check!(features >> 4 & 0xf != 0, "ID_AA64PFR0_EL1 has no EL1");
    check_eq!(features >> 24 & 0xf, 1, "ID_AA64PFR0_EL1.GIC");
    check!(dfr & 0xf >= 6, "ID_AA64DFR0_EL1.DebugVer");
    Ok(())
}

// torture g5
fn step() -> TestResult {
    let (behind, fault) = exceptions::step_over_emulated();
    let Some(fault) = fault else {
        return Err(Failure::new(format_args!("no software step exception")));
    };
    check_eq!(fault.class(), EC_STEP, "exception class");
    check_eq!(fault.at, behind, "ELR_EL1 of the step");
    Ok(())
}

fn set_way() -> TestResult {
    let mut word = 0x1234_5678_u64;
    for set in 0..512_u64 {
        for way in 0..4_u64 {
            let operand = way << 30 | set << 6;
            // SAFETY: cleaning and invalidating loses nothing. DC ISW would on hardware, so it is left out.
            unsafe { asm!("dc cisw, {0}", "dc csw, {0}", in(reg) operand, options(nostack)) };
        }
        word = word.wrapping_mul(3);
        // SAFETY: a local.
        let seen = unsafe { core::ptr::read_volatile(&raw const word) };
        check_eq!(seen, word, "memory after set/way maintenance");
    }
    Ok(())
}

// torture g5
fn maintenance() -> TestResult {
    let end = time::now() + time::milliseconds(50);
    let mut rounds = 0_u32;
    while time::now() < end {
        // SAFETY: translations are fetched anew.
        unsafe {
            asm!(
                "tlbi vmalle1is",
                "tlbi vmalle1",
                "dsb ish",
                "ic ialluis",
                "ic iallu",
                "dsb ish",
                "isb",
                options(nostack)
            );
        }
        rounds += 1;
    }
    check!(rounds > 0, "no round");
    Ok(())
}

fn waits() -> TestResult {
    // The virtual timer ends the waits.
    for wait in [false, true] {
        let start = time::now();
        // SAFETY: this CPU's own timer, interrupts kept out: WFI ends on a pending one.
        unsafe {
            asm!(
                "msr daifset, #2",
                "msr cntv_tval_el0, {ticks}",
                "msr cntv_ctl_el0, {on}",
                "isb",
                ticks = in(reg) time::milliseconds(2),
                on = in(reg) 1_u64,
                options(nostack),
            );
            if wait {
                asm!("wfi", options(nostack));
            } else {
                asm!("sevl", "wfe", options(nostack));
            }
            asm!(
                "msr cntv_ctl_el0, xzr",
                "isb",
                "msr daifclr, #2",
                options(nostack)
            );
        }
        check!(
            time::now() - start < time::milliseconds(2000),
            "the wait takes long"
        );
    }
    Ok(())
}

// torture g3
fn calls() -> TestResult {
    macro_rules! call {
        ($instruction:literal, $function:expr) => {{
            let result: u64;
            expect();
            // SAFETY: a call that is refused; registers as SMCCC says.
            unsafe {
                asm!($instruction, inout("x0") $function => result, inout("x1") u64::MAX => _,
                    inout("x2") 0x4000_0000_u64 => _, inout("x3") 0_u64 => _, clobber_abi("C"));
            }
            (result, exceptions::caught())
        }};
    }
    for function in [0_u64, 1, 0x7fff_ffff, 0x8000_ffff, 0xffff_ffff, u64::MAX] {
        for (result, fault) in [
            call!("hvc #0", function),
            call!("hvc #1", function),
            call!("hvc #0xffff", function),
            call!("smc #0", function),
            call!("smc #0x4b4", function),
        ] {
            let refused = fault.is_some_and(|fault| fault.class() == EC_UNKNOWN);
            check!(
                refused || result as u32 == u32::MAX,
                "call {function:#x} returns {result:#x}, {fault:x?}"
            );
        }
    }
    Ok(())
}
