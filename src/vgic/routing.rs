//! Routing of SPIs (`GICD_IROUTER<n>`) to vCPUs.

use super::gic::Vgic;
use super::intid::FIRST_SPI;
use super::kicks::Kicks;
use super::state::NONE;

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
