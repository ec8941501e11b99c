//! The state of a zone's interrupts ([`Vgic`]) and where each of them is. Its sources are in `input` and
//! `routing`, the registers in `dist`, `redist` and `regs`, the list registers in `flush`, `fill` and `park`.

use alloc::vec::Vec;

use super::bank::{Bank, Want};
use super::intid::{FIRST_SPI, SGIS, SPI_LIMIT, bits, split};
use super::kicks::{Kicks, MAX_VCPUS};
use super::lr::MAX_LIST_REGISTERS;
use super::state::{LrState, NONE, Route, VCpu};

/// The virtual interrupt controller of one zone.
#[derive(Debug)]
pub struct Vgic {
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    pub(super) groups: u32,
    pub(super) vcpus: Vec<VCpu>,
    /// Bank n-1 is the SPIs 32n to 32n+31.
    pub(super) spis: Vec<Bank>,
    pub(super) routes: Vec<Route>,
    /// Whether SPIs routed to an offline CPU go to the first online one (the root zone) instead of waiting.
    pub(super) fallback: bool,
}

/// Why a virtual GIC cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VgicError {
    /// A GIC has 1 to [`MAX_VCPUS`] vCPUs.
    #[error("a virtual GIC has 1 to {MAX_VCPUS} CPUs, not {0}")]
    CpuCount(usize),
    /// The number of SPIs is not a multiple of 32 (or 988, the architecture's maximum).
    #[error("the number of SPIs is a multiple of 32, or 988, not {0}")]
    SpiCount(u32),
    /// Out of memory.
    #[error("no memory for the virtual GIC")]
    NoMemory,
}

impl Vgic {
    /// Returns a GIC for vCPUs with these affinities (Aff3.Aff2.Aff1.Aff0, one byte each) and `spis` SPIs.
    /// All vCPUs are offline at first; see [`Vgic::unpark`].
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
        let banks = spis.div_ceil(32) as usize;
        let mut gic = Self {
            groups: 0,
            vcpus: vec_of(affinities.len())?,
            spis: vec_of(banks)?,
            routes: vec_of(spis as usize)?,
            fallback: false,
        };
        gic.vcpus.extend(affinities.iter().map(|&affinity| VCpu {
            affinity,
            online: false,
            private: Bank::new(u32::MAX, SGIS),
            ready: [0; 32],
            ready_banks: 0,
            lr_states: [LrState::default(); MAX_LIST_REGISTERS],
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

    /// Returns the number of SPIs.
    pub fn spi_count(&self) -> u32 {
        self.routes.len() as u32
    }

    /// Resets to the state after construction, except for input lines and physical interrupts. Every vCPU
    /// must be parked.
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

    /// Moves `intid` to the place that its state demands; must follow every change of its state. `vcpu` owns
    /// it if it is a PPI or SGI.
    pub(super) fn refresh(&mut self, vcpu: usize, intid: u32) -> Kicks {
        let (index, mask) = split(intid);
        let groups = self.groups;
        let Some(bank) = self.bank(vcpu, index) else {
            return Kicks::NONE;
        };
        let home = self.home(vcpu, intid);
        if bank.resident & mask != 0 {
            return self.mark_dirty(home);
        }
        let want = bank.want(mask, groups);
        let target = self.target(vcpu, intid);
        // An active interrupt stays on the vCPU that acknowledged it.
        let place = match want {
            Want::Nothing => usize::from(NONE),
            Want::Active if home != usize::from(NONE) => home,
            _ => target,
        };
        if place != home
            && let Some(cpu) = self.vcpus.get_mut(home)
        {
            cpu.remove_ready(index, mask);
        }
        self.set_home(intid, place);
        if let Some(cpu) = self.vcpus.get_mut(place) {
            cpu.insert_ready(index, mask);
            return self.mark_dirty(place);
        }
        Kicks::NONE
    }

    /// Calls [`Vgic::refresh`] for the interrupts of a bank in `mask`.
    pub(super) fn refresh_bank(&mut self, vcpu: usize, index: usize, mask: u32) -> Kicks {
        bits(mask).fold(Kicks::NONE, |kicks, bit| {
            kicks | self.refresh(vcpu, index as u32 * 32 + bit)
        })
    }

    /// Does what [`Vgic::refresh`] of all interrupts does, after a change of group enables. A guest may
    /// change them as often as it likes, and other CPUs wait meanwhile: private interrupts, which have one
    /// place, are done a bank at a time, and of the SPIs only those that have any state.
    pub(super) fn refresh_all(&mut self) -> Kicks {
        let mut kicks = Kicks::NONE;
        let groups = self.groups;
        for vcpu in 0..self.vcpus.len() {
            if let Some(cpu) = self.vcpus.get_mut(vcpu) {
                let bank = &cpu.private;
                let (ready, resident) = (bank.wanting(groups) & !bank.resident, bank.resident);
                cpu.set_ready(0, ready);
                if ready | resident != 0 {
                    kicks |= self.mark_dirty(vcpu);
                }
            }
        }
        for index in 1..=self.spis.len() {
            let in_use = self.bank(0, index).map_or(0, Bank::in_use);
            kicks |= self.refresh_bank(0, index, in_use);
        }
        kicks
    }

    /// Marks the list registers of `vcpu` as out of date.
    pub(super) fn mark_dirty(&mut self, vcpu: usize) -> Kicks {
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

    /// Returns the vCPU in whose ready set or list registers `intid` is. A private interrupt never leaves its
    /// own.
    pub(super) fn home(&self, vcpu: usize, intid: u32) -> usize {
        self.route(intid).map_or(vcpu, |route| usize::from(route.home))
    }

    pub(super) fn set_home(&mut self, intid: u32, home: usize) {
        if let Some(route) = self.route_mut(intid) {
            route.home = u8::try_from(home).unwrap_or(NONE);
        }
    }

    /// Removes `intid` from its ready set and forgets its home.
    pub(super) fn clear_home(&mut self, vcpu: usize, intid: u32) {
        let (index, mask) = split(intid);
        let home = self.home(vcpu, intid);
        if let Some(cpu) = self.vcpus.get_mut(home) {
            cpu.remove_ready(index, mask);
        }
        self.set_home(intid, usize::from(NONE));
    }

    /// Returns the vCPU that `intid` goes to when it is pending.
    pub(super) fn target(&self, vcpu: usize, intid: u32) -> usize {
        self.route(intid).map_or(vcpu, |route| usize::from(route.target))
    }
}

/// Returns an empty vector with room for `capacity` elements.
pub(super) fn vec_of<T>(capacity: usize) -> Result<Vec<T>, VgicError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| VgicError::NoMemory)?;
    Ok(vec)
}
