//! The state of a zone's interrupts and every change of it that comes from outside: lines, SGIs, physical arrivals,
//! routes. The registers are in `dist`, `redist` and `regs`; the list registers in `flush`, `fill` and `park`.

use alloc::vec::Vec;

use super::bank::{Bank, Want, bits, split};
use super::regs::Access;
use super::{FIRST_SPI, Kicks, MAX_LIST_REGISTERS, MAX_VCPUS, NONE, SGIS, SPI_LIMIT, SgiRequest, VgicError};

/// One list register in use.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Slot {
    pub(super) intid: u32,
    /// The list register carries a pending state that came from the latch.
    pub(super) latched: bool,
    /// That pending state is a physical arrival.
    pub(super) live_pending: bool,
    /// The active state of the list register stands for the physical interrupt: when it ends, that is deactivated, by
    /// the hardware (`HW`) or by EL2.
    pub(super) live_active: bool,
    /// The guest cleared the pending state since the last look.
    pub(super) drop_pending: bool,
    /// The guest cleared the active state since the last look.
    pub(super) drop_active: bool,
    /// The guest set the active state since the last look.
    pub(super) set_active: bool,
}

/// One virtual CPU's part.
#[derive(Debug)]
pub(super) struct VCpu {
    /// Aff3.Aff2.Aff1.Aff0, one byte each.
    pub(super) affinity: u32,
    /// Has a physical CPU to run on, so it can be kicked.
    pub(super) online: bool,
    /// SGIs and PPIs.
    pub(super) private: Bank,
    /// Interrupts that want a list register, by bank.
    pub(super) ready: [u32; 32],
    /// The banks whose word of `ready` is not zero.
    pub(super) ready_banks: u32,
    pub(super) slots: [Slot; MAX_LIST_REGISTERS],
    /// The slots in use.
    pub(super) used: u32,
    /// Something changed since the last flush.
    pub(super) dirty: bool,
    /// Active interrupts are without a list register: the guest may end one of them.
    pub(super) evicted: bool,
    /// What `ICH_HCR_EL2` was last set to; 0 before the first time.
    pub(super) hcr: u64,
    /// `GICR_WAKER.ProcessorSleep`.
    pub(super) asleep: bool,
    /// The read this virtual CPU is trying, see [`Vgic::await_dist_read`], and whose list registers it waits for.
    pub(super) reading: Option<Access>,
    pub(super) awaits: Kicks,
}

impl VCpu {
    pub(super) fn list(&mut self, bank: usize, mask: u32) {
        if let Some(word) = self.ready.get_mut(bank) {
            *word |= mask;
            self.ready_banks |= 1 << bank;
        }
    }

    pub(super) fn unlist(&mut self, bank: usize, mask: u32) {
        if let Some(word) = self.ready.get_mut(bank) {
            *word &= !mask;
            if *word == 0 {
                self.ready_banks &= !(1 << bank);
            }
        }
    }

    /// The slot in which `intid` is.
    pub(super) fn slot_index(&self, intid: u32) -> Option<usize> {
        bits(self.used)
            .map(|i| i as usize)
            .find(|&i| self.slots.get(i).is_some_and(|slot| slot.intid == intid))
    }

    pub(super) fn slot_of(&mut self, intid: u32) -> Option<&mut Slot> {
        let index = self.slot_index(intid)?;
        self.slots.get_mut(index)
    }
}

/// Where an SPI goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// `GICD_IROUTER<n>` as written.
    pub(super) router: u64,
    /// The virtual CPU that resolves to, or `NONE`.
    pub(super) target: u8,
    /// The virtual CPU in whose `ready` set or list registers it is, or `NONE`.
    pub(super) home: u8,
}

/// The virtual interrupt controller of one zone.
#[derive(Debug)]
pub struct Vgic {
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    pub(super) groups: u32,
    pub(super) vcpus: Vec<VCpu>,
    /// Bank n-1 is the SPIs 32n to 32n+31.
    pub(super) spis: Vec<Bank>,
    pub(super) routes: Vec<Route>,
    /// Whether SPIs routed to a CPU that is not there go to the first one that is (the root zone), instead of waiting.
    pub(super) fallback: bool,
}

impl Vgic {
    /// A GIC for virtual CPUs with these affinities (Aff3.Aff2.Aff1.Aff0, one byte each) and `spis` SPIs. All virtual
    /// CPUs are offline at first; see [`Vgic::unpark`].
    ///
    /// # Errors
    /// See [`VgicError`].
    pub fn new(affinities: &[u32], spis: u32) -> Result<Self, VgicError> {
        if affinities.is_empty() || affinities.len() > MAX_VCPUS {
            return Err(VgicError::CpuCount(affinities.len()));
        }
        if spis > SPI_LIMIT - FIRST_SPI || !(spis.is_multiple_of(32) || spis == SPI_LIMIT - FIRST_SPI) {
            return Err(VgicError::SpiCount(spis));
        }
        let mut gic = Self {
            groups: 0,
            vcpus: Vec::new(),
            spis: Vec::new(),
            routes: Vec::new(),
            fallback: false,
        };
        let banks = spis.div_ceil(32) as usize;
        gic.vcpus
            .try_reserve_exact(affinities.len())
            .map_err(|_| VgicError::NoMemory)?;
        gic.spis
            .try_reserve_exact(banks)
            .map_err(|_| VgicError::NoMemory)?;
        gic.routes
            .try_reserve_exact(spis as usize)
            .map_err(|_| VgicError::NoMemory)?;
        gic.vcpus.extend(affinities.iter().map(|&affinity| VCpu {
            affinity,
            online: false,
            private: Bank::new(u32::MAX, SGIS),
            ready: [0; 32],
            ready_banks: 0,
            slots: [Slot::default(); MAX_LIST_REGISTERS],
            used: 0,
            dirty: true,
            evicted: false,
            hcr: 0,
            asleep: false,
            reading: None,
            awaits: Kicks::NONE,
        }));
        // Bank 31 ends with the four special numbers 1020 to 1023.
        gic.spis
            .extend((1..=banks).map(|n| Bank::new(if n == 31 { 0x0fff_ffff } else { u32::MAX }, 0)));
        let route = Route {
            router: 0,
            target: gic.resolve(0),
            home: NONE,
        };
        gic.routes.extend(core::iter::repeat_n(route, spis as usize));
        Ok(gic)
    }

    /// How many virtual CPUs there are.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// How many SPIs there are.
    pub fn spi_count(&self) -> u32 {
        self.routes.len() as u32
    }

    /// Sets the input line of an SPI. An edge-triggered one becomes pending when its line rises, a level-triggered one
    /// is pending while its line is high. An unknown number is ignored.
    pub fn set_line(&mut self, intid: u32, high: bool) -> Kicks {
        if intid < FIRST_SPI {
            return Kicks::NONE;
        }
        self.set_line_of(0, intid, high)
    }

    /// Sets the input line of a PPI of `vcpu` that no hardware stands behind.
    pub fn set_ppi_line(&mut self, vcpu: usize, intid: u32, high: bool) -> Kicks {
        if !(16..32).contains(&intid) {
            return Kicks::NONE;
        }
        self.set_line_of(vcpu, intid, high)
    }

    pub(super) fn set_line_of(&mut self, vcpu: usize, intid: u32, high: bool) -> Kicks {
        let (index, mask) = split(intid);
        let Some(bank) = self.bank_mut(vcpu, index) else {
            return Kicks::NONE;
        };
        if bank.implemented & mask == 0 || (bank.line & mask != 0) == high {
            return Kicks::NONE;
        }
        if high {
            bank.line |= mask;
            bank.latch |= mask & bank.edge;
        } else {
            bank.line &= !mask;
            if bank.edge & mask != 0 {
                return Kicks::NONE;
            }
        }
        self.refresh(vcpu, intid)
    }

    /// The physical PPI or SPI `intid` arrived at the physical CPU of `vcpu`, which has acknowledged it and dropped its
    /// priority, but not deactivated it. It becomes pending under the same number; the physical interrupt stays active,
    /// so it cannot come again, until the guest has deactivated the virtual one.
    pub fn arrived(&mut self, vcpu: usize, intid: u32) -> Kicks {
        let (index, mask) = split(intid);
        if intid < 16 || self.vcpus.get(vcpu).is_none() {
            return Kicks::NONE;
        }
        if self
            .bank(vcpu, index)
            .is_none_or(|bank| bank.implemented & mask == 0)
        {
            return Kicks::NONE;
        }
        // It could only come again because the guest deactivated what was there of it.
        self.complete(vcpu, intid);
        if let Some(bank) = self.bank_mut(vcpu, index) {
            bank.latch |= mask;
            bank.arrived |= mask;
            bank.live |= mask;
        }
        self.refresh(vcpu, intid)
    }

    /// The physical interrupt `intid` is known not to be active: if a list register still stands for it, that is done,
    /// and its CPU has not looked yet.
    pub(super) fn complete(&mut self, vcpu: usize, intid: u32) {
        let (index, mask) = split(intid);
        let home = self.home(vcpu, intid);
        if let Some(cpu) = self.vcpus.get_mut(home)
            && let Some(i) = cpu.slot_index(intid)
            && cpu
                .slots
                .get(i)
                .is_some_and(|slot| slot.live_pending || slot.live_active)
        {
            cpu.used &= !(1 << i);
            self.leave_home(vcpu, intid);
            if let Some(bank) = self.bank_mut(vcpu, index) {
                bank.resident &= !mask;
                bank.active &= !mask;
                bank.live &= !mask;
            }
        }
    }

    /// Executes a write to one of the SGI registers by `sender`. Only virtual CPUs of this GIC can be reached.
    pub fn send_sgi(&mut self, sender: usize, request: &SgiRequest) -> Kicks {
        let mut kicks = Kicks::NONE;
        let mask = 1 << request.intid;
        for vcpu in 0..self.vcpus.len() {
            let Some(cpu) = self.vcpus.get_mut(vcpu) else {
                break;
            };
            if request.targets(cpu.affinity, vcpu == sender)
                && (request.group1 || cpu.private.group & mask == 0)
            {
                cpu.private.latch |= mask & cpu.private.implemented;
                kicks |= self.refresh(vcpu, request.intid);
            }
        }
        kicks
    }

    /// Back to the state after construction, but for input lines and physical interrupts. Only while every virtual CPU
    /// is parked.
    pub fn reset(&mut self) {
        self.groups = 0;
        for cpu in &mut self.vcpus {
            cpu.private.reset(SGIS);
            cpu.ready = [0; 32];
            cpu.ready_banks = 0;
            cpu.used = 0;
            cpu.evicted = false;
            cpu.asleep = false;
            cpu.reading = None;
        }
        self.spis.iter_mut().for_each(|bank| bank.reset(0));
        let target = self.resolve(0);
        self.routes.fill(Route {
            router: 0,
            target,
            home: NONE,
        });
    }

    /// Brings the place of `intid` in line with its state, after any change of it. `vcpu` is whose PPI or SGI it is.
    pub(super) fn refresh(&mut self, vcpu: usize, intid: u32) -> Kicks {
        let (index, mask) = split(intid);
        let groups = self.groups;
        let Some(bank) = self.bank(vcpu, index) else {
            return Kicks::NONE;
        };
        let home = self.home(vcpu, intid);
        if bank.resident & mask != 0 {
            return self.mark(home);
        }
        let want = bank.want(mask, groups);
        let target = self.target(vcpu, intid);
        // An active interrupt stays where it was taken.
        let place = match want {
            Want::Nothing => usize::from(NONE),
            Want::Active if home != usize::from(NONE) => home,
            _ => target,
        };
        if place != home
            && let Some(cpu) = self.vcpus.get_mut(home)
        {
            cpu.unlist(index, mask);
        }
        self.set_home(intid, place);
        if let Some(cpu) = self.vcpus.get_mut(place) {
            cpu.list(index, mask);
            return self.mark(place);
        }
        Kicks::NONE
    }

    /// [`Vgic::refresh`] for the interrupts of a bank in `mask`.
    pub(super) fn refresh_bank(&mut self, vcpu: usize, index: usize, mask: u32) -> Kicks {
        bits(mask).fold(Kicks::NONE, |kicks, bit| {
            kicks | self.refresh(vcpu, index as u32 * 32 + bit)
        })
    }

    /// [`Vgic::refresh`] for all interrupts: the groups were switched, or CPUs came or went.
    pub(super) fn refresh_all(&mut self) -> Kicks {
        let mut kicks = Kicks::NONE;
        for vcpu in 0..self.vcpus.len() {
            kicks |= self.refresh_bank(vcpu, 0, u32::MAX);
        }
        for index in 1..=self.spis.len() {
            let implemented = self.bank(0, index).map_or(0, |bank| bank.implemented);
            kicks |= self.refresh_bank(0, index, implemented);
        }
        kicks
    }

    /// The list registers of `vcpu` are out of date.
    pub(super) fn mark(&mut self, vcpu: usize) -> Kicks {
        match self.vcpus.get_mut(vcpu) {
            Some(cpu) => {
                cpu.dirty = true;
                if cpu.online { Kicks::of(vcpu) } else { Kicks::NONE }
            }
            None => Kicks::NONE,
        }
    }

    pub(super) fn bank(&self, vcpu: usize, index: usize) -> Option<&Bank> {
        match index.checked_sub(1) {
            None => self.vcpus.get(vcpu).map(|cpu| &cpu.private),
            Some(spi) => self.spis.get(spi),
        }
    }

    pub(super) fn bank_mut(&mut self, vcpu: usize, index: usize) -> Option<&mut Bank> {
        match index.checked_sub(1) {
            None => self.vcpus.get_mut(vcpu).map(|cpu| &mut cpu.private),
            Some(spi) => self.spis.get_mut(spi),
        }
    }

    pub(super) fn route(&self, intid: u32) -> Option<&Route> {
        self.routes.get(intid.checked_sub(FIRST_SPI)? as usize)
    }

    pub(super) fn route_mut(&mut self, intid: u32) -> Option<&mut Route> {
        self.routes.get_mut(intid.checked_sub(FIRST_SPI)? as usize)
    }

    /// The virtual CPU in whose ready set or list registers `intid` is. A private interrupt is always at home.
    pub(super) fn home(&self, vcpu: usize, intid: u32) -> usize {
        self.route(intid).map_or(vcpu, |route| usize::from(route.home))
    }

    pub(super) fn set_home(&mut self, intid: u32, home: usize) {
        if let Some(route) = self.route_mut(intid) {
            route.home = u8::try_from(home).unwrap_or(NONE);
        }
    }

    /// `intid` is in no ready set and no list register any more.
    pub(super) fn leave_home(&mut self, vcpu: usize, intid: u32) {
        let (index, mask) = split(intid);
        let home = self.home(vcpu, intid);
        if let Some(cpu) = self.vcpus.get_mut(home) {
            cpu.unlist(index, mask);
        }
        self.set_home(intid, usize::from(NONE));
    }

    /// The virtual CPU `intid` goes to when it is pending.
    pub(super) fn target(&self, vcpu: usize, intid: u32) -> usize {
        self.route(intid).map_or(vcpu, |route| usize::from(route.target))
    }

    /// The virtual CPU a value of `GICD_IROUTER<n>` names.
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

    /// `vcpu` came or went: resolves all routes again.
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

/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`.
const ROUTER_IRM: u64 = 1 << 31;
/// The bits of `GICD_IROUTER<n>` that are stored.
const ROUTER_BITS: u64 = 0xff_80ff_ffff;
