//! The EL1 and EL0 state of this CPU: reset when it changes its owner, so that the new one sees nothing of
//! the last.

use core::arch::{asm, global_asm};

use super::features;
use super::frame::TrapFrame;
use super::sysreg::{read, write};
use ringvisor::addr::Pa;

/// SPSR_EL2 of a vCPU that starts: EL1h with D, A, I, F masked.
pub const SPSR_EL1H: u64 = 0x3c5;

/// Returns the trap frame of a vCPU that starts at `entry` with `x0` and all other registers zero.
pub fn fresh_frame(entry: u64, x0: u64) -> TrapFrame {
    let mut x = [0; 31];
    x[0] = x0;
    TrapFrame {
        x,
        elr: entry,
        spsr: SPSR_EL1H,
        reserved: 0,
    }
}

/// Resets the state of EL1 and EL0, and sets stage 2, MPIDR and virtual counter offset (in ticks) of the new
/// owner.
pub fn reset(vttbr: u64, mpidr: u64, counter_offset: u64) {
    features::withdraw_serror();
    reset_el1();
    reset_debug();
    reset_fp();
    write!("vttbr_el2", vttbr);
    write!("vmpidr_el2", mpidr | 1 << 31);
    write!("cntvoff_el2", counter_offset);
    super::isb();
    super::ic_iallu();
}

/// Returns VTTBR_EL2 for the stage-2 tables at `table` and `vmid`.
pub fn vttbr(table: Pa, vmid: u8) -> u64 {
    table.0 | u64::from(vmid) << 48
}

fn reset_el1() {
    write!("sctlr_el1", 0x30d0_0800);
    write!("ttbr0_el1", 0);
    write!("ttbr1_el1", 0);
    write!("tcr_el1", 0);
    write!("mair_el1", 0);
    write!("amair_el1", 0);
    write!("esr_el1", 0);
    write!("far_el1", 0);
    write!("afsr0_el1", 0);
    write!("afsr1_el1", 0);
    write!("elr_el1", 0);
    write!("spsr_el1", 0);
    write!("sp_el0", 0);
    write!("sp_el1", 0);
    write!("vbar_el1", 0);
    write!("contextidr_el1", 0);
    write!("tpidr_el0", 0);
    write!("tpidr_el1", 0);
    write!("tpidrro_el0", 0);
    write!("cpacr_el1", 0);
    write!("par_el1", 0);
    write!("csselr_el1", 0);
    write!("cntkctl_el1", 0);
    write!("cntv_ctl_el0", 0);
    write!("cntv_cval_el0", 0);
    write!("cntp_ctl_el0", 0);
    write!("cntp_cval_el0", 0);
    if features::has_pauth() {
        write!("S3_0_C2_C1_0", 0);
        write!("S3_0_C2_C1_1", 0);
        write!("S3_0_C2_C1_2", 0);
        write!("S3_0_C2_C1_3", 0);
        write!("S3_0_C2_C2_0", 0);
        write!("S3_0_C2_C2_1", 0);
        write!("S3_0_C2_C2_2", 0);
        write!("S3_0_C2_C2_3", 0);
        write!("S3_0_C2_C3_0", 0);
        write!("S3_0_C2_C3_1", 0);
    }
    reset_extensions();
}

/// Resets what `features::configure` lets EL1 use where the CPU has it.
fn reset_extensions() {
    let has = features::extensions();
    if has.mte {
        write!("S3_0_C1_C0_6", 0); // GCR_EL1
        write!("S3_0_C1_C0_5", 0); // RGSR_EL1
        write!("S3_0_C5_C6_0", 0); // TFSR_EL1
        write!("S3_0_C5_C6_1", 0); // TFSRE0_EL1
    }
    if has.scxtnum {
        write!("S3_0_C13_C0_7", 0); // SCXTNUM_EL1
        write!("S3_3_C13_C0_7", 0); // SCXTNUM_EL0
    }
    if has.tcr2 {
        write!("S3_0_C2_C0_3", 0); // TCR2_EL1
    }
    if has.sctlr2 {
        write!("S3_0_C1_C0_3", 0); // SCTLR2_EL1
    }
    if has.s1pie {
        write!("S3_0_C10_C2_2", 0); // PIRE0_EL1
        write!("S3_0_C10_C2_3", 0); // PIR_EL1
    }
    if has.s1poe {
        write!("S3_0_C10_C2_4", 0); // POR_EL1
        write!("S3_3_C10_C2_4", 0); // POR_EL0
    }
    if has.gcs {
        write!("S3_0_C2_C5_0", 0); // GCSCR_EL1
        write!("S3_0_C2_C5_1", 0); // GCSPR_EL1
        write!("S3_0_C2_C5_2", 0); // GCSCRE0_EL1
        write!("S3_3_C2_C5_1", 0); // GCSPR_EL0
    }
}

fn reset_debug() {
    write!("mdscr_el1", 0);
    macro_rules! breakpoints {
        ($($n:literal),*) => {$({
            if $n < 1 + (read!("id_aa64dfr0_el1") >> 12 & 0xf) {
                write!(concat!("dbgbcr", $n, "_el1"), 0);
                write!(concat!("dbgbvr", $n, "_el1"), 0);
            }
            if $n < 1 + (read!("id_aa64dfr0_el1") >> 20 & 0xf) {
                write!(concat!("dbgwcr", $n, "_el1"), 0);
                write!(concat!("dbgwvr", $n, "_el1"), 0);
            }
        })*};
    }
    breakpoints!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if features::has_pmu() {
        write!("pmcr_el0", 0x6); // counters off and zero
        write!("pmcntenclr_el0", 0xffff_ffff);
        write!("pmintenclr_el1", 0xffff_ffff);
        write!("pmovsclr_el0", 0xffff_ffff);
        write!("pmuserenr_el0", 0);
        write!("pmccfiltr_el0", 0);
    }
}

global_asm!(
    r#"
    .arch_extension simd
    .arch_extension sve
    .text
    .global zero_fp_registers
zero_fp_registers:                  // x0: 1 if there are SVE registers
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movi    v\n\().2d, #0
    .endr
    msr     fpcr, xzr
    msr     fpsr, xzr
    cbz     x0, 1f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    pfalse  p\n\().b
    .endr
    wrffr   p0.b
    msr     S3_0_C1_C2_0, xzr       // ZCR_EL1
1:  ret
    .arch_extension nosve
    .arch_extension nosimd
    "#
);

fn reset_fp() {
    let sme = features::has_sme();
    if sme {
        // SVCR: leaves streaming mode, in which some of the instructions below are undefined (without
        // FEAT_SME_FA64), and disables ZA.
        write!("S3_3_C4_C2_2", 0);
        super::isb();
    }
    let sve = u64::from(features::has_sve());
    // SAFETY: EL2 is compiled without floating point, so these registers hold nothing of its own; CPTR_EL2
    // lets EL2 use them (features::configure ran on this CPU).
    unsafe {
        asm!("bl zero_fp_registers", inout("x0") sve => _, out("x30") _, options(nostack));
    }
    if sme {
        write!("S3_0_C1_C2_6", 0); // SMCR_EL1
        write!("S3_3_C13_C0_5", 0); // TPIDR2_EL0
    }
}
