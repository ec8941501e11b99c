//! The distributor and the redistributors as root sees them: the model's registers, and the physical ones
//! where they are root's.

use super::RootGic;
use super::forward::{read32, write32};
use crate::vgic::access::{Access, Frame, Reg};
use crate::vgic::dist::{decode_router, offset};
use crate::vgic::intid::{bits, split};
use crate::vgic::kicks::Kicks;
use crate::vgic::physical::PhysicalGic;
use crate::vgic::redist::{self, SGI_BASE, WAKER_CHILDREN, WAKER_SLEEP, part};

/// The fields of the physical `GICD_TYPER` visible to root: no LPIs, no extended SPIs, no second security
/// state.
const TYPER_VISIBLE: u32 = 0x1f | 0x7 << 5 | 1 << 16 | 0x1f << 19 | 1 << 24 | 1 << 25 | 1 << 26;

/// `GICD_CTLR.RWP`.
const CTLR_RWP: u32 = 1 << 31;

/// `GICR_CTLR.RWP` and `UWP`: the only fields visible to root.
const REDIST_CTLR_VISIBLE: u32 = 1 << 3 | 1 << 31;

/// The fields of the physical `GICR_TYPER` visible to root: affinity, number, `Last`; and `VLPIS`, which
/// determines the size of a frame.
const REDIST_TYPER_VISIBLE: u64 = 0xffff_ffff << 32 | 0xffff << 8 | 1 << 4 | 1 << 1;

impl RootGic {
    /// As [`Vgic::access`](crate::vgic::Vgic::access), for root on `cpu`.
    pub fn access(
        &mut self,
        cpu: usize,
        frame: Frame,
        offset: u32,
        width: u32,
        stored: Option<u64>,
        phys: &mut impl PhysicalGic,
    ) -> (Kicks, Option<u64>) {
        if let Some(value) = stored {
            let kicks = match frame {
                Frame::Distributor => self.dist_write(offset, width, value, phys),
                Frame::Redistributor(of) => self.redist_write(of, offset, width, value, phys),
            };
            return (kicks, Some(0));
        }
        let others = self.gic.await_frame_read(cpu, frame, offset, width);
        let value = others.is_empty().then(|| match frame {
            Frame::Distributor => self.dist_read(offset, width, phys),
            Frame::Redistributor(of) => self.redist_read(of, offset, width, phys),
        });
        (others, value)
    }

    /// Reads `width` bytes at `offset` of the distributor for root.
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
            offset::TYPER => (phys.dist_read32(offset) & TYPER_VISIBLE).into(),
            // Root's drivers identify errata by these.
            offset::IIDR | offset::ID..=0xfffc => phys.dist_read32(offset).into(),
            _ => model,
        }
    }

    /// Writes `width` bytes at `offset` of the distributor for root.
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

    /// Reads `width` bytes at `offset` of the redistributor of `cpu` for root.
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
                let typer = (u64::from(high) << 32 | u64::from(low)) & REDIST_TYPER_VISIBLE;
                part(typer, offset - redist::offset::TYPER, width)
            }
            _ if width != 4 || !offset.is_multiple_of(4) => 0,
            redist::offset::CTLR => (phys.redist_read32(cpu, offset) & REDIST_CTLR_VISIBLE).into(),
            redist::offset::IIDR | redist::offset::ID..=0xfffc => phys.redist_read32(cpu, offset).into(),
            redist::offset::WAKER => {
                self.gic.redist_read(cpu, offset, width) & u64::from(WAKER_SLEEP | WAKER_CHILDREN)
            }
            _ => 0,
        }
    }

    /// Writes `width` bytes at `offset` of the redistributor of `cpu` for root.
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

    /// Reads a register with a field per interrupt; `cpu` for private interrupts.
    fn read(&mut self, cpu: Option<usize>, access: &Access, phys: &mut impl PhysicalGic) -> u32 {
        let vcpu = cpu.unwrap_or(0);
        let model = self.gic.read_bank(vcpu, access);
        let hardware = self.hardware_of(access.index);
        match access.reg {
            Reg::SetPending | Reg::ClearPending => model | read32(phys, cpu, 0x200, access.index) & hardware,
            Reg::SetActive | Reg::ClearActive => {
                // What EL2 has acknowledged for root is physically active, but not yet active for root.
                let held = self
                    .gic
                    .bank(vcpu, access.index)
                    .map_or(0, |bank| bank.phys_active);
                model | read32(phys, cpu, 0x300, access.index) & hardware & !held
            }
            _ => model,
        }
    }

    /// Writes a register with a field per interrupt; `cpu` for private interrupts.
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
        let Some(live) = self.gic.bank(vcpu, index).map(|bank| bank.phys_active) else {
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
                // A list register whose interrupt the guest has ended must not be mistaken for the new
                // activation.
                let ended = value & hardware & live & !read32(phys, cpu, 0x300, index);
                for bit in bits(ended) {
                    self.gic.finish_physical(vcpu, index as u32 * 32 + bit);
                }
                write32(phys, cpu, 0x300, index, value & hardware);
                if let Some(bank) = self.gic.bank_mut(vcpu, index) {
                    bank.phys_active |= value & hardware;
                }
                self.gic.write_bank(vcpu, access, value)
            }
            Reg::ClearActive => {
                // Those acknowledged on root's behalf are deactivated by the CPU that holds them.
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
}
