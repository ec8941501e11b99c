//! The root zone's GIC: root owns the physical one, but for what EL2 keeps.
//!
//! A [`Vgic`] holds what root believes. PPIs and SPIs are physical: a write of root's goes to the model and, filtered,
//! to the physical register; an interrupt EL2 has acknowledged is pending in the model and active physically until root
//! deactivates it. SGIs are software's alone, because EL2 uses the physical ones; so are the SPIs of devices EL2 makes
//! up ([`RootConfig::soft`]). EL2's own PPIs and SPIs ([`RootConfig::reserved`]) do not exist for root.
//!
//! Physically all groups stay on, all interrupts are group 1, and SPIs go only to CPUs root owns. Virtual CPU numbers
//! are physical CPU numbers.

use super::bank::{bits, split};
use super::dist::{decode_router, offset};
use super::redist::{self, SGI_BASE, WAKER_CHILDREN, WAKER_SLEEP, part};
use super::regs::{Access, Reg, config_from_edges, edges_from_config};
use super::{
    FIRST_SPI, Kicks, ListRegisters, NONE, PhysicalGic, SGIS, SPI_LIMIT, SgiRequest, Vgic, VgicError,
};
use alloc::vec::Vec;

/// The fields of the physical `GICD_TYPER` root sees: no LPIs, no extended SPIs, no second security state.
const TYPER_SHOWN: u32 = 0x1f | 0x7 << 5 | 1 << 16 | 0x1f << 19 | 1 << 24 | 1 << 25 | 1 << 26;
/// `GICD_CTLR.RWP`.
const CTLR_RWP: u32 = 1 << 31;
/// `GICR_CTLR.RWP` and `UWP`: all root sees of it.
const REDIST_CTLR_SHOWN: u32 = 1 << 3 | 1 << 31;
/// The fields of the physical `GICR_TYPER` root sees: affinity, number, `Last`; and `VLPIS`, because it tells the size
/// of a frame.
const REDIST_TYPER_SHOWN: u64 = 0xffff_ffff << 32 | 0xffff << 8 | 1 << 4 | 1 << 1;

/// What the root zone's GIC is made of.
#[derive(Clone, Copy, Debug)]
pub struct RootConfig<'a> {
    /// Aff3.Aff2.Aff1.Aff0 (one byte each) of every physical CPU, in the order of EL2's CPU numbers.
    pub affinities: &'a [u32],
    /// PPIs and SPIs EL2 keeps: the maintenance interrupt (25), its timers (26, 28), the devices it drives.
    pub reserved: &'a [u32],
    /// SPIs without hardware, whose lines EL2 sets by [`RootGic::set_line`].
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
    /// Takes the physical GIC over for root: its SPIs are disabled, idle, and routed to the first CPU. The caller has
    /// switched the distributor on, with affinity routing. All CPUs are offline until [`RootGic::unpark`].
    ///
    /// # Errors
    /// See [`VgicError`].
    pub fn new(config: &RootConfig<'_>, phys: &mut impl PhysicalGic) -> Result<Self, VgicError> {
        let lines = ((phys.dist_read32(offset::TYPER) & 0x1f) + 1) * 32;
        let mut gic = Vgic::new(config.affinities, lines.min(SPI_LIMIT) - FIRST_SPI)?;
        gic.fallback = true;
        let banks = gic.spis.len() + 1;
        let mut hardware = Vec::new();
        let mut routed = Vec::new();
        hardware
            .try_reserve_exact(banks)
            .map_err(|_| VgicError::NoMemory)?;
        routed
            .try_reserve_exact(gic.routes.len())
            .map_err(|_| VgicError::NoMemory)?;
        hardware.push(!SGIS);
        hardware.extend(gic.spis.iter().map(|bank| bank.implemented));
        routed.resize(gic.routes.len(), NONE);
        for &intid in config.reserved.iter().filter(|&&intid| intid >= 16) {
            let (index, mask) = split(intid);
            for vcpu in 0..config.affinities.len() {
                if let Some(bank) = gic.bank_mut(vcpu, index) {
                    bank.implemented &= !mask;
                    bank.group &= !mask;
                }
            }
            hardware
                .get_mut(index)
                .map(|word| *word &= !mask)
                .unwrap_or_default();
        }
        for &intid in config.soft.iter().filter(|&&intid| intid >= FIRST_SPI) {
            let (index, mask) = split(intid);
            hardware
                .get_mut(index)
                .map(|word| *word &= !mask)
                .unwrap_or_default();
        }
        let mut root = Self {
            gic,
            hardware,
            routed,
        };
        root.adopt(phys);
        Ok(root)
    }

    /// Brings the physical SPIs into the state the model starts from.
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

    /// A physical interrupt arrived at `cpu`, see [`Vgic::arrived`]. `false` if it is not root's: then EL2 has to
    /// deactivate it.
    pub fn arrived(&mut self, cpu: usize, intid: u32) -> (Kicks, bool) {
        let (index, mask) = split(intid);
        if self.hardware_of(index) & mask == 0 {
            return (Kicks::NONE, false);
        }
        (self.gic.arrived(cpu, intid), true)
    }

    /// Sets the line of an SPI without hardware; other numbers are ignored.
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

    /// `cpu`, on which this runs, belongs to root now: its PPIs get the state root gave them, SPIs routed to it come.
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

    /// `cpu`, on which this runs, leaves root: its SPIs go to another CPU of root's, its PPIs are disabled, its list
    /// registers are empty.
    pub fn park(&mut self, cpu: usize, lrs: &mut impl ListRegisters, phys: &mut impl PhysicalGic) -> Kicks {
        phys.redist_write32(cpu, SGI_BASE + 0x180, self.hardware_of(0));
        let kicks = self.gic.park(cpu, lrs);
        self.forward_routes(phys);
        kicks
    }

    /// See [`Vgic::await_dist_read`].
    pub fn await_dist_read(&mut self, reader: usize, offset: u32, width: u32) -> Kicks {
        self.gic.await_dist_read(reader, offset, width)
    }

    /// See [`Vgic::await_redist_read`].
    pub fn await_redist_read(&mut self, reader: usize, cpu: usize, offset: u32, width: u32) -> Kicks {
        self.gic.await_redist_read(reader, cpu, offset, width)
    }

    /// Whether root has an interrupt group on (`GICD_CTLR`). A kernel turns them off before it sets the distributor up, which
    /// it does once.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.gic.groups != 0
    }

    /// A read by root of `width` bytes at `offset` of the distributor.
    pub fn dist_read(&mut self, offset: u32, width: u32, phys: &mut impl PhysicalGic) -> u64 {
        if let Some(access) = Access::decode(offset, width) {
            return if access.index == 0 {
                0
            } else {
                self.read(None, &access, phys).into()
            };
        }
        let model = self.gic.dist_read(offset, width);
        if width != 4 || !offset.is_multiple_of(4) {
            return model;
        }
        match offset {
            offset::CTLR => model | u64::from(phys.dist_read32(offset) & CTLR_RWP),
            offset::TYPER => (phys.dist_read32(offset) & TYPER_SHOWN).into(),
            // Root's drivers look for errata here.
            offset::IIDR | offset::ID..=0xfffc => phys.dist_read32(offset).into(),
            _ => model,
        }
    }

    /// A write by root of `width` bytes at `offset` of the distributor.
    pub fn dist_write(&mut self, offset: u32, width: u32, value: u64, phys: &mut impl PhysicalGic) -> Kicks {
        if let Some(access) = Access::decode(offset, width) {
            return if access.index == 0 {
                Kicks::NONE
            } else {
                self.write(None, &access, value as u32, phys)
            };
        }
        match offset {
            offset::SETSPI_NSR | offset::CLRSPI_NSR => {
                let intid = value as u32 & 0x1fff;
                let (index, mask) = split(intid);
                if matches!(width, 2 | 4) && self.hardware_of(index) & mask != 0 {
                    phys.dist_write32(offset, intid);
                    return Kicks::NONE;
                }
                Kicks::NONE
            }
            _ => {
                let kicks = self.gic.dist_write(offset, width, value);
                if let Some((intid, _)) = decode_router(offset, width) {
                    self.forward_route(intid, phys);
                }
                kicks
            }
        }
    }

    /// A read by root of `width` bytes at `offset` of the redistributor of `cpu`.
    pub fn redist_read(&mut self, cpu: usize, offset: u32, width: u32, phys: &mut impl PhysicalGic) -> u64 {
        let Some(online) = self.gic.vcpus.get(cpu).map(|cpu| cpu.online) else {
            return 0;
        };
        if let Some(sgi) = offset.checked_sub(SGI_BASE) {
            return match Access::decode(sgi, width) {
                Some(access) if access.index == 0 && online => self.read(Some(cpu), &access, phys).into(),
                _ => 0,
            };
        }
        match offset {
            redist::offset::TYPER..=0xf => {
                let low = phys.redist_read32(cpu, redist::offset::TYPER);
                let high = phys.redist_read32(cpu, redist::offset::TYPER + 4);
                let typer = (u64::from(high) << 32 | u64::from(low)) & REDIST_TYPER_SHOWN;
                part(typer, offset - redist::offset::TYPER, width)
            }
            _ if width != 4 || !offset.is_multiple_of(4) => 0,
            redist::offset::CTLR => (phys.redist_read32(cpu, offset) & REDIST_CTLR_SHOWN).into(),
            redist::offset::IIDR | redist::offset::ID..=0xfffc => phys.redist_read32(cpu, offset).into(),
            redist::offset::WAKER => {
                self.gic.redist_read(cpu, offset, width) & u64::from(WAKER_SLEEP | WAKER_CHILDREN)
            }
            _ => 0,
        }
    }

    /// A write by root of `width` bytes at `offset` of the redistributor of `cpu`.
    pub fn redist_write(
        &mut self,
        cpu: usize,
        offset: u32,
        width: u32,
        value: u64,
        phys: &mut impl PhysicalGic,
    ) -> Kicks {
        if !self.gic.vcpus.get(cpu).is_some_and(|cpu| cpu.online) {
            return Kicks::NONE;
        }
        match offset.checked_sub(SGI_BASE) {
            Some(sgi) => match Access::decode(sgi, width) {
                Some(access) if access.index == 0 => self.write(Some(cpu), &access, value as u32, phys),
                _ => Kicks::NONE,
            },
            None => self.gic.redist_write(cpu, offset, width, value),
        }
    }

    /// A read of a register with a field per interrupt; `cpu` for private interrupts.
    fn read(&mut self, cpu: Option<usize>, access: &Access, phys: &mut impl PhysicalGic) -> u32 {
        let vcpu = cpu.unwrap_or(0);
        let model = self.gic.read_bank(vcpu, access);
        let hardware = self.hardware_of(access.index);
        match access.reg {
            Reg::SetPending | Reg::ClearPending => model | read32(phys, cpu, 0x200, access.index) & hardware,
            Reg::SetActive | Reg::ClearActive => {
                // What EL2 holds for root is active physically, whatever it is for root.
                let held = self.gic.bank(vcpu, access.index).map_or(0, |bank| bank.live);
                model | read32(phys, cpu, 0x300, access.index) & hardware & !held
            }
            _ => model,
        }
    }

    /// A write of a register with a field per interrupt; `cpu` for private interrupts.
    fn write(
        &mut self,
        cpu: Option<usize>,
        access: &Access,
        value: u32,
        phys: &mut impl PhysicalGic,
    ) -> Kicks {
        let vcpu = cpu.unwrap_or(0);
        let index = access.index;
        let hardware = self.hardware_of(index);
        let Some(live) = self.gic.bank(vcpu, index).map(|bank| bank.live) else {
            return Kicks::NONE;
        };
        match access.reg {
            // Physically all are group 1.
            Reg::Group => self.gic.write_bank(vcpu, access, value),
            Reg::SetEnable => {
                let kicks = self.gic.write_bank(vcpu, access, value);
                write32(phys, cpu, 0x100, index, value & hardware);
                kicks
            }
            Reg::ClearEnable => {
                write32(phys, cpu, 0x180, index, value & hardware);
                self.gic.write_bank(vcpu, access, value)
            }
            Reg::SetPending => {
                write32(phys, cpu, 0x200, index, value & hardware);
                self.gic.write_bank(vcpu, access, value & !hardware)
            }
            Reg::ClearPending => {
                write32(phys, cpu, 0x280, index, value & hardware);
                self.gic.write_bank(vcpu, access, value)
            }
            Reg::SetActive => {
                // A list register whose interrupt the guest ended must not be taken for the new activation.
                let ended = value & hardware & live & !read32(phys, cpu, 0x300, index);
                for bit in bits(ended) {
                    self.gic.complete(vcpu, index as u32 * 32 + bit);
                }
                write32(phys, cpu, 0x300, index, value & hardware);
                if let Some(bank) = self.gic.bank_mut(vcpu, index) {
                    bank.live |= value & hardware;
                }
                self.gic.write_bank(vcpu, access, value)
            }
            Reg::ClearActive => {
                // Those held for root are deactivated by the CPU that holds them.
                write32(phys, cpu, 0x380, index, value & hardware & !live);
                self.gic.write_bank(vcpu, access, value)
            }
            Reg::Priority => {
                let kicks = self.gic.write_bank(vcpu, access, value);
                self.forward_priority(cpu, index, access.first & !3, phys);
                kicks
            }
            Reg::Config => {
                self.forward_config(cpu, index, access.first, value, phys);
                self.gic.write_bank(vcpu, access, value)
            }
        }
    }

    /// Writes the priorities of the four interrupts from `first` to the physical register.
    fn forward_priority(
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
    fn forward_config(
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

    /// Brings all physical routes in line with root's, after CPUs came or went.
    fn forward_routes(&mut self, phys: &mut impl PhysicalGic) {
        for intid in FIRST_SPI..FIRST_SPI + self.gic.spi_count() {
            self.forward_route(intid, phys);
        }
    }

    /// Routes the physical SPI to `cpu` until root's routes are looked at again: it came to a CPU that is not root's.
    pub fn reroute(&mut self, intid: u32, cpu: usize, phys: &mut impl PhysicalGic) {
        if let Ok(target) = u8::try_from(cpu)
            && intid >= FIRST_SPI
        {
            self.route_to(intid, target, phys);
        }
    }

    /// Routes the physical SPI to the CPU root's route resolves to.
    fn forward_route(&mut self, intid: u32, phys: &mut impl PhysicalGic) {
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

    fn hardware_of(&self, index: usize) -> u32 {
        self.hardware.get(index).copied().unwrap_or(0)
    }
}

/// Reads word `word` of the registers at `base`: of a redistributor, or of the distributor.
fn read32(phys: &mut impl PhysicalGic, cpu: Option<usize>, base: u32, word: usize) -> u32 {
    let offset = base + 4 * word as u32;
    match cpu {
        Some(cpu) => phys.redist_read32(cpu, SGI_BASE + offset),
        None => phys.dist_read32(offset),
    }
}

/// Writes word `word` of the registers at `base`: of a redistributor, or of the distributor.
fn write32(phys: &mut impl PhysicalGic, cpu: Option<usize>, base: u32, word: usize, value: u32) {
    let offset = base + 4 * word as u32;
    match cpu {
        Some(cpu) => phys.redist_write32(cpu, SGI_BASE + offset, value),
        None => phys.dist_write32(offset, value),
    }
}
