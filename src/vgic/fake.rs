//! A model of the virtual CPU interface (IHI 0069, chapter 6), on which tests play the guest: acknowledge,
//! end and deactivate interrupts, and observe the maintenance interrupt.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that does what no CPU does must fail"
)]

extern crate std;

use super::lr::{ListRegisters, Lr, hcr, vmcr};
use super::shadow::LrShadow;
use std::vec;
use std::vec::Vec;

/// What `ICC_IAR` reads when no interrupt can be acknowledged.
pub const SPURIOUS: u32 = 1023;

/// One CPU's list registers and the guest's CPU interface on top of them.
pub struct FakeCpu {
    lrs: Vec<Lr>,
    hcr: u64,
    vmcr: u64,
    /// The guest's `ICC_PMR_EL1`.
    pub pmr: u8,
    /// Priorities and groups of interrupts acknowledged and not yet ended, a stack (`ICH_AP<g>R<n>`).
    pub running: Vec<(u8, bool)>,
    /// Physical interrupts deactivated, by the `HW` bit or by EL2, since the test last emptied the list.
    pub deactivated: Vec<u32>,
    /// Physical PPIs whose line is low.
    pub low: Vec<u32>,
    /// Accesses to list registers since the test last cleared it.
    pub accesses: core::cell::Cell<usize>,
    /// List registers in use, as of the last [`FakeCpu::with_shadow`].
    used: u32,
}

impl FakeCpu {
    /// Returns a CPU whose guest has enabled both groups and masks no priority.
    pub fn new(count: usize) -> Self {
        Self {
            lrs: vec![Lr::EMPTY; count],
            hcr: 0,
            vmcr: vmcr::VENG0 | vmcr::VENG1,
            pmr: 0xff,
            running: Vec::new(),
            deactivated: Vec::new(),
            low: Vec::new(),
            accesses: 0.into(),
            used: 0,
        }
    }

    /// Runs `pass` as EL2 does, on a shadow of the list registers that the last pass left in use.
    pub fn with_shadow<T>(&mut self, pass: impl FnOnce(&mut LrShadow<'_, Self>) -> T) -> T {
        let used = self.used;
        let mut shadow = LrShadow::load(self, used);
        let result = pass(&mut shadow);
        self.used = shadow.write_back();
        result
    }

    /// Sets `ICH_VMCR_EL2`.
    pub fn set_vmcr(&mut self, value: u64) {
        self.vmcr = value;
    }

    /// The list registers that are not invalid.
    pub fn valid(&self) -> Vec<Lr> {
        self.lrs.iter().copied().filter(|lr| !lr.inactive()).collect()
    }

    /// The list register of `intid`.
    pub fn find(&self, intid: u32) -> Option<Lr> {
        self.valid().into_iter().find(|lr| lr.intid() == intid)
    }

    fn group_on(&self, lr: Lr) -> bool {
        self.vmcr & if lr.group1() { vmcr::VENG1 } else { vmcr::VENG0 } != 0
    }

    /// Returns the index of the list register that the CPU would signal.
    fn highest(&self) -> Option<usize> {
        let running = self.running.last().map_or(0xff, |(priority, _)| *priority);
        (0..self.lrs.len())
            .filter(|&i| {
                let lr = self.lrs[i];
                lr.pending() && !lr.active() && self.group_on(lr)
            })
            .min_by_key(|&i| (self.lrs[i].priority(), self.lrs[i].intid()))
            .filter(|&i| {
                let priority = self.lrs[i].priority();
                self.hcr & hcr::EN != 0 && priority < self.pmr && priority < running
            })
    }

    /// The guest reads `ICC_IAR`.
    pub fn ack(&mut self) -> u32 {
        let Some(i) = self.highest() else { return SPURIOUS };
        self.lrs[i] = self.lrs[i].with_pending(false).with_active(true);
        self.running.push((self.lrs[i].priority(), self.lrs[i].group1()));
        self.lrs[i].intid()
    }

    /// The guest writes `ICC_EOIR`.
    pub fn eoi(&mut self, intid: u32) {
        let Some(rank) = self.running.pop() else { return };
        let other = self
            .lrs
            .iter()
            .any(|lr| lr.intid() == intid && lr.active() && (lr.priority(), lr.group1()) != rank);
        // An active list register of another priority or group than the one dropped is not deactivated.
        if self.vmcr & vmcr::VEOIM == 0 && !other {
            self.end(intid);
        }
    }

    /// The guest writes `ICC_DIR` and the write does not trap. `false` if it traps.
    #[must_use]
    pub fn dir(&mut self, intid: u32) -> bool {
        if self.hcr & hcr::TDIR != 0 {
            return false;
        }
        self.end(intid);
        true
    }

    fn end(&mut self, intid: u32) {
        let Some(i) = (0..self.lrs.len()).find(|&i| self.lrs[i].intid() == intid && self.lrs[i].active())
        else {
            let count = (hcr::eoi_count(self.hcr) + 1) & 0x1f;
            self.hcr = self.hcr & !(0x1f << hcr::EOI_COUNT_SHIFT) | u64::from(count) << hcr::EOI_COUNT_SHIFT;
            return;
        };
        let lr = self.lrs[i];
        self.lrs[i] = lr.with_active(false);
        if let Some(pintid) = lr.pintid() {
            assert!(!lr.pending(), "HW with pending and active is not architected");
            self.deactivated.push(pintid);
        }
    }

    /// Returns whether the maintenance interrupt is asserted (`ICH_MISR_EL2` is not zero).
    pub fn maintenance(&self) -> bool {
        let on = |bit: u64| self.hcr & bit != 0;
        let valid = self.lrs.iter().filter(|lr| !lr.inactive()).count();
        on(hcr::EN)
            && (self.lrs.iter().any(|lr| lr.inactive() && lr.eoi())
                || on(hcr::UIE) && valid <= 1
                || on(hcr::LRENPIE) && hcr::eoi_count(self.hcr) != 0
                || on(hcr::NPIE) && !self.lrs.iter().any(|lr| lr.pending() && !lr.active())
                || on(hcr::VGRP0_EIE) && self.vmcr & vmcr::VENG0 != 0
                || on(hcr::VGRP0_DIE) && self.vmcr & vmcr::VENG0 == 0
                || on(hcr::VGRP1_EIE) && self.vmcr & vmcr::VENG1 != 0
                || on(hcr::VGRP1_DIE) && self.vmcr & vmcr::VENG1 == 0)
    }
}

impl ListRegisters for FakeCpu {
    fn count(&self) -> usize {
        self.lrs.len()
    }

    fn read(&self, index: usize) -> u64 {
        self.accesses.set(self.accesses.get() + 1);
        self.lrs[index].0
    }

    fn write(&mut self, index: usize, value: u64) {
        self.accesses.set(self.accesses.get() + 1);
        let lr = Lr(value);
        assert!(
            !(lr.hw() && lr.pending() && lr.active()),
            "HW with pending and active: {lr:?}"
        );
        let double = self.lrs.iter().enumerate().any(|(i, other)| {
            i != index && !lr.inactive() && !other.inactive() && other.intid() == lr.intid()
        });
        assert!(!double, "{lr:?} is in two list registers");
        self.lrs[index] = lr;
    }

    fn hcr(&self) -> u64 {
        self.hcr
    }

    fn set_hcr(&mut self, value: u64) {
        assert_eq!(value & !super::HCR_OWNED, 0);
        self.hcr = value;
    }

    fn vmcr(&self) -> u64 {
        self.vmcr
    }

    fn deactivate(&mut self, intid: u32) {
        self.deactivated.push(intid);
    }

    fn line(&self, intid: u32) -> bool {
        !self.low.contains(&intid)
    }
}
