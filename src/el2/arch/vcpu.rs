//! The EL1 and EL0 state of this CPU: reset when it changes its owner, so that the new one sees nothing of
//! the last.

use ringvisor::addr::Pa;
use ringvisor::cpu_state::{self, Features, Identity, Owner};

use super::frame::TrapFrame;
use super::registers::ThisCpu;
use super::sysreg::{read, write};

/// SPSR_EL2 of a vCPU that starts: EL1h with D, A, I, F masked.
pub const SPSR_EL1H: u64 = 0x3c5;

/// HCR_EL2.VSE: a virtual SError is pending.
const VSE: u64 = 1 << 8;

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

/// Hands this CPU to `owner`: resets the state of EL1 and EL0, and sets stage 2, affinity and virtual counter
/// offset (in ticks) of the new owner. TLB maintenance does not trap.
pub fn reset(owner: Owner, vttbr: u64, affinity: u64, counter_offset: u64) {
    let identity = Identity {
        vttbr,
        mpidr: affinity | 1 << 31,
        counter_offset,
    };
    cpu_state::change(&mut ThisCpu, Features::detect(&ThisCpu), owner, &identity);
    super::ic_iallu();
}

/// Ends what the owner left running on this CPU. Called while its stage 2 is in place. Returns the syndrome
/// of an SError that was pending: it is the owner's, not the next one's.
pub fn quiesce() -> Option<u64> {
    cpu_state::quiesce(&mut ThisCpu, Features::detect(&ThisCpu));
    super::take_serror()
}

/// Makes a virtual SError pending for the vCPU of this CPU, with the syndrome of the physical one that was
/// taken for it. Without FEAT_RAS the syndrome is the CPU's.
pub fn inject_serror(esr: u64) {
    const ISS: u64 = 0x1ff_ffff;
    if Features::detect(&ThisCpu).has(cpu_state::Feature::Ras) {
        write!("S3_4_C5_C2_3", esr & ISS); // VSESR_EL2
    }
    write!("hcr_el2", read!("hcr_el2") | VSE);
}

/// Returns VTTBR_EL2 for the stage-2 tables at `table` and `vmid`.
pub fn vttbr(table: Pa, vmid: u8) -> u64 {
    table.0 | u64::from(vmid) << 48
}
