//! The root zone's GIC: root owns the physical one, except for what EL2 reserves.
//!
//! A [`Vgic`] models what root sees. PPIs and SPIs are physical: a write by root goes to the model and,
//! filtered, to the physical register (`registers`, `forward`); an interrupt that EL2 has acknowledged is
//! pending in the model and physically active until root deactivates it. SGIs are virtual, because EL2 uses
//! the physical ones; so are the SPIs of devices that EL2 emulates ([`RootConfig::soft`]). EL2's own PPIs and
//! SPIs ([`RootConfig::reserved`]) do not exist for root.
//!
//! Physically all groups are enabled, all interrupts are group 1, and SPIs are routed only to root's CPUs.
//! vCPU numbers are physical CPU numbers.

use super::access::{config_from_edges, edges_from_config};
use super::dist::offset;
use super::gic::{Vgic, VgicError, vec_of};
use super::intid::{FIRST_SPI, SGIS, SPI_LIMIT, split};
use super::kicks::Kicks;
use super::lr::ListRegisters;
use super::physical::PhysicalGic;
use super::redist::SGI_BASE;
use super::sgi::SgiRequest;
use super::state::NONE;
use alloc::vec::Vec;

mod forward;
mod registers;

/// Configuration of the root zone's GIC.
#[derive(Clone, Copy, Debug)]
pub struct RootConfig<'a> {
    /// Aff3.Aff2.Aff1.Aff0 (one byte each) of every physical CPU, in the order of EL2's CPU numbers.
    pub affinities: &'a [u32],
    /// PPIs and SPIs that EL2 reserves: the maintenance interrupt (25), its timers (26, 28), the devices it
    /// drives.
    pub reserved: &'a [u32],
    /// Virtual SPIs, whose lines EL2 sets by [`RootGic::set_line`].
    pub soft: &'a [u32],
}

/// The root zone's interrupt controller.
#[derive(Debug)]
pub struct RootGic {
    gic: Vgic,
    /// Per bank, the interrupts that are physical and root's.
    hardware: Vec<u32>,
    /// Per SPI, the CPU its physical `GICD_IROUTER` names.
    routed: Vec<u8>,
}

impl RootGic {
    /// Takes over the physical GIC for root: its SPIs are disabled, idle, and routed to the first CPU. The
    /// caller has enabled the distributor, with affinity routing. All CPUs are offline until
    /// [`RootGic::unpark`].
    ///
    /// # Errors
    /// See [`VgicError`].
    pub fn new(config: &RootConfig<'_>, phys: &mut impl PhysicalGic) -> Result<Self, VgicError> {
        let lines = ((phys.dist_read32(offset::TYPER) & 0x1f) + 1) * 32;
        let mut gic = Vgic::new(config.affinities, lines.min(SPI_LIMIT) - FIRST_SPI)?;
        gic.fallback = true;
        let mut hardware = vec_of(gic.spis.len() + 1)?;
        let mut routed = vec_of(gic.routes.len())?;
        hardware.push(!SGIS);
        hardware.extend(gic.spis.iter().map(|bank| bank.implemented));
        routed.resize(gic.routes.len(), NONE);
        let reserved = config.reserved.iter().filter(|&&intid| intid >= 16);
        for &intid in reserved.clone() {
            let (index, mask) = split(intid);
            for vcpu in 0..config.affinities.len() {
                if let Some(bank) = gic.bank_mut(vcpu, index) {
                    bank.implemented &= !mask;
                    bank.group &= !mask;
                }
            }
        }
        let soft = config.soft.iter().filter(|&&intid| intid >= FIRST_SPI);
        for &intid in reserved.chain(soft) {
            let (index, mask) = split(intid);
            if let Some(word) = hardware.get_mut(index) {
                *word &= !mask;
            }
        }
        let mut root = Self {
            gic,
            hardware,
            routed,
        };
        root.adopt(phys);
        Ok(root)
    }

    /// Sets the physical SPIs to the state the model starts from.
    fn adopt(&mut self, phys: &mut impl PhysicalGic) {
        for index in 1..self.hardware.len() {
            let hardware = self.hardware_of(index);
            let word = |base: u32| base + 4 * index as u32;
            phys.dist_write32(word(0x180), hardware);
            phys.dist_write32(word(0x280), hardware);
            phys.dist_write32(word(0x380), hardware);
            let groups = phys.dist_read32(word(0x080));
            phys.dist_write32(word(0x080), groups | hardware);
            for first in (0..32).step_by(4) {
                self.forward_priority(None, index, first, phys);
            }
            let low = phys.dist_read32(0xc00 + 8 * index as u32);
            let high = phys.dist_read32(0xc04 + 8 * index as u32);
            if let Some(bank) = self.gic.bank_mut(0, index) {
                bank.edge = (edges_from_config(low) | edges_from_config(high) << 16) & hardware;
            }
        }
        self.forward_routes(phys);
    }

    /// Injects a physical interrupt, see [`Vgic::inject_physical`]. The second result is false if it is not
    /// root's: EL2 must deactivate it.
    pub fn inject_physical(&mut self, cpu: usize, intid: u32) -> (Kicks, bool) {
        let (index, mask) = split(intid);
        if self.hardware_of(index) & mask == 0 {
            return (Kicks::NONE, false);
        }
        (self.gic.inject_physical(cpu, intid), true)
    }

    /// Sets the line of a virtual SPI; other INTIDs are ignored.
    pub fn set_line(&mut self, intid: u32, high: bool) -> Kicks {
        let (index, mask) = split(intid);
        if self.hardware_of(index) & mask != 0 {
            return Kicks::NONE;
        }
        self.gic.set_line(intid, high)
    }

    /// See [`Vgic::send_sgi`].
    pub fn send_sgi(&mut self, sender: usize, request: &SgiRequest) -> Kicks {
        self.gic.send_sgi(sender, request)
    }

    /// See [`Vgic::flush`].
    pub fn flush(&mut self, cpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        self.gic.flush(cpu, lrs)
    }

    /// See [`Vgic::sync`].
    pub fn sync(&mut self, cpu: usize, lrs: &mut impl ListRegisters) -> Kicks {
        self.gic.sync(cpu, lrs)
    }

    /// See [`Vgic::deactivate`].
    pub fn deactivate(&mut self, cpu: usize, intid: u32, lrs: &mut impl ListRegisters) -> Kicks {
        self.gic.deactivate(cpu, intid, lrs)
    }

    /// Restores `cpu`, the calling CPU, as root's: its PPIs get the state root has set, SPIs are routed to it
    /// again.
    pub fn unpark(&mut self, cpu: usize, lrs: &mut impl ListRegisters, phys: &mut impl PhysicalGic) -> Kicks {
        let hardware = self.hardware_of(0);
        let Some(bank) = self.gic.bank(cpu, 0) else {
            return Kicks::NONE;
        };
        let (enabled, edges) = (bank.enabled & hardware, bank.edge);
        let groups = phys.redist_read32(cpu, SGI_BASE + 0x080);
        phys.redist_write32(cpu, SGI_BASE + 0x080, groups | hardware);
        for first in (16..32).step_by(4) {
            self.forward_priority(Some(cpu), 0, first, phys);
        }
        self.forward_config(Some(cpu), 0, 16, config_from_edges(edges >> 16), phys);
        phys.redist_write32(cpu, SGI_BASE + 0x180, hardware & !enabled);
        phys.redist_write32(cpu, SGI_BASE + 0x100, enabled);
        let kicks = self.gic.unpark(cpu, lrs);
        self.forward_routes(phys);
        kicks
    }

    /// Takes `cpu`, the calling CPU, from root: its SPIs are routed to another CPU of root, its PPIs are
    /// disabled, its list registers are emptied.
    pub fn park(&mut self, cpu: usize, lrs: &mut impl ListRegisters, phys: &mut impl PhysicalGic) -> Kicks {
        phys.redist_write32(cpu, SGI_BASE + 0x180, self.hardware_of(0));
        let kicks = self.gic.park(cpu, lrs);
        self.forward_routes(phys);
        kicks
    }

    /// Returns whether root has enabled an interrupt group (`GICD_CTLR`). A kernel disables them before it
    /// sets up the distributor, which it does once.
    pub fn is_on(&self) -> bool {
        self.gic.groups != 0
    }

    fn hardware_of(&self, index: usize) -> u32 {
        self.hardware.get(index).copied().unwrap_or(0)
    }
}
