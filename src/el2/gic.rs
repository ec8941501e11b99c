//! The physical GICv3: set-up, acknowledging interrupts, EL2's own kick, and the list registers of this CPU.
//!
//! EL2 takes every physical interrupt (HCR_EL2.IMO). With EOImode 1 it drops the priority and leaves deactivation
//! to the zone, whose list register carries the hardware bit. EL2's own are the kick SGI and the maintenance PPI.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicDistributor, GicRedistributor};
use arm_gic::{IntId, UniqueMmioPointer};
use ringvisor::abi::counters::CpuEvent;
use ringvisor::abi::trace::Kind;
use ringvisor::vgic::{ListRegisters, LrShadow, PhysicalGic};

use super::arch::{self, sysreg};
use super::cpu::{self, Cpu};
use super::sync::Once;
use super::{root, stats};

/// The SGI by which EL2 asks a CPU to look at its requests and list registers.
const KICK: u32 = 7;
/// The maintenance interrupt (PPI 9) that BSA fixes and QEMU's `virt` uses.
const MAINTENANCE: u32 = 25;
/// First special INTID: nothing pending, or not for us.
const SPECIAL: u32 = 1020;
/// Interrupts acknowledged in one stay at EL2; more are still pending and trap again.
const BURST: usize = 32;

/// ICH_LR_EL2.State, pending; its low half is the INTID.
const LR_PENDING: u64 = 1 << 62;

/// Where the GIC's registers are.
#[derive(Debug)]
pub struct Addresses {
    /// GICD_base.
    pub distributor: usize,
    /// Redistributor regions: base and bytes.
    pub redistributors: arrayvec::ArrayVec<(usize, usize), 8>,
}

struct Gic {
    distributor: usize,
    /// RD_base by CPU index, 0 for none.
    redistributors: [usize; ringvisor::abi::MAX_CPUS],
}

static GIC: Once<Gic> = Once::new();

/// GICR_TYPER.
const GICR_TYPER: usize = 8;

fn read32(address: usize) -> u32 {
    // SAFETY: callers pass aligned addresses inside the GIC's frames, which are mapped as Device memory.
    unsafe { (address as *const u32).read_volatile() }
}

fn write32(address: usize, value: u32) {
    // SAFETY: as for `read32`; what a zone may change has been filtered.
    unsafe { (address as *mut u32).write_volatile(value) }
}

fn read64(address: usize) -> u64 {
    // SAFETY: as for `read32`.
    unsafe { (address as *const u64).read_volatile() }
}

fn write64(address: usize, value: u64) {
    // SAFETY: as for `write32`.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Finds each CPU's redistributor and sets the distributor up. Once, on the boot CPU, after `cpu::init`.
/// Returns how many CPUs have no redistributor.
pub fn init(addresses: &Addresses) -> usize {
    let mut redistributors = [0; ringvisor::abi::MAX_CPUS];
    for &(base, size) in &addresses.redistributors {
        let mut frame = base;
        while frame + 0x2_0000 <= base + size {
            let typer = read64(frame + GICR_TYPER);
            let affinity = typer >> 32;
            let mpidr = (affinity & 0xff00_0000) << 8 | affinity & 0xff_ffff;
            for (slot, cpu) in redistributors.iter_mut().zip(cpu::all()) {
                if cpu.mpidr().bits() == mpidr {
                    *slot = frame;
                }
            }
            if typer & 1 << 4 != 0 {
                break;
            }
            frame += if typer & 2 != 0 { 0x4_0000 } else { 0x2_0000 };
        }
    }
    let missing = redistributors
        .iter()
        .zip(cpu::all())
        .filter(|(frame, _)| **frame == 0)
        .count();
    if let Some(registers) = NonNull::new(addresses.distributor as *mut Gicd) {
        // SAFETY: the device tree's distributor, mapped as Device memory; used before any zone runs.
        let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        distributor.enable_all_interrupts(false);
        distributor.configure_default_settings();
    }
    GIC.call_once(|| Gic {
        distributor: addresses.distributor,
        redistributors,
    });
    missing
}

/// Wakes this CPU's redistributor and sets its interface up: everything to EL2.
pub fn init_cpu(cpu: &Cpu) {
    if let Some(registers) = redistributor(cpu).and_then(|base| NonNull::new(base as *mut GicrSgi)) {
        // SAFETY: this CPU's redistributor, mapped as Device memory; used before the CPU runs a zone.
        let mut redistributor = GicRedistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        // An error means that it is awake.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        for own in [IntId::sgi(KICK), IntId::ppi(MAINTENANCE - 16)] {
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
    clear_list_registers();
}

fn redistributor(cpu: &Cpu) -> Option<usize> {
    GIC.get()?
        .redistributors
        .get(cpu.index)
        .copied()
        .filter(|&base| base != 0)
}

/// Makes `cpu` come to EL2 soon.
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
    // What the kick is about must be visible first.
    arch::dsb_ishst();
    sysreg::write!("S3_0_C12_C11_5", sgi); // ICC_SGI1R_EL1
    arch::isb();
}

/// Acknowledges what is pending on this CPU and hands it to the owner of the CPU.
pub fn handle_interrupts() {
    const PENDING: u64 = 1 << 7; // ISR_EL1.I, which shows physical interrupts at EL2
    for _ in 0..BURST {
        // Cheaper than to be told by the CPU interface that nothing is left.
        if sysreg::read!("isr_el1") & PENDING == 0 {
            return;
        }
        let iar = sysreg::read!("S3_0_C12_C12_0"); // ICC_IAR1_EL1
        let intid = iar as u32 & 0xff_ffff;
        if intid >= SPECIAL {
            return;
        }
        arch::dsb_sy();
        sysreg::write!("S3_0_C12_C12_1", iar); // ICC_EOIR1_EL1: priority drop
        arch::isb();
        dispatch(intid);
    }
}

fn dispatch(intid: u32) {
    let cpu = cpu::this();
    match intid {
        MAINTENANCE => {
            stats::count(CpuEvent::Maintenance);
            match cpu::this_zone() {
                Some(zone) => zone.maintenance(cpu.vcpu()),
                None => root::maintenance(cpu),
            }
            deactivate(intid);
        }
        0..16 => {
            stats::count(CpuEvent::KicksTaken);
            deactivate(intid);
        }
        _ => {
            stats::count(CpuEvent::Interrupts);
            match cpu::this_zone() {
                Some(zone) if zone.takes(intid) => zone.inject_physical(cpu.vcpu(), intid),
                None if cpu.owner() == ringvisor::abi::ROOT_ZONE => root::inject_physical(cpu, intid),
                _ => stray(cpu, intid),
            }
        }
    }
}

/// An interrupt of root's on a CPU that is not root's: an SPI goes where root can take it, a PPI is turned off.
fn stray(cpu: &Cpu, intid: u32) {
    if intid < 32 {
        if let Some(base) = redistributor(cpu) {
            write32(base + 0x1_0180, 1 << intid); // GICR_ICENABLER0
        }
    } else {
        root::reroute(intid);
    }
    deactivate(intid);
}

/// Deactivates a physical interrupt of this CPU.
pub fn deactivate(intid: u32) {
    sysreg::write!("S3_0_C12_C11_1", u64::from(intid)); // ICC_DIR_EL1
    arch::isb();
}

/// Turns all private interrupts of this CPU but EL2's own off, and enables `ppis` (bits by INTID).
pub fn reset_private(cpu: &Cpu, ppis: u32) {
    const OWN: u32 = 1 << KICK | 1 << MAINTENANCE;
    if let Some(base) = redistributor(cpu) {
        write32(base + 0x1_0180, !OWN); // GICR_ICENABLER0
        write32(base + 0x1_0280, !OWN); // GICR_ICPENDR0
        write32(base + 0x1_0380, !OWN); // GICR_ICACTIVER0
        for word in 4..8 {
            let priority = if word == MAINTENANCE as usize / 4 {
                0xa0a0_00a0
            } else {
                0xa0a0_a0a0
            };
            write32(base + 0x1_0400 + word * 4, priority); // GICR_IPRIORITYR of the PPIs
        }
        write32(base + 0x1_0100, ppis); // GICR_ISENABLER0
    }
}

/// Sets an SPI pending in the distributor, as if its line had pulsed.
pub fn set_pending(intid: u32) {
    if let Some(gic) = GIC.get() {
        write32(
            gic.distributor + 0x200 + (intid as usize / 32) * 4,
            1 << (intid % 32),
        ); // GICD_ISPENDR
    }
}

/// Empties the list registers and turns the virtual interface to its reset state.
pub fn clear_list_registers() {
    let vtr = sysreg::read!("S3_4_C12_C11_1"); // ICH_VTR_EL2
    let state = &cpu::this().list;
    let mut list = LocalListRegisters((vtr & 0x1f) as usize + 1);
    for index in 0..list.count() {
        list.write(index, 0);
    }
    state.count.store(list.count(), Ordering::Relaxed);
    state.used.store(0, Ordering::Relaxed);
    sysreg::write!("S3_4_C12_C9_0", 0); // ICH_AP1R0_EL2
    sysreg::write!("S3_4_C12_C8_0", 0); // ICH_AP0R0_EL2
    if vtr >> 26 & 7 >= 5 {
        sysreg::write!("S3_4_C12_C9_1", 0);
        sysreg::write!("S3_4_C12_C8_1", 0);
    }
    if vtr >> 26 & 7 >= 6 {
        sysreg::write!("S3_4_C12_C9_2", 0);
        sysreg::write!("S3_4_C12_C9_3", 0);
        sysreg::write!("S3_4_C12_C8_2", 0);
        sysreg::write!("S3_4_C12_C8_3", 0);
    }
    sysreg::write!("S3_4_C12_C11_7", 0); // ICH_VMCR_EL2
    sysreg::write!("S3_4_C12_C11_0", 1); // ICH_HCR_EL2.En
    arch::isb();
}

/// What EL2 knows of a CPU's list registers; used by that CPU only.
#[derive(Debug)]
pub struct ListState {
    /// ICH_VTR_EL2.ListRegs + 1; 0 before [`clear_list_registers`].
    count: AtomicUsize,
    /// Those that are not empty, a bit for each.
    used: AtomicU32,
}

impl ListState {
    /// Of a CPU that has not come up.
    pub const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            used: AtomicU32::new(0),
        }
    }
}

/// Runs `pass` on a copy of this CPU's list registers, and writes what it changed. The lock of a GIC is taken and let go
/// in `pass`. Not to be nested.
pub fn with_list_registers<T>(pass: impl FnOnce(&mut LocalShadow<'_>) -> T) -> T {
    let state = &cpu::this().list;
    let mut real = LocalListRegisters(state.count.load(Ordering::Relaxed));
    let mut image = LrShadow::load(&mut real, state.used.load(Ordering::Relaxed));
    let result = pass(&mut image);
    state.used.store(image.write_back(), Ordering::Relaxed);
    result
}

/// What [`with_list_registers`] gives.
pub type LocalShadow<'a> = LrShadow<'a, LocalListRegisters>;

/// This CPU's list registers: how many there are.
#[derive(Debug)]
pub struct LocalListRegisters(usize);

macro_rules! list_registers {
    ($($index:literal => $name:literal),* $(,)?) => {
        impl ListRegisters for LocalListRegisters {
            fn count(&self) -> usize {
                self.0.min(16)
            }

            fn read(&self, index: usize) -> u64 {
                match index {
                    $($index => sysreg::read!($name),)*
                    _ => 0,
                }
            }

            fn write(&mut self, index: usize, value: u64) {
                if value & LR_PENDING != 0 {
                    stats::count(CpuEvent::Injected);
                    stats::record(Kind::Inject, cpu::this().owner(), 0, 0, value as u32);
                }
                match index {
                    $($index => sysreg::write!($name, value),)*
                    _ => {}
                }
            }

            fn hcr(&self) -> u64 {
                sysreg::read!("S3_4_C12_C11_0")
            }

            fn set_hcr(&mut self, value: u64) {
                sysreg::write!("S3_4_C12_C11_0", value);
                arch::isb();
            }

            fn vmcr(&self) -> u64 {
                sysreg::read!("S3_4_C12_C11_7")
            }

            fn deactivate(&mut self, intid: u32) {
                deactivate(intid);
            }

            fn line(&self, intid: u32) -> bool {
                // GICR_ISPENDR0 shows the level of an active PPI.
                redistributor(cpu::this()).is_none_or(|base| read32(base + 0x1_0200) >> (intid & 31) & 1 != 0)
            }
        }
    };
}

list_registers! {
    0 => "S3_4_C12_C12_0", 1 => "S3_4_C12_C12_1", 2 => "S3_4_C12_C12_2", 3 => "S3_4_C12_C12_3",
    4 => "S3_4_C12_C12_4", 5 => "S3_4_C12_C12_5", 6 => "S3_4_C12_C12_6", 7 => "S3_4_C12_C12_7",
    8 => "S3_4_C12_C13_0", 9 => "S3_4_C12_C13_1", 10 => "S3_4_C12_C13_2", 11 => "S3_4_C12_C13_3",
    12 => "S3_4_C12_C13_4", 13 => "S3_4_C12_C13_5", 14 => "S3_4_C12_C13_6", 15 => "S3_4_C12_C13_7",
}

/// Root's way to the physical registers, behind root's GIC lock.
pub struct Physical;

impl PhysicalGic for Physical {
    fn dist_read32(&mut self, offset: u32) -> u32 {
        GIC.get()
            .map_or(0, |gic| read32(gic.distributor + offset as usize))
    }

    fn dist_write32(&mut self, offset: u32, value: u32) {
        if let Some(gic) = GIC.get() {
            write32(gic.distributor + offset as usize, value);
        }
    }

    fn dist_write64(&mut self, offset: u32, value: u64) {
        if let Some(gic) = GIC.get() {
            write64(gic.distributor + offset as usize, value);
        }
    }

    fn redist_read32(&mut self, cpu: usize, offset: u32) -> u32 {
        cpu::all()
            .get(cpu)
            .and_then(redistributor)
            .map_or(0, |base| read32(base + offset as usize))
    }

    fn redist_write32(&mut self, cpu: usize, offset: u32, value: u32) {
        if let Some(base) = cpu::all().get(cpu).and_then(redistributor) {
            write32(base + offset as usize, value);
        }
    }
}

/// One past the last INTID of the distributor (GICD_TYPER.ITLinesNumber).
pub fn interrupt_limit() -> u32 {
    ((Physical.dist_read32(4) & 0x1f) + 1) * 32
}

/// CPU and offset of an address in the redistributors.
pub fn redistributor_at(address: u64) -> Option<(usize, u32)> {
    let address = address as usize;
    GIC.get()?
        .redistributors
        .iter()
        .position(|&base| base != 0 && (base..base + 0x2_0000).contains(&address))
        .map(|index| {
            (
                index,
                (address - GIC.get().map_or(0, |gic| gic.redistributors[index])) as u32,
            )
        })
}
