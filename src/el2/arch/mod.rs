//! The instruction set: one safe wrapper per instruction or system register that EL2 uses, the boot code, the
//! vectors.
//!
//! All of EL2's assembly is here. It imports nothing from its siblings; the functions that it calls up to are
//! declared in `entry`.

pub mod boot;
mod entry;
pub mod features;
pub mod frame;
mod registers;
pub mod sysreg;
pub mod vcpu;
pub mod vectors;

use core::arch::asm;

use ringvisor::addr::{Ipa, Pa, Va};

/// Data synchronization barrier, full system.
pub fn dsb_sy() {
    // SAFETY: a barrier has no effect on memory safety.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) }
}

/// Data synchronization barrier, inner shareable.
pub fn dsb_ish() {
    // SAFETY: a barrier has no effect on memory safety.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) }
}

/// Instruction synchronization barrier.
pub fn isb() {
    // SAFETY: a barrier has no effect on memory safety.
    unsafe { asm!("isb", options(nostack, preserves_flags)) }
}

/// Takes an SError that is pending. Returns its syndrome (ESR_EL2), or `None` if none is.
pub fn take_serror() -> Option<u64> {
    const PENDING: u64 = 1 << 8; // ISR_EL1.A, which shows physical SErrors at EL2
    // What the owner has stored is complete, or has failed.
    dsb_sy();
    isb();
    if sysreg::read!("isr_el1") & PENDING == 0 {
        return None;
    }
    let esr: u64;
    // SAFETY: the vectors return to the end of this function if the SError is taken in it, with the syndrome
    // in x0 and nothing else changed.
    unsafe { asm!("bl take_pending_serror", out("x0") esr, out("x30") _, options(nostack)) }
    (esr != 0).then_some(esr)
}

/// Executes one iteration of a loop that waits for another CPU.
pub fn relax() {
    // SAFETY: a hint and a barrier.
    unsafe { asm!("yield", "isb", options(nomem, nostack, preserves_flags)) }
}

/// Waits for an interrupt; returns at once if one is pending, masked or not.
pub fn wfi() {
    // SAFETY: only suspends the CPU until an interrupt; `dsb` first, as the architecture recommends.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}

/// Stops this CPU for good: masks all exceptions and waits.
pub fn halt() -> ! {
    loop {
        // SAFETY: masks exceptions and waits; nothing runs on this CPU afterwards.
        unsafe { asm!("msr daifset, #15", "wfe", options(nostack)) }
    }
}

/// Invalidates EL2's own stage-1 entry for a page, on all CPUs.
pub fn tlbi_vae2is(va: Va) {
    // SAFETY: invalidating translations that are still valid is harmless: they are walked again.
    unsafe {
        asm!("dsb ishst", "tlbi vae2is, {}", "dsb ish", "isb", in(reg) va.0 >> 12, options(nostack, preserves_flags));
    }
}

/// Invalidates all stage-1 and stage-2 entries of the current VMID, on all CPUs.
pub fn tlbi_vmalls12e1is() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi vmalls12e1is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        )
    }
}

/// Invalidates the entries of all CPUs for the page at `ipa` and the VMID in `vttbr`, which need not be this
/// CPU's.
///
/// Stage 1 of the vCPU that runs here is on, and its walks are off, while the VMID is another's: some CPUs
/// execute the AT of [`at_s1e1r`] speculatively, and would keep a translation by this stage 1 under that VMID
/// (errata 1530923 of Cortex-A55, 1319537 of A57, 1319367 of A72, 1165522 of A76). A change of a CPU's owner
/// needs no such thing: all entries of the new VMID are invalidated after it, and those of the old one before
/// it is used again.
pub fn tlbi_ipa(vttbr: u64, ipa: Ipa) {
    const EPD: u64 = 1 << 7 | 1 << 23;
    let own = sysreg::read!("vttbr_el2");
    let (tcr, sctlr) = (sysreg::read!("tcr_el1"), sysreg::read!("sctlr_el1"));
    sysreg::write!("tcr_el1", tcr | EPD);
    isb();
    sysreg::write!("sctlr_el1", sctlr | 1);
    isb();
    sysreg::write!("vttbr_el2", vttbr);
    isb();
    // SAFETY: as above. Stage 2 first, then the entries that combine it with stage 1 (Arm ARM D8.13.5).
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi ipas2e1is, {}",
            "dsb ish",
            "tlbi vmalle1is",
            "dsb ish",
            in(reg) ipa.0 >> 12,
            options(nostack, preserves_flags)
        )
    }
    sysreg::write!("vttbr_el2", own);
    isb();
    sysreg::write!("sctlr_el1", sctlr);
    isb();
    sysreg::write!("tcr_el1", tcr);
    isb();
}

/// Invalidates all entries of this CPU for EL1 and EL0, of all VMIDs.
pub fn tlbi_alle1() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "dsb nshst",
            "tlbi alle1",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        )
    }
}

/// Executes a guest's TLBI with this CRm, op2 and argument on this CPU only; it may invalidate more. VMID and
/// tables are those of the vCPU that runs here (Arm ARM C5.5, D8.17). `tests/local-tlbi.sh` checks in the
/// linked binary that none of these instructions is broadcast.
#[inline(never)]
pub fn tlbi_el1(crm: u8, op2: u8, argument: u64) {
    let by_range = matches!(crm, 2 | 5 | 6);
    macro_rules! tlbi {
        ($instruction:literal) => {
            // SAFETY: invalidating translations that are still valid is harmless: they are walked again.
            unsafe { asm!($instruction, in(reg) argument, options(nostack, preserves_flags)) }
        };
    }
    // Where the guest names the last level only, entries of all levels are invalidated.
    match (op2, by_range) {
        (1 | 5, false) => tlbi!("tlbi vae1, {}"),
        (3 | 7, false) => tlbi!("tlbi vaae1, {}"),
        (2, false) => tlbi!("tlbi aside1, {}"),
        (1 | 5, true) => tlbi!("sys #0, c8, c6, #1, {}"), // RVAE1
        (3 | 7, true) => tlbi!("sys #0, c8, c6, #3, {}"), // RVAAE1
        _ => tlbi!("tlbi vmalle1 // {}"),
    }
    // SAFETY: a barrier. The guest's own may be one that does not wait for this (`DSB nXS`).
    unsafe { asm!("dsb nsh", options(nostack, preserves_flags)) }
}

/// Invalidates this CPU's instruction cache.
pub fn ic_iallu() {
    // SAFETY: instruction cache maintenance is architecturally invisible to correct code.
    unsafe { asm!("ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags)) }
}

/// Returns the size of the smallest data cache line in bytes (CTR_EL0.DminLine).
fn data_line() -> usize {
    4 << ((sysreg::read!("ctr_el0") >> 16) & 0xf)
}

/// Cleans the data cache over `len` bytes from `start` to the point of coherency.
///
/// # Safety
/// The range must be mapped at EL2.
pub unsafe fn clean_data_cache(start: usize, len: usize) {
    let line = data_line();
    let mut at = start & !(line - 1);
    while at < start + len {
        // SAFETY: the caller promises the mapping; a clean changes no content.
        unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    dsb_sy();
}

/// Cleans and invalidates the data cache over `len` bytes from `start` to the point of coherency.
///
/// # Safety
/// The range must be mapped at EL2.
pub unsafe fn clean_invalidate_data_cache(start: usize, len: usize) {
    let line = data_line();
    let mut at = start & !(line - 1);
    while at < start + len {
        // SAFETY: the caller promises the mapping; nothing that was written is lost.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    dsb_sy();
}

/// `AT S1E1R` reported a fault.
#[derive(Clone, Copy, Debug)]
pub struct TranslationFault;

/// Translates a virtual address by the stage 1 of the vCPU that runs here, as a read at EL1; stage 2 is not
/// applied.
///
/// PAR_EL1 is the guest's, so it is restored.
pub fn at_s1e1r(va: Va) -> Result<Pa, TranslationFault> {
    let saved = sysreg::read!("par_el1");
    let par: u64;
    // SAFETY: an address translation reads tables and writes PAR_EL1 only.
    unsafe {
        asm!("at s1e1r, {va}", "isb", "mrs {par}, par_el1", va = in(reg) va.0, par = out(reg) par, options(nostack));
    }
    sysreg::write!("par_el1", saved);
    if par & 1 != 0 {
        return Err(TranslationFault);
    }
    Ok(Pa((par & 0x000f_ffff_ffff_f000) | (va.0 & 0xfff)))
}

/// Invalidates all of EL2's own stage-1 entries, on all CPUs.
pub fn tlbi_alle2is() {
    // SAFETY: as above.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi alle2is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        )
    }
}

/// Data synchronization barrier for stores, inner shareable.
pub fn dsb_ishst() {
    // SAFETY: a barrier has no effect on memory safety.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) }
}
