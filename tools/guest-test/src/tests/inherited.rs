//! The state that a CPU has from the zone that had it before: none. Leaves a pattern in the same registers,
//! so that a zone which runs this afterwards on the same CPU would see it.

use core::arch::asm;

use crate::context::Context;
use crate::report::{Failure, Suite, TestResult};
use crate::{attempt, check, check_eq};

/// The pattern left behind.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec0;

/// Runs the group, before all others: nothing of this guest may have used the registers.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    // QEMU starts with its own values.
    let reference = context.machine.is_reference();
    suite.test_unless(reference, "FP and SIMD registers hold nothing", simd);
    suite.test_unless(reference, "SVE registers hold nothing", sve);
    suite.test_unless(reference, "debug registers hold nothing", debug);
    suite.test_unless(reference, "counters hold nothing", counters);
    suite.test_unless(reference, "EL2 is not counted", el2_counted);
    suite.test_unless(reference, "thread registers hold nothing", threads);
    suite.test_unless(reference, "translation registers hold nothing", translation);
    suite.test_unless(reference, "exception registers hold nothing", exceptions);
    suite.test_unless(reference, "timers are off", timers);
    suite.test_unless(reference, "pointer authentication keys are zero", keys);
    suite.test_unless(reference, "what a guest may not use is undefined", withheld);
    suite.test_unless(reference, "identification registers hide it", identification);
    // The last: the vCPU stays in streaming mode until it is off.
    suite.test_unless(reference, "streaming mode is off", sme);
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

/// CPACR_EL1.ZEN, SMEN and FPEN: no trap.
const ZEN: u64 = 3 << 16;
const SMEN: u64 = 3 << 24;
const FPEN: u64 = 3 << 20;

/// Returns a field of an identification register.
fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// SVE registers of up to 2048 bits, and predicates.
#[repr(align(16))]
struct Vectors([u64; 32 * 32]);

// torture g6
fn sve() -> TestResult {
    if field(register!("id_aa64pfr0_el1"), 32) == 0 {
        return Ok(());
    }
    let access = register!("cpacr_el1");
    register!("cpacr_el1", access | ZEN | FPEN);
    check_eq!(register!("S3_0_C1_C2_0"), 0, "ZCR_EL1");
    register!("S3_0_C1_C2_0", 0xf_u64);
    let mut vectors = Vectors([1; 32 * 32]);
    let mut predicates = [1_u64; 17 * 4];
    let (vector_bytes, predicate_bytes): (usize, usize);
    // SAFETY: stores the registers into the arrays, which have room for the longest, then fills the
    // registers; this program is compiled without them.
    unsafe {
        asm!(
            ".arch_extension sve",
            "rdvl {vl}, #1",
            "rdvl {pl}, #1",
            "lsr {pl}, {pl}, #3",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "str z\\n, [{z}]",
            "add {z}, {z}, {vl}",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "str p\\n, [{p}]",
            "add {p}, {p}, {pl}",
            ".endr",
            "rdffr p0.b",
            "str p0, [{p}]",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "dup z\\n\\().d, {secret}",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "ptrue p\\n\\().b",
            ".endr",
            "setffr",
            ".arch_extension nosve",
            z = inout(reg) vectors.0.as_mut_ptr() => _,
            p = inout(reg) predicates.as_mut_ptr() => _,
            vl = out(reg) vector_bytes,
            pl = out(reg) predicate_bytes,
            secret = in(reg) SECRET,
            options(nostack),
        );
    }
    check!(
        (16..=256).contains(&vector_bytes),
        "vectors of {vector_bytes} bytes"
    );
    for (index, word) in vectors.0.iter().take(32 * vector_bytes / 8).enumerate() {
        // The group's first test has written to the low halves.
        let low = index * 8 % vector_bytes < 16;
        check!(low || *word == 0, "z{}: {word:#x}", index * 8 / vector_bytes);
    }
    let bytes = predicates.iter().flat_map(|word| word.to_le_bytes());
    for (index, byte) in bytes.take(17 * predicate_bytes).enumerate() {
        check_eq!(byte, 0, "p{} (16: FFR)", index / predicate_bytes);
    }
    Ok(())
}

// torture g6
fn debug() -> TestResult {
    // OSLSR_EL1.OSLK: as a reset leaves it.
    check_eq!(register!("S2_0_C1_C1_4") & 2, 2, "OSLSR_EL1.OSLK");
    check_eq!(register!("S2_0_C1_C3_4"), 0, "OSDLR_EL1");
    register!("S2_0_C1_C0_4", 0_u64);
    // MDCCINT_EL1, which traps with FEAT_FGT. A read that QEMU ignores leaves 1.
    let traced = attempt!(0, 1, "mrs {x}, S2_0_C0_C2_0");
    check!(
        traced.fault.is_some() || traced.value <= 1,
        "MDCCINT_EL1: {:#x}",
        traced.value
    );
    let _ = attempt!(0, 3 << 29, "msr S2_0_C0_C2_0, {x}");
    check_eq!(register!("mdscr_el1"), 0, "MDSCR_EL1");
    check_eq!(register!("dbgbvr0_el1"), 0, "DBGBVR0_EL1");
    check_eq!(register!("dbgbcr0_el1") & 1, 0, "DBGBCR0_EL1.E");
    check_eq!(register!("dbgbvr1_el1"), 0, "DBGBVR1_EL1");
    let dfr0 = register!("id_aa64dfr0_el1");
    if field(dfr0, 12) >= 5 {
        check_eq!(register!("dbgbvr5_el1"), 0, "DBGBVR5_EL1");
        check_eq!(register!("dbgbcr5_el1"), 0, "DBGBCR5_EL1");
        register!("dbgbvr5_el1", SECRET & 0xffff_ffff_fff0);
        register!("dbgbcr5_el1", 0x1e4_u64);
    }
    if field(dfr0, 20) >= 3 {
        check_eq!(register!("dbgwvr3_el1"), 0, "DBGWVR3_EL1");
        check_eq!(register!("dbgwcr3_el1"), 0, "DBGWCR3_EL1");
        register!("dbgwvr3_el1", SECRET & 0xffff_ffff_fff0);
        register!("dbgwcr3_el1", 0x1fe4_u64);
    }
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
    check_eq!(register!("pmintenset_el1"), 0, "PMINTENSET_EL1");
    check_eq!(register!("pmovsset_el0"), 0, "PMOVSSET_EL0");
    check_eq!(register!("pmselr_el0"), 0, "PMSELR_EL0");
    check_eq!(register!("pmccfiltr_el0"), 0, "PMCCFILTR_EL0");
    let counters = register!("pmcr_el0") >> 11 & 0x1f;
    for counter in 0..counters {
        register!("pmselr_el0", counter);
        check_eq!(register!("pmxevtyper_el0"), 0, "PMEVTYPER{counter}_EL0");
        check_eq!(register!("pmxevcntr_el0"), 0, "PMEVCNTR{counter}_EL0");
        // SW_INCR.
        register!("pmxevtyper_el0", 1_u64 << 31);
        register!("pmxevcntr_el0", SECRET & 0xffff_ffff);
    }
    register!("pmccntr_el0", SECRET);
    register!("pmuserenr_el0", 1_u64);
    register!("pmccfiltr_el0", 1_u64 << 31);
    register!("pmcntenset_el0", 1_u64 << 31 | 1);
    register!("pmintenset_el1", 1_u64 << 31);
    register!("pmovsset_el0", 1_u64);
    Ok(())
}

/// The cycle counter set to count at EL2 alone, while EL2 works.
fn el2_counted() -> TestResult {
    /// PMCCFILTR_EL0: not at EL1, not at EL0, but at EL2.
    const ONLY_EL2: u64 = 1 << 31 | 1 << 30 | 1 << 27;
    /// PMCR_EL0: LC, DP, C, E.
    const COUNT: u64 = 1 << 6 | 1 << 5 | 1 << 2 | 1;
    // Before PMUv3p1 EL2 cannot prohibit it.
    let version = field(register!("id_aa64dfr0_el1"), 8);
    if version < 4 {
        return Ok(());
    }
    register!("pmccfiltr_el0", ONLY_EL2);
    register!("pmcntenset_el0", 1_u64 << 31);
    register!("pmcr_el0", COUNT);
    for _ in 0..100 {
        // An exit.
        let _ = register!("actlr_el1");
    }
    let counted = register!("pmccntr_el0");
    // Leaves the counter's event, but nothing counts.
    register!("pmcr_el0", 0_u64);
    register!("pmccntr_el0", SECRET);
    check_eq!(counted, 0, "cycles at EL2");
    Ok(())
}

// torture g7
fn threads() -> TestResult {
    check_eq!(register!("tpidr_el0"), 0, "TPIDR_EL0");
    check_eq!(register!("tpidrro_el0"), 0, "TPIDRRO_EL0");
    check_eq!(register!("contextidr_el1"), 0, "CONTEXTIDR_EL1");
    register!("tpidr_el0", SECRET);
    register!("tpidrro_el0", SECRET);
    register!("contextidr_el1", SECRET & 0xffff);
    Ok(())
}

fn translation() -> TestResult {
    check_eq!(register!("ttbr1_el1"), 0, "TTBR1_EL1");
    check_eq!(register!("amair_el1"), 0, "AMAIR_EL1");
    check_eq!(register!("csselr_el1"), 0, "CSSELR_EL1");
    check_eq!(register!("par_el1"), 0, "PAR_EL1");
    check_eq!(register!("actlr_el1"), 0, "ACTLR_EL1");
    register!("ttbr1_el1", SECRET & 0xffff_ffff_f000);
    register!("csselr_el1", 2_u64);
    register!("par_el1", SECRET & 0xffff_ffff_f000);
    Ok(())
}

fn exceptions() -> TestResult {
    // The handler of what was expected above has used the others.
    check_eq!(register!("afsr0_el1"), 0, "AFSR0_EL1");
    check_eq!(register!("afsr1_el1"), 0, "AFSR1_EL1");
    check_eq!(register!("sp_el0"), 0, "SP_EL0");
    // DISR_EL1, which a CPU without FEAT_RAS does not have.
    let deferred = attempt!(0, 0, "mrs {x}, S3_0_C12_C1_1");
    check_eq!(deferred.value, 0, "DISR_EL1");
    let _ = attempt!(0, SECRET, "msr S3_0_C12_C1_1, {x}");
    register!("sp_el0", SECRET);
    register!("far_el1", SECRET);
    register!("esr_el1", SECRET & 0xffff_ffff);
    register!("elr_el1", SECRET);
    register!("spsr_el1", 5_u64);
    Ok(())
}

fn timers() -> TestResult {
    check_eq!(register!("cntkctl_el1"), 0, "CNTKCTL_EL1");
    // ENABLE and IMASK.
    check_eq!(register!("cntv_ctl_el0") & 3, 0, "CNTV_CTL_EL0");
    check_eq!(register!("cntp_ctl_el0") & 3, 0, "CNTP_CTL_EL0");
    check_eq!(register!("cntv_cval_el0"), 0, "CNTV_CVAL_EL0");
    check_eq!(register!("cntp_cval_el0"), 0, "CNTP_CVAL_EL0");
    register!("cntkctl_el1", 3_u64);
    register!("cntv_cval_el0", SECRET);
    register!("cntp_cval_el0", SECRET);
    register!("cntv_ctl_el0", 2_u64);
    register!("cntp_ctl_el0", 2_u64);
    Ok(())
}

fn keys() -> TestResult {
    let isar1 = register!("id_aa64isar1_el1");
    let isar2 = register!("S3_0_C0_C6_2");
    if isar1 & 0xff00_0ff0 == 0 && isar2 & 0xff00 == 0 {
        return Ok(());
    }
    macro_rules! keys {
        ($($name:literal)*) => {$(
            check_eq!(register!($name), 0, "key {}", $name);
            register!($name, SECRET);
        )*};
    }
    keys!(
        "S3_0_C2_C1_0" "S3_0_C2_C1_1" "S3_0_C2_C1_2" "S3_0_C2_C1_3" "S3_0_C2_C2_0"
        "S3_0_C2_C2_1" "S3_0_C2_C2_2" "S3_0_C2_C2_3" "S3_0_C2_C3_0" "S3_0_C2_C3_1"
    );
    Ok(())
}

// torture g7
/// Registers that only root may use, or nobody, whatever this CPU has: reads and writes are undefined.
fn withheld() -> TestResult {
    macro_rules! undefined {
        ($($encoding:literal $name:literal,)*) => {$(
            let read = attempt!(0, SECRET, concat!("mrs {x}, ", $encoding));
            check!(read.fault.is_some_and(|fault| fault.class() == 0), "{} reads as {:#x}", $name, read.value);
            let write = attempt!(0, 0, concat!("msr ", $encoding, ", {x}"));
            check!(write.fault.is_some_and(|fault| fault.class() == 0), "{} can be written", $name);
        )*};
    }
    undefined!(
        "S3_0_C10_C4_0" "LORSA_EL1",
        "S3_0_C10_C4_3" "LORC_EL1",
        "S3_0_C5_C3_1" "ERRSELR_EL1",
        "S3_0_C5_C4_2" "ERXSTATUS_EL1",
        "S3_0_C5_C4_5" "ERXPFGCTL_EL1",
        "S3_0_C13_C0_7" "SCXTNUM_EL1",
        "S3_3_C13_C0_7" "SCXTNUM_EL0",
        "S3_0_C1_C0_5" "RGSR_EL1",
        "S3_0_C1_C0_6" "GCR_EL1",
        "S3_0_C5_C6_0" "TFSR_EL1",
        "S3_0_C5_C6_1" "TFSRE0_EL1",
        "S3_0_C13_C0_5" "ACCDATA_EL1",
        "S3_0_C13_C0_6" "RCWMASK_EL1",
        "S3_0_C10_C2_1" "MAIR2_EL1",
        "S3_0_C9_C9_0" "PMSCR_EL1",
        "S3_0_C9_C10_0" "PMBLIMITR_EL1",
        "S3_0_C9_C11_0" "TRBLIMITR_EL1",
        "S3_0_C1_C2_1" "TRFCR_EL1",
        "S2_1_C0_C1_0" "TRCPRGCTLR",
        "S2_1_C9_C0_0" "BRBCR_EL1",
        "S3_3_C13_C2_3" "AMUSERENR_EL0",
        "S3_0_C10_C5_0" "MPAM1_EL1",
        "S3_0_C10_C5_1" "MPAM0_EL1",
        "S3_0_C9_C14_4" "PMUACR_EL1",
    );
    // CPUACTLR_EL1 of Cortex-A57 and Cortex-A76: IMPLEMENTATION DEFINED. QEMU 7.2 does not trap them; they
    // are zero there.
    for (read, name) in [
        (attempt!(0, SECRET, "mrs {x}, S3_1_C15_C2_0"), "S3_1_C15_C2_0"),
        (attempt!(0, SECRET, "mrs {x}, S3_0_C15_C1_0"), "S3_0_C15_C1_0"),
    ] {
        check!(
            read.fault.is_some() || read.value == 0,
            "{name} reads as {:#x}",
            read.value
        );
    }
    // Reads as zero and ignores writes.
    let _ = attempt!(0, SECRET, "msr actlr_el1, {x}").done()?;
    check_eq!(register!("actlr_el1"), 0, "ACTLR_EL1");
    Ok(())
}

fn identification() -> TestResult {
    let hidden = |register: u64, shift: u32, name: &str| match field(register, shift) {
        0 => Ok(()),
        value => Err(Failure::new(format_args!("{name} is {value}"))),
    };
    let pfr0 = register!("id_aa64pfr0_el1");
    let pfr1 = register!("id_aa64pfr1_el1");
    let dfr0 = register!("id_aa64dfr0_el1");
    let mmfr0 = register!("id_aa64mmfr0_el1");
    let mmfr1 = register!("id_aa64mmfr1_el1");
    for (shift, name) in [
        (8, "EL2"),
        (12, "EL3"),
        (28, "RAS"),
        (40, "MPAM"),
        (44, "AMU"),
        (52, "RME"),
    ] {
        hidden(pfr0, shift, name)?;
    }
    for (shift, name) in [
        (8, "MTE"),
        (12, "RAS_frac"),
        (16, "MPAM_frac"),
        (36, "NMI"),
        (48, "THE"),
    ] {
        hidden(pfr1, shift, name)?;
    }
    for (shift, name) in [
        (4, "TraceVer"),
        (32, "PMSVer"),
        (40, "TraceFilt"),
        (44, "TraceBuffer"),
        (52, "BRBE"),
    ] {
        hidden(dfr0, shift, name)?;
    }
    hidden(mmfr0, 56, "FGT")?;
    for (shift, name) in [(8, "VH"), (16, "LO"), (40, "HCX")] {
        hidden(mmfr1, shift, name)?;
    }
    check_eq!(field(pfr0, 4), 1, "EL1");
    check_eq!(field(pfr0, 24), 1, "GIC");
    check!(field(pfr0, 56) <= 1, "CSV2 is {}", field(pfr0, 56));
    check!(field(dfr0, 8) <= 8, "PMUVer is {}", field(dfr0, 8));
    check!(field(mmfr0, 0) <= 5, "PARange is {}", field(mmfr0, 0));
    Ok(())
}

// torture g6, g7
fn sme() -> TestResult {
    /// SVCR.ZA, and both.
    const ZA: u64 = 2;
    const SM_ZA: u64 = 3;
    if field(register!("id_aa64pfr1_el1"), 24) == 0 {
        return Ok(());
    }
    let access = register!("cpacr_el1");
    register!("cpacr_el1", access | SMEN | FPEN);
    check_eq!(register!("S3_3_C4_C2_2"), 0, "SVCR");
    check_eq!(register!("S3_0_C1_C2_6"), 0, "SMCR_EL1");
    check_eq!(register!("S3_3_C13_C0_5"), 0, "TPIDR2_EL0");
    register!("S3_3_C13_C0_5", SECRET);
    register!("S3_0_C1_C2_6", 0xf_u64);
    register!("S3_3_C4_C2_2", ZA);
    let mut row = [1_u64; 32];
    let pattern = [SECRET; 32];
    // SAFETY: stores the first row of ZA, of at most 256 bytes, and loads it with the pattern.
    unsafe {
        asm!(
            ".arch_extension sme",
            "mov w12, wzr",
            "str za[w12, 0], [{row}]",
            "ldr za[w12, 0], [{pattern}]",
            ".arch_extension nosme",
            row = in(reg) row.as_mut_ptr(),
            pattern = in(reg) pattern.as_ptr(),
            out("x12") _,
            options(nostack),
        );
    }
    check!(row[0] == 0 && row[1] == 0, "ZA holds {:#x} {:#x}", row[0], row[1]);
    register!("S3_3_C4_C2_2", SM_ZA);
    check_eq!(register!("S3_3_C4_C2_2"), SM_ZA, "SVCR after a store");
    Ok(())
}
