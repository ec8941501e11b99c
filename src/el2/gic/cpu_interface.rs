//! The GIC's physical CPU interface: its initialisation, acknowledging and deactivating interrupts, and EL2's
//! own SGI.

use core::ops::RangeInclusive;
use core::ptr::NonNull;

use arm_gic::gicv3::GicRedistributor;
use arm_gic::gicv3::registers::GicrSgi;
use arm_gic::{IntId, UniqueMmioPointer};
use ringvisor::abi::counters::CpuEvent;

use super::frames::{KICK, maintenance, redistributor};
use crate::el2::arch::{self, sysreg};
use crate::el2::cpu::Cpu;
use crate::el2::stats;

/// Special INTIDs (GIC 2.2.1): nothing is pending, or it is not for this CPU interface. Those above are
/// interrupts, extended ones and LPIs, whose priority has to be dropped even if they should not have come.
const SPECIAL: RangeInclusive<u32> = 1020..=1023;

/// Wakes this CPU's redistributor and initialises its CPU interface.
pub fn init_cpu(cpu: &Cpu) {
    if let Some(registers) = redistributor(cpu).and_then(|base| NonNull::new(base as *mut GicrSgi)) {
        // SAFETY: this CPU's redistributor, mapped as Device memory; used before the CPU runs a guest.
        let mut redistributor = GicRedistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        // An error means that it is already awake.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        for own in [IntId::sgi(KICK), IntId::ppi(maintenance() & 15)] {
            // These ids exist in every redistributor.
            let _ = redistributor.set_interrupt_priority(own, 0);
            let _ = redistributor.enable_interrupt(own, true);
        }
    }
    sysreg::write!("S3_4_C12_C9_5", 0xf); // ICC_SRE_EL2
    arch::isb();
    sysreg::write!("S3_0_C12_C12_5", 7); // ICC_SRE_EL1
    arch::isb();
    sysreg::write!("S3_0_C12_C12_4", 2); // ICC_CTLR_EL1.EOImode
    sysreg::write!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
    sysreg::write!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1
    sysreg::write!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    arch::isb();
}

/// Sends EL2's SGI to `cpu`, which makes it enter EL2 and check its requests and list registers.
pub fn kick(cpu: &Cpu) {
    stats::count(CpuEvent::KicksSent);
    let mpidr = cpu.mpidr().bits();
    let (aff0, aff1, aff2, aff3) = (
        mpidr & 0xff,
        mpidr >> 8 & 0xff,
        mpidr >> 16 & 0xff,
        mpidr >> 32 & 0xff,
    );
    let sgi =
        aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | u64::from(KICK) << 24 | aff1 << 16 | 1 << (aff0 & 15);
    // The request must be visible before the interrupt.
    arch::dsb_ishst();
    sysreg::write!("S3_0_C12_C11_5", sgi); // ICC_SGI1R_EL1
    arch::isb();
}

/// Sends EL2's SGI to all other CPUs.
pub fn kick_others() {
    const IRM: u64 = 1 << 40;
    arch::dsb_ishst();
    sysreg::write!("S3_0_C12_C11_5", IRM | u64::from(KICK) << 24); // ICC_SGI1R_EL1
    arch::isb();
}

/// Acknowledges an interrupt that is pending on this CPU and drops its priority. Returns `None` if none is
/// pending.
pub fn acknowledge() -> Option<u32> {
    const PENDING: u64 = 1 << 7; // ISR_EL1.I, which shows physical interrupts at EL2
    // Cheaper than a read of ICC_IAR1_EL1 that returns a special INTID.
    if sysreg::read!("isr_el1") & PENDING == 0 {
        return None;
    }
    let iar = sysreg::read!("S3_0_C12_C12_0"); // ICC_IAR1_EL1
    let intid = iar as u32 & 0xff_ffff;
    if SPECIAL.contains(&intid) {
        return None;
    }
    arch::dsb_sy();
    sysreg::write!("S3_0_C12_C12_1", iar); // ICC_EOIR1_EL1: priority drop
    arch::isb();
    Some(intid)
}

/// Deactivates a physical interrupt of this CPU.
pub fn deactivate(intid: u32) {
    sysreg::write!("S3_0_C12_C11_1", u64::from(intid)); // ICC_DIR_EL1
    arch::isb();
}
