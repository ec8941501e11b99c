//! The redistributors a zone sees: a frame of two 64 KiB pages for each vCPU, one after the other (IHI 0069,
//! 12.11): `RD_base`, with the CPU's identity, and `SGI_base`, with its SGIs and PPIs. No LPIs.

use super::access::Access;
use super::dist::{IIDR, id_register};
use super::gic::Vgic;
use super::kicks::Kicks;

/// The size of one redistributor: `RD_base` and `SGI_base`.
pub const FRAME_SIZE: u32 = 0x2_0000;
/// Offset of `SGI_base` in the frame.
pub(super) const SGI_BASE: u32 = 0x1_0000;

/// Offsets of the registers in `RD_base`.
pub(super) mod offset {
    pub const CTLR: u32 = 0x0000;
    pub const IIDR: u32 = 0x0004;
    pub const TYPER: u32 = 0x0008;
    pub const WAKER: u32 = 0x0014;
    pub const ID: u32 = super::super::dist::offset::ID;
}

/// `GICR_WAKER.ProcessorSleep` and `ChildrenAsleep`.
pub(super) const WAKER_SLEEP: u32 = 1 << 1;
pub(super) const WAKER_CHILDREN: u32 = 1 << 2;
/// `GICR_TYPER.Last`.
const TYPER_LAST: u64 = 1 << 4;

/// Returns the part of a 64-bit register that a read of `width` bytes at `offset` in it returns.
pub(super) fn part(value: u64, offset: u32, width: u32) -> u64 {
    match (offset, width) {
        (0, 8) => value,
        (0, 4) => value & 0xffff_ffff,
        (4, 4) => value >> 32,
        _ => 0,
    }
}

impl Vgic {
    /// As [`Vgic::await_dist_read`], for a read of the redistributor of `vcpu`.
    pub fn await_redist_read(&mut self, reader: usize, vcpu: usize, offset: u32, width: u32) -> Kicks {
        match offset
            .checked_sub(SGI_BASE)
            .and_then(|sgi| Access::decode(sgi, width))
        {
            Some(access) if access.index == 0 => self.await_read(reader, vcpu, &access),
            _ => Kicks::NONE,
        }
    }

    /// Reads `width` bytes at `offset` of the redistributor of `vcpu`, which need not be the reader's.
    pub fn redist_read(&mut self, vcpu: usize, offset: u32, width: u32) -> u64 {
        if let Some(sgi) = offset.checked_sub(SGI_BASE) {
            return match Access::decode(sgi, width) {
                Some(access) if access.index == 0 => self.read_bank(vcpu, &access).into(),
                _ => 0,
            };
        }
        let Some(cpu) = self.vcpus.get(vcpu) else { return 0 };
        match offset {
            offset::TYPER..=0xf => {
                let last = if vcpu + 1 == self.vcpus.len() {
                    TYPER_LAST
                } else {
                    0
                };
                let typer = u64::from(cpu.affinity) << 32 | (vcpu as u64) << 8 | last;
                part(typer, offset - offset::TYPER, width)
            }
            _ if width != 4 => 0,
            offset::IIDR => IIDR.into(),
            offset::WAKER => if cpu.asleep {
                WAKER_SLEEP | WAKER_CHILDREN
            } else {
                0
            }
            .into(),
            offset::ID.. if offset.is_multiple_of(4) => id_register(offset, 0x93).into(),
            // GICR_CTLR too: no LPIs to enable, no write is ever in progress.
            _ => 0,
        }
    }

    /// Writes `width` bytes at `offset` of the redistributor of `vcpu`.
    pub fn redist_write(&mut self, vcpu: usize, offset: u32, width: u32, value: u64) -> Kicks {
        if let Some(sgi) = offset.checked_sub(SGI_BASE) {
            return match Access::decode(sgi, width) {
                Some(access) if access.index == 0 => self.write_bank(vcpu, &access, value as u32),
                _ => Kicks::NONE,
            };
        }
        if (offset, width) == (offset::WAKER, 4)
            && let Some(cpu) = self.vcpus.get_mut(vcpu)
        {
            cpu.asleep = value as u32 & WAKER_SLEEP != 0;
        }
        Kicks::NONE
    }
}
