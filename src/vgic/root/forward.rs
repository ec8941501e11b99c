//! Forwards root's settings to the physical GIC: priorities, trigger modes, routes.

use super::RootGic;
use crate::vgic::access::{Access, Reg, config_from_edges};
use crate::vgic::dist::offset;
use crate::vgic::intid::{FIRST_SPI, bits, split};
use crate::vgic::physical::PhysicalGic;
use crate::vgic::redist::SGI_BASE;

impl RootGic {
    /// Writes the priorities of the four interrupts from `first` to the physical register.
    pub(super) fn forward_priority(
        &mut self,
        cpu: Option<usize>,
        index: usize,
        first: u32,
        phys: &mut impl PhysicalGic,
    ) {
        let hardware = self.hardware_of(index) >> first & 0xf;
        if hardware == 0 {
            return;
        }
        let access = Access {
            reg: Reg::Priority,
            index,
            first,
            count: 4,
        };
        let model = self.gic.read_bank(cpu.unwrap_or(0), &access);
        let mask = bits(hardware).fold(0, |mask, bit| mask | 0xff << (8 * bit));
        let word = index * 8 + first as usize / 4;
        let old = if mask == u32::MAX {
            0
        } else {
            read32(phys, cpu, 0x400, word)
        };
        write32(phys, cpu, 0x400, word, old & !mask | model & mask);
    }

    /// Writes the trigger modes of the sixteen interrupts from `first` to the physical register.
    pub(super) fn forward_config(
        &mut self,
        cpu: Option<usize>,
        index: usize,
        first: u32,
        value: u32,
        phys: &mut impl PhysicalGic,
    ) {
        let mask = config_from_edges(self.hardware_of(index) >> first);
        if mask == 0 {
            return;
        }
        let word = index * 2 + first as usize / 16;
        let old = read32(phys, cpu, 0xc00, word);
        if (old ^ value) & mask != 0 {
            write32(phys, cpu, 0xc00, word, old & !mask | value & mask);
        }
    }

    /// Forwards all routes, after root's CPUs have changed.
    pub(super) fn forward_routes(&mut self, phys: &mut impl PhysicalGic) {
        for intid in FIRST_SPI..FIRST_SPI + self.gic.spi_count() {
            self.forward_route(intid, phys);
        }
    }

    /// Routes the physical SPI to `cpu` until root's routes are forwarded again: it was signalled to a CPU
    /// that is not root's.
    pub fn reroute(&mut self, intid: u32, cpu: usize, phys: &mut impl PhysicalGic) {
        if let Ok(target) = u8::try_from(cpu)
            && intid >= FIRST_SPI
        {
            self.route_to(intid, target, phys);
        }
    }

    /// Routes the physical SPI to the CPU that root's route resolves to.
    pub(super) fn forward_route(&mut self, intid: u32, phys: &mut impl PhysicalGic) {
        let (index, mask) = split(intid);
        if self.hardware_of(index) & mask == 0 {
            return;
        }
        let Some(target) = self.gic.route(intid).map(|route| route.target) else {
            return;
        };
        self.route_to(intid, target, phys);
    }

    fn route_to(&mut self, intid: u32, target: u8, phys: &mut impl PhysicalGic) {
        let Some(affinity) = self.gic.vcpus.get(usize::from(target)).map(|cpu| cpu.affinity) else {
            return;
        };
        if let Some(routed) = self.routed.get_mut((intid - FIRST_SPI) as usize)
            && *routed != target
        {
            *routed = target;
            let router = u64::from(affinity >> 24) << 32 | u64::from(affinity & 0x00ff_ffff);
            phys.dist_write64(offset::IROUTER + 8 * intid, router);
        }
    }
}

/// Reads word `word` of the registers at `base`: of a redistributor, or of the distributor.
pub(super) fn read32(phys: &mut impl PhysicalGic, cpu: Option<usize>, base: u32, word: usize) -> u32 {
    let offset = base + 4 * word as u32;
    match cpu {
        Some(cpu) => phys.redist_read32(cpu, SGI_BASE + offset),
        None => phys.dist_read32(offset),
    }
}

/// Writes word `word` of the registers at `base`: of a redistributor, or of the distributor.
pub(super) fn write32(phys: &mut impl PhysicalGic, cpu: Option<usize>, base: u32, word: usize, value: u32) {
    let offset = base + 4 * word as u32;
    match cpu {
        Some(cpu) => phys.redist_write32(cpu, SGI_BASE + offset, value),
        None => phys.dist_write32(offset, value),
    }
}
