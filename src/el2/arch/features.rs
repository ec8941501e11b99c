//! The CPU's features (identification registers) as EL2 uses them, and what it changes of its control
//! registers while a vCPU runs. The rest of them is in [`ringvisor::cpu_state`].

use ringvisor::cpu_state::registers::{GCSCR_EL1, HCR_EL2, SCTLR_EL1};
use ringvisor::cpu_state::{self, Feature, Features, Owner, Registers, id, view};
use ringvisor::syndrome::ExceptionControls;

use super::registers::ThisCpu;
use super::sysreg::{read, write};

/// Enables or disables trapping of EL1's TLB maintenance from the next entry to EL1: all of it, or, with
/// FEAT_EVT, only what is broadcast (HCR_EL2, Arm ARM D24.2.57). No TLB entry depends on these bits, so none
/// has to be invalidated.
pub fn trap_tlbi(on: bool) {
    const TTLB: u64 = 1 << 25;
    const TTLBIS: u64 = 1 << 54;
    const TTLBOS: u64 = 1 << 55;
    let mut hcr = read!("hcr_el2") & !(TTLB | TTLBIS | TTLBOS);
    if on {
        let evt = ThisCpu.id(id::MMFR2) >> 56 & 0xf;
        hcr |= if evt >= 2 { TTLBIS | TTLBOS } else { TTLB };
    }
    write!("hcr_el2", hcr);
}

/// Returns the width of physical addresses in bits (ID_AA64MMFR0_EL1.PARange).
pub fn pa_bits() -> u32 {
    match read!("id_aa64mmfr0_el1") & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Sets this CPU's EL2 control registers. Called once per CPU.
pub fn configure(vtcr: u64) {
    write!("vtcr_el2", vtcr);
    cpu_state::initialise(&mut ThisCpu, Features::detect(&ThisCpu));
}

/// Returns what `owner` reads from an identification register, at its position in [`id`].
pub fn id_register(owner: Owner, register: usize) -> u64 {
    view::view(owner, Features::detect(&ThisCpu), register, ThisCpu.id(register))
}

/// Returns what decides on PSTATE of an exception that is injected into this CPU's vCPU.
#[cold]
pub fn exception_controls() -> ExceptionControls {
    const ATA: u64 = 1 << 56;
    const EXLOCKEN: u64 = 1 << 6;
    let gcs = Features::detect(&ThisCpu).has(Feature::Gcs);
    ExceptionControls {
        sctlr: ThisCpu.read::<SCTLR_EL1>(),
        pan: ThisCpu.id(id::MMFR1) >> 20 & 0xf != 0,
        tags: ThisCpu.read::<HCR_EL2>() & ATA != 0,
        exception_lock: gcs && ThisCpu.read::<GCSCR_EL1>() & EXLOCKEN != 0,
    }
}
