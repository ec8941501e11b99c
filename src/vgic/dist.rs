//! The distributor a zone sees: one security state (`DS`), affinity routing always on (`ARE`), no LPIs (IHI
//! 0069, 12.9). Accesses of a width that a register does not support, and undefined offsets, read as zero and
//! ignore writes. SPIs are routed (`GICD_IROUTER<n>`) to vCPUs.

use super::access::{Access, Reg};
use super::gic::Vgic;
use super::intid::{FIRST_SPI, SPI_LIMIT, split};
use super::kicks::Kicks;
use super::state::NONE;

/// Offsets of the distributor's registers.
pub(super) mod offset {
    pub const CTLR: u32 = 0x0000;
    pub const TYPER: u32 = 0x0004;
    pub const IIDR: u32 = 0x0008;
    pub const SETSPI_NSR: u32 = 0x0040;
    pub const CLRSPI_NSR: u32 = 0x0048;
    pub const IROUTER: u32 = 0x6000;
    pub const IROUTER_END: u32 = IROUTER + 8 * super::SPI_LIMIT;
    /// The identification registers `PIDR4` to `CIDR3`, at the same offset in every page group of the GIC.
    pub const ID: u32 = 0xffd0;
}

/// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
pub(super) const CTLR_GROUPS: u32 = 0b11;
/// `GICD_CTLR.ARE`: always on.
const CTLR_ARE: u32 = 1 << 4;
/// `GICD_CTLR.DS`: one security state.
const CTLR_DS: u32 = 1 << 6;
/// `GICD_TYPER.MBIS`: message-based SPIs by `SETSPI_NSR` and `CLRSPI_NSR`.
const TYPER_MBIS: u32 = 1 << 16;
/// `GICD_TYPER.IDbits`: INTIDs have ten bits.
const TYPER_IDBITS: u32 = 9 << 19;
/// `GICD_IIDR` and `GICR_IIDR`: implementer Arm (0x43b), as the register model is Arm's; product `R`.
pub(super) const IIDR: u32 = 0x5200_043b;

/// Returns an identification register at [`offset::ID`]: of a GICv3 by Arm (`PIDR2.ArchRev` 3).
pub(super) fn id_register(offset: u32, part: u8) -> u32 {
    const ID: [u8; 12] = [0x44, 0, 0, 0, 0, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    match offset.checked_sub(offset::ID).map(|bytes| bytes / 4) {
        Some(4) => part.into(),
        Some(n) => ID.get(n as usize).copied().unwrap_or(0).into(),
        None => 0,
    }
}

/// Decodes an access to `GICD_IROUTER<n>`: the SPI, and the bit position of the accessed half.
pub(super) fn decode_router(offset: u32, width: u32) -> Option<(u32, u32)> {
    if !(offset::IROUTER..offset::IROUTER_END).contains(&offset) || !offset.is_multiple_of(width.max(1)) {
        return None;
    }
    let intid = (offset - offset::IROUTER) / 8;
    let shift = offset % 8 * 8;
    (intid >= FIRST_SPI && matches!(width, 4 | 8)).then_some((intid, shift))
}

/// Returns `old` with the `width` bytes at `shift` replaced by `value`.
pub(super) fn merge(old: u64, shift: u32, width: u32, value: u64) -> u64 {
    if width == 8 {
        return value;
    }
    let mask = 0xffff_ffff << shift;
    old & !mask | value << shift & mask
}

impl Vgic {
    /// Returns the vCPUs that must sync before `reader` can read `width` bytes at `offset` of the
    /// distributor; empty when the read can go on. Otherwise EL2 kicks them and lets the guest retry the
    /// read: interrupts of the register are in their list registers, which alone hold whether those are still
    /// pending or active.
    pub fn await_dist_read(&mut self, reader: usize, offset: u32, width: u32) -> Kicks {
        match Access::decode(offset, width) {
            Some(access) if access.index != 0 => self.await_read(reader, 0, &access),
            _ => Kicks::NONE,
        }
    }

    /// Reads `width` bytes at `offset` of the distributor.
    pub fn dist_read(&mut self, offset: u32, width: u32) -> u64 {
        if let Some(access) = Access::decode(offset, width) {
            // Bank 0 is in the redistributors.
            return if access.index == 0 {
                0
            } else {
                self.read_bank(0, &access).into()
            };
        }
        if let Some((intid, shift)) = decode_router(offset, width) {
            let value = self.route(intid).map_or(0, |route| route.router) >> shift;
            return if width == 8 { value } else { value & 0xffff_ffff };
        }
        if width != 4 || !offset.is_multiple_of(4) {
            return 0;
        }
        u64::from(match offset {
            offset::CTLR => self.groups | CTLR_ARE | CTLR_DS,
            offset::TYPER => self.spi_count().div_ceil(32) | TYPER_MBIS | TYPER_IDBITS,
            offset::IIDR => IIDR,
            offset::ID.. => id_register(offset, 0x92),
            _ => 0,
        })
    }

    /// Writes `width` bytes at `offset` of the distributor.
    pub fn dist_write(&mut self, offset: u32, width: u32, value: u64) -> Kicks {
        if let Some(access) = Access::decode(offset, width) {
            return if access.index == 0 {
                Kicks::NONE
            } else {
                self.write_bank(0, &access, value as u32)
            };
        }
        if let Some((intid, shift)) = decode_router(offset, width) {
            let old = self.route(intid).map_or(0, |route| route.router);
            return self.set_router(intid, merge(old, shift, width, value));
        }
        match (offset, width) {
            (offset::CTLR, 4) => self.set_groups(value as u32),
            (offset::SETSPI_NSR, 2 | 4) => self.message(value as u32 & 0x1fff, true),
            (offset::CLRSPI_NSR, 2 | 4) => self.message(value as u32 & 0x1fff, false),
            _ => Kicks::NONE,
        }
    }

    /// Writes the enable bits of `GICD_CTLR`.
    pub(super) fn set_groups(&mut self, value: u32) -> Kicks {
        if value & CTLR_GROUPS == self.groups {
            return Kicks::NONE;
        }
        self.groups = value & CTLR_GROUPS;
        self.refresh_all()
    }

    /// Executes a message-based SPI: an edge becomes pending, for a level the message sets the line.
    fn message(&mut self, intid: u32, set: bool) -> Kicks {
        if !(FIRST_SPI..SPI_LIMIT).contains(&intid) {
            return Kicks::NONE;
        }
        let (index, mask) = split(intid);
        let Some(bank) = self.bank(0, index) else {
            return Kicks::NONE;
        };
        if bank.edge & mask == 0 {
            return self.set_line(intid, set);
        }
        let reg = if set { Reg::SetPending } else { Reg::ClearPending };
        self.write_bank(
            0,
            &Access {
                reg,
                index,
                first: 0,
                count: 32,
            },
            mask,
        )
    }
}

/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`.
const ROUTER_IRM: u64 = 1 << 31;

/// The bits of `GICD_IROUTER<n>` that are stored.
const ROUTER_BITS: u64 = 0xff_80ff_ffff;

impl Vgic {
    /// Returns the vCPU a value of `GICD_IROUTER<n>` names.
    pub(super) fn resolve(&self, router: u64) -> u8 {
        let online = || self.vcpus.iter().position(|cpu| cpu.online);
        let affinity = (router >> 8 & 0xff00_0000 | router & 0x00ff_ffff) as u32;
        let vcpu = if router & ROUTER_IRM != 0 {
            // "Any participating CPU": the first one.
            online().or(Some(0))
        } else {
            self.vcpus
                .iter()
                .position(|cpu| cpu.affinity == affinity && (cpu.online || !self.fallback))
        };
        let vcpu = if self.fallback { vcpu.or_else(online) } else { vcpu };
        vcpu.and_then(|vcpu| u8::try_from(vcpu).ok()).unwrap_or(NONE)
    }

    /// Writes `GICD_IROUTER<intid>`.
    pub(super) fn set_router(&mut self, intid: u32, router: u64) -> Kicks {
        let router = router & ROUTER_BITS;
        let target = self.resolve(router);
        let Some(route) = self.route_mut(intid) else {
            return Kicks::NONE;
        };
        route.router = router;
        if route.target == target {
            return Kicks::NONE;
        }
        route.target = target;
        self.refresh(0, intid)
    }

    /// Sets whether `vcpu` is online and resolves all routes again.
    pub(super) fn resolve_online(&mut self, vcpu: usize, online: bool) -> Kicks {
        let mut kicks = Kicks::NONE;
        if let Some(cpu) = self.vcpus.get_mut(vcpu) {
            cpu.online = online;
        }
        for intid in FIRST_SPI..FIRST_SPI + self.spi_count() {
            if let Some(router) = self.route(intid).map(|route| route.router) {
                kicks |= self.set_router(intid, router);
            }
        }
        kicks
    }
}
