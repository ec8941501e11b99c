//! The GIC's memory-mapped registers: distributor and redistributors (Arm IHI 0069).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use arm_gic::UniqueMmioPointer;
use arm_gic::gicv3::GicDistributor;
use arm_gic::gicv3::registers::Gicd;
use log::warn;
use ringvisor::abi::MAX_CPUS;
use ringvisor::vgic::PhysicalGic;

use crate::el2::cpu::{self, Cpu};
use crate::el2::sync::Once;

/// The SGI that makes a CPU enter EL2 and check its requests and list registers.
pub const KICK: u32 = 7;
/// The maintenance interrupt where the device tree names none: PPI 9, as BSA requires.
const DEFAULT_MAINTENANCE: u32 = 25;
/// Polls of a register until EL2 goes on without the bit that it waits for.
const POLLS: u32 = 1 << 20;

/// Addresses of the GIC's registers.
#[derive(Debug)]
pub struct Addresses {
    /// GICD_base.
    pub distributor: usize,
    /// Redistributor regions: base and size in bytes.
    pub redistributors: arrayvec::ArrayVec<(usize, usize), 8>,
    /// Control frames of the interrupt translation services.
    pub its: arrayvec::ArrayVec<usize, 8>,
    /// INTID of the maintenance interrupt, a PPI, as far as the device tree names it.
    pub maintenance: Option<u32>,
}

struct Gic {
    distributor: usize,
    /// RD_base by CPU index, 0 for none.
    redistributors: [usize; MAX_CPUS],
}

static GIC: Once<Gic> = Once::new();
/// INTID of the maintenance interrupt.
static MAINTENANCE: AtomicU32 = AtomicU32::new(DEFAULT_MAINTENANCE);

/// GITS_CTLR: bit 0 Enabled, bit 31 Quiescent.
const GITS_CTLR: usize = 0;
/// GICR_CTLR: bit 0 EnableLPIs, bit 3 RWP.
const GICR_CTLR: usize = 0;
/// GICR_CTLR.RWP.
const RWP: u32 = 1 << 3;
/// GICR_TYPER.
const GICR_TYPER: usize = 8;
/// GICR_ISENABLER0, in the SGI and PPI frame.
const GICR_ISENABLER0: usize = 0x1_0100;
/// GICR_ICENABLER0.
const GICR_ICENABLER0: usize = 0x1_0180;
/// GICR_ISPENDR0.
const GICR_ISPENDR0: usize = 0x1_0200;
/// GICR_ICPENDR0.
const GICR_ICPENDR0: usize = 0x1_0280;
/// GICR_ICACTIVER0.
const GICR_ICACTIVER0: usize = 0x1_0380;
/// GICR_IPRIORITYR0.
const GICR_IPRIORITYR: usize = 0x1_0400;
/// GICD_ISPENDR0.
const GICD_ISPENDR: usize = 0x200;

fn read32(address: usize) -> u32 {
    // SAFETY: callers pass aligned addresses inside the GIC's frames, which are mapped as Device memory.
    unsafe { (address as *const u32).read_volatile() }
}

fn write32(address: usize, value: u32) {
    // SAFETY: as for `read32`; what root may change has been filtered.
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

/// Waits until `mask` of the register at `address` reads as `wanted`, but not forever. Returns whether it
/// does.
fn poll(address: usize, mask: u32, wanted: u32) -> bool {
    (0..POLLS).any(|_| read32(address) & mask == wanted)
}

/// Turns an interrupt translation service off that the firmware may have left on: what its tables and command
/// queue lie in is root's memory, or EL2's, from here on (GIC 12.19, GITS_CTLR). Returns false if it stays
/// on.
fn turn_its_off(frame: usize) -> bool {
    const ENABLED: u32 = 1;
    const QUIESCENT: u32 = 1 << 31;
    write32(frame + GITS_CTLR, read32(frame + GITS_CTLR) & !ENABLED);
    poll(frame + GITS_CTLR, ENABLED | QUIESCENT, QUIESCENT)
}

/// Turns the LPIs of a redistributor off, whose pending table it writes to memory (GIC 12.11, GICR_CTLR).
/// Returns false if they stay on, which is allowed without GICR_CTLR.CES.
fn turn_lpis_off(frame: usize) -> bool {
    const ENABLE_LPIS: u32 = 1;
    let control = read32(frame + GICR_CTLR);
    if control & ENABLE_LPIS == 0 {
        return true;
    }
    write32(frame + GICR_CTLR, control & !ENABLE_LPIS);
    poll(frame + GICR_CTLR, ENABLE_LPIS | RWP, 0)
}

/// Waits until what was written to a redistributor has taken effect: an interrupt that was disabled is not
/// signalled any more (GIC 12.11, GICR_CTLR.RWP).
fn wait_for_redistributor(frame: usize) {
    poll(frame + GICR_CTLR, RWP, 0);
}

/// Returns the INTID of the maintenance interrupt.
#[inline]
pub fn maintenance() -> u32 {
    MAINTENANCE.load(Ordering::Relaxed)
}

/// Finds each CPU's redistributor, turns LPIs off and sets the distributor up. Called once, on the boot CPU,
/// after `cpu::init`. Returns how many CPUs have no redistributor.
pub fn init(addresses: &Addresses) -> usize {
    if let Some(intid) = addresses.maintenance {
        MAINTENANCE.store(intid, Ordering::Relaxed);
    }
    for &frame in &addresses.its {
        if !turn_its_off(frame) {
            warn!("the ITS at {frame:#x} stays on");
        }
    }
    let mut redistributors = [0; MAX_CPUS];
    for &(base, size) in &addresses.redistributors {
        let mut frame = base;
        while frame + 0x2_0000 <= base + size {
            let typer = read64(frame + GICR_TYPER);
            if !turn_lpis_off(frame) {
                warn!("the redistributor at {frame:#x} keeps its LPIs on");
            }
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
        // SAFETY: the device tree's distributor, mapped as Device memory; used before any guest runs.
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

/// Returns the base address of a CPU's redistributor.
pub fn redistributor(cpu: &Cpu) -> Option<usize> {
    GIC.get()?
        .redistributors
        .get(cpu.index)
        .copied()
        .filter(|&base| base != 0)
}

/// Disables a private interrupt of `cpu`.
pub fn disable_private(cpu: &Cpu, intid: u32) {
    if let Some(base) = redistributor(cpu) {
        write32(base + GICR_ICENABLER0, 1 << (intid & 31));
        wait_for_redistributor(base);
    }
}

/// Returns whether a private interrupt of `cpu` is pending. Of one that is active, this is the level of its
/// line.
pub fn is_private_pending(cpu: &Cpu, intid: u32) -> bool {
    redistributor(cpu).is_none_or(|base| read32(base + GICR_ISPENDR0) >> (intid & 31) & 1 != 0)
}

/// Disables and clears all private interrupts of `cpu` but EL2's own, and enables `ppis` (bits by INTID).
pub fn reset_private(cpu: &Cpu, ppis: u32) {
    let maintenance = maintenance();
    let others = !(1 << KICK | 1 << maintenance);
    if let Some(base) = redistributor(cpu) {
        write32(base + GICR_ICENABLER0, others);
        // Before the pending state is cleared, which a disabled interrupt would otherwise get again.
        wait_for_redistributor(base);
        write32(base + GICR_ICPENDR0, others);
        write32(base + GICR_ICACTIVER0, others);
        // Of the PPIs; the maintenance interrupt keeps the highest priority.
        for word in 4..8 {
            let own = if word == maintenance as usize / 4 {
                0xff << (maintenance % 4 * 8)
            } else {
                0
            };
            write32(base + GICR_IPRIORITYR + word * 4, 0xa0a0_a0a0 & !own);
        }
        write32(base + GICR_ISENABLER0, ppis);
    }
}

/// Sets an SPI pending in the distributor, as an edge on its line does.
pub fn set_pending(intid: u32) {
    if let Some(gic) = GIC.get() {
        write32(
            gic.distributor + GICD_ISPENDR + (intid as usize / 32) * 4,
            1 << (intid % 32),
        );
    }
}

/// Root's access to the physical registers, under the lock of root's GIC.
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

/// Returns the first INTID that the distributor does not have (GICD_TYPER.ITLinesNumber).
pub fn interrupt_limit() -> u32 {
    ((Physical.dist_read32(4) & 0x1f) + 1) * 32
}

/// Returns the CPU and the offset in its frame, in bytes, of an address in the redistributors.
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
