//! The state that a CPU has from the zone that had it before: none. Leaves a pattern in the same registers,
//! so that a zone which runs this afterwards on the same CPU would see it.

use core::arch::asm;

use crate::context::Context;
use crate::report::{Suite, TestResult};
use crate::{check, check_eq};

/// The pattern left behind.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec0;

/// Runs the group, before all others: nothing of this guest may have used the registers.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    // QEMU starts with its own values.
    let reference = context.machine.is_reference();
    suite.test_unless(reference, "FP and SIMD registers hold nothing", simd);
    suite.test_unless(reference, "debug registers hold nothing", debug);
    suite.test_unless(reference, "counters hold nothing", counters);
    suite.test_unless(reference, "thread registers hold nothing", threads);
    // The last: the vCPU stays in streaming mode until it is off.
    suite.test_unless(reference, "streaming mode is off", streaming);
}

macro_rules! register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) }
        value
    }};
    ($name:literal, $value:expr) => {{
        // SAFETY: nothing here depends on the register.
        unsafe { asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) $value, options(nomem, nostack, preserves_flags)) }
    }};
}

// torture g6
fn simd() -> TestResult {
    /// FPEN: no trap.
    const FPEN: u64 = 3 << 20;
    let access = register!("cpacr_el1");
    register!("cpacr_el1", access | FPEN);
    let mut words = [1_u64; 64];
    let pattern = [SECRET; 4];
    // SAFETY: stores 512 bytes into `words`, then loads 32 of `pattern`; this program is compiled without
    // these registers.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            "stp q0, q1, [{words}], #32",
            "stp q2, q3, [{words}], #32",
            "stp q4, q5, [{words}], #32",
            "stp q6, q7, [{words}], #32",
            "stp q8, q9, [{words}], #32",
            "stp q10, q11, [{words}], #32",
            "stp q12, q13, [{words}], #32",
            "stp q14, q15, [{words}], #32",
            "stp q16, q17, [{words}], #32",
            "stp q18, q19, [{words}], #32",
            "stp q20, q21, [{words}], #32",
            "stp q22, q23, [{words}], #32",
            "stp q24, q25, [{words}], #32",
            "stp q26, q27, [{words}], #32",
            "stp q28, q29, [{words}], #32",
            "stp q30, q31, [{words}], #32",
            ".irp n, 0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30",
            "ldr q\\n, [{pattern}]",
            ".endr",
            ".irp n, 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31",
            "ldr q\\n, [{pattern}, #16]",
            ".endr",
            ".arch_extension nosimd",
            ".arch_extension nofp",
            words = inout(reg) words.as_mut_ptr() => _,
            pattern = in(reg) pattern.as_ptr(),
            options(nostack),
        );
    }
    for (index, word) in words.into_iter().enumerate() {
        check_eq!(word, 0, "half {} of q{}", index % 2, index / 2);
    }
    check_eq!(register!("S3_3_C4_C4_0"), 0, "FPCR");
    check_eq!(register!("S3_3_C4_C4_1"), 0, "FPSR");
    register!("S3_3_C4_C4_1", 0x1f_u64);
    Ok(())
}

// torture g6
fn debug() -> TestResult {
    check_eq!(register!("mdscr_el1"), 0, "MDSCR_EL1");
    check_eq!(register!("dbgbvr0_el1"), 0, "DBGBVR0_EL1");
    check_eq!(register!("dbgbcr0_el1") & 1, 0, "DBGBCR0_EL1.E");
    check_eq!(register!("dbgbvr1_el1"), 0, "DBGBVR1_EL1");
    check_eq!(register!("dbgwvr0_el1"), 0, "DBGWVR0_EL1");
    check_eq!(register!("dbgwcr0_el1") & 1, 0, "DBGWCR0_EL1.E");
    // Addresses only: no breakpoint is enabled.
    register!("dbgbvr0_el1", SECRET & 0xffff_ffff_fff0);
    register!("dbgbvr1_el1", SECRET & 0xffff_ffff_fff0);
    register!("dbgwvr0_el1", SECRET & 0xffff_ffff_fff0);
    check!(register!("dbgbvr0_el1") != 0, "DBGBVR0_EL1 cannot be written");
    Ok(())
}

// torture g6
fn counters() -> TestResult {
    let version = register!("id_aa64dfr0_el1") >> 8 & 0xf;
    if version == 0 || version == 0xf {
        return Ok(());
    }
    check_eq!(register!("pmccntr_el0"), 0, "PMCCNTR_EL0");
    check_eq!(register!("pmuserenr_el0"), 0, "PMUSERENR_EL0");
    check_eq!(register!("pmcr_el0") & 1, 0, "PMCR_EL0.E");
    check_eq!(register!("pmcntenset_el0"), 0, "PMCNTENSET_EL0");
    register!("pmccntr_el0", SECRET);
    register!("pmuserenr_el0", 1_u64);
    Ok(())
}

fn threads() -> TestResult {
    check_eq!(register!("tpidr_el0"), 0, "TPIDR_EL0");
    check_eq!(register!("tpidrro_el0"), 0, "TPIDRRO_EL0");
    check_eq!(register!("contextidr_el1"), 0, "CONTEXTIDR_EL1");
    register!("tpidr_el0", SECRET);
    register!("tpidrro_el0", SECRET);
    register!("contextidr_el1", SECRET & 0xffff);
    Ok(())
}

// torture g6, g7
fn streaming() -> TestResult {
    /// ID_AA64PFR1_EL1.SME.
    const SME: u64 = 0xf << 24;
    /// CPACR_EL1.SMEN and FPEN: no trap.
    const SMEN_FPEN: u64 = 3 << 24 | 3 << 20;
    /// SVCR.SM and ZA.
    const SM_ZA: u64 = 3;
    if register!("id_aa64pfr1_el1") & SME == 0 {
        return Ok(());
    }
    let access = register!("cpacr_el1");
    register!("cpacr_el1", access | SMEN_FPEN);
    check_eq!(register!("S3_3_C4_C2_2"), 0, "SVCR");
    register!("S3_3_C4_C2_2", SM_ZA);
    check_eq!(register!("S3_3_C4_C2_2"), SM_ZA, "SVCR after a store");
    Ok(())
}
